#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The rules of the tree: which room may include which, which may call the kernel or print, and how every file looks."""
import os
import re
import tempfile

from common import SOURCE, Skip, code, files, is_binary, main, read, run

# What a room may include from: itself, these, and what these may. Rooms not open yet are listed so that opening one is a new
# folder and nothing else.
ARROWS = {
    'base': [],
    'sys': ['base'],
    'file': ['sys'],
    'source': ['base'],
    'fault': ['source', 'file'],
    'image': ['source'],
    'mmu': ['file'],
    'vm': ['mmu', 'file'],
    'launch': ['vm', 'mmu', 'file'],
    'link': ['fault', 'image'],
    'abi': ['vm', 'launch', 'fault'],
    'tools': [],
}
TOOLS_MAY = {'gmem.h', 'link/qemu.h', 'link/migrate/migrate.h', 'link/serve/minder.h'}
# The lock checker ends the program when an order is violated: only test builds have it. The attach preload is no library: it
# speaks to the user of the program it is loaded into.
MAY_PRINT = re.compile(r'src/base/lockcheck\.c$|src/link/attach\w*\.c$')
MAX_LINES = 500
MAX_COLUMNS = 120
LONG_FILES = {'include/gmem.h'}
NO_SPDX = ('LICENSE', '.md', '.scd', '.gitignore', '.editorconfig', '.clang-format', '.json', '.txt.in')
C = ('.c', '.h')


def allowed(room):
    seen, todo = {room}, list(ARROWS[room])
    while todo:
        r = todo.pop()
        if r not in seen:
            seen.add(r)
            todo += ARROWS[r]
    return seen


def sources():
    """(path, room, text) of the C files of the rooms."""
    for path in files():
        parts = path.split('/')
        if parts[0] == 'src' and len(parts) > 2 and path.endswith(C):
            yield path, parts[1], read(path)


def includes(text):
    for number, line in enumerate(re.sub(r'/\*.*?\*/', lambda m: '\n' * m.group(0).count('\n'), text, flags=re.S).split('\n'), 1):
        m = re.match(r'\s*#\s*include\s+"([^"]+)"', line)
        if m:
            yield number, m.group(1)


def calls(text, names):
    pattern = re.compile(r'(?<![\w.>])(%s)\s*\(' % '|'.join(names))
    for number, line in enumerate(code(text).split('\n'), 1):
        for m in pattern.finditer(line):
            yield number, m.group(1)


def include_arrows_between_rooms_go_only_down():
    bad = []
    for path, room, text in sources():
        if room not in ARROWS:
            bad.append(f'{path}: src/{room} is not a room')
            continue
        for number, name in includes(text):
            if name == 'gmem.h':
                continue
            if '/' not in name or name.startswith('.'):
                bad.append(f'{path}:{number}: "{name}": write "ROOM/{os.path.basename(name)}"')
            elif room == 'tools':
                if name not in TOOLS_MAY and not name.startswith('tools/'):
                    bad.append(f'{path}:{number}: tools may include {", ".join(sorted(TOOLS_MAY))} and their own, not "{name}"')
            elif name.split('/')[0] not in allowed(room):
                bad.append(f'{path}:{number}: {room} may not include "{name}"')
    return bad


def only_sys_calls_the_kernel_directly():
    return [f'{path}:{number}: {name}() outside src/sys' for path, room, text in sources()
            if room != 'sys' and not re.match(r'src/link/attach\w*\.[ch]$', path)
            for number, name in calls(text, ['ioctl', 'syscall'])]


def the_library_does_not_print_or_exit():
    names = ['v?printf', 'v?fprintf', 'v?dprintf', 'f?puts', 'f?putc', 'putchar', 'perror', 'exit', 'abort', 'assert', 'psignal',
             'v?warnx?', 'v?errx?']
    return [f'{path}:{number}: {name}() in the library' for path, room, text in sources()
            if room != 'tools' and not MAY_PRINT.match(path)
            for number, name in calls(text, names)]


def no_file_closes_before_it_reads_errno():
    pattern = re.compile(r'\bclose\s*\([^;]*\)\s*;\s*return\s+-\s*errno\b')
    return [f'{path}:{code(text)[:m.start()].count(chr(10)) + 1}: close() may change errno before it is returned'
            for path, _, text in sources() for m in pattern.finditer(code(text))]


def every_file_begins_with_its_licence():
    bad = []
    for path in files():
        if path.endswith(NO_SPDX) or os.path.basename(path) in NO_SPDX or is_binary(path) or path.startswith('fuzz/corpus/'):
            continue
        head = read(path).split('\n')[:2]
        first = head[1] if head[0].startswith('#!') and len(head) > 1 else head[0]
        want = '/* SPDX-License-Identifier: MIT */' if path.endswith(C + ('.map',)) else 'SPDX-License-Identifier: MIT'
        if want not in first:
            bad.append(f'{path}:1: does not begin with "{want}"')
    return bad


def no_white_space_at_line_ends():
    bad = []
    for path in files():
        if is_binary(path) or path.startswith('fuzz/corpus/'):
            continue
        text = read(path)
        bad += [f'{path}:{n}: white space at the end of the line' for n, line in enumerate(text.split('\n'), 1)
                if line != line.rstrip()]
        if text and not text.endswith('\n'):
            bad.append(f'{path}: no newline at its end')
    return bad


def no_file_is_longer_than_500_lines():
    bad = []
    for path in files():
        if path in LONG_FILES or is_binary(path) or path.endswith('.md') or path.startswith('fuzz/corpus/'):
            continue
        n = read(path).count('\n')
        if n > MAX_LINES:
            bad.append(f'{path}: {n} lines')
    return bad


def no_line_is_wider_than_120_columns():
    return [f'{path}:{n}: {len(line.expandtabs(8))} columns' for path in files() if path.endswith(C)
            for n, line in enumerate(read(path).split('\n'), 1) if len(line.expandtabs(8)) > MAX_COLUMNS]


def the_tree_speaks_of_itself_alone():
    # Put together here, so that this file does not hold them.
    words = re.compile('|'.join([r'(?<![\w.])/' + r'work\b(?!/?\*)', r'\.\./' + 'shared', r'(?<![\w.}"])/' + 'root/']))
    return [f'{path}:{n}: "{line.strip()[:100]}"' for path in files() if not is_binary(path)
            for n, line in enumerate(read(path).split('\n'), 1) if words.search(line)]


def the_public_header_compiles_alone():
    bad = []
    flags = ['-Wall', '-Wextra', '-pedantic', '-Werror', '-fsyntax-only', '-I' + os.path.join(SOURCE, 'include')]
    with tempfile.TemporaryDirectory() as folder:
        for compiler, std, suffix in (('gcc', 'c99', 'c'), ('gcc', 'c11', 'c'), ('g++', 'c++17', 'cc')):
            unit = os.path.join(folder, 'unit.' + suffix)
            with open(unit, 'w') as f:
                f.write('#include <gmem.h>\n#include <gmem.h>\nint unit;\n')
            try:
                result = run([compiler, '-std=' + std] + flags + [unit])
            except FileNotFoundError:
                raise Skip(f'{compiler}: not installed; scripts/setup build installs it')
            if result.returncode:
                bad.append(f'{compiler} -std={std}:\n{result.stdout}')
    return bad


def every_manual_page_is_built():
    text = re.sub(r'#.*', '', read('man/meson.build')).split('foreach')[0]
    listed = set(re.findall(r"'([\w-]+\.\d)'", text))
    there = {os.path.basename(p)[:-4] for p in files() if p.startswith('man/') and p.endswith('.scd')}
    return ([f'man/{p}.scd is not in man/meson.build' for p in sorted(there - listed)]
            + [f'man/meson.build lists {p}, which has no .scd' for p in sorted(listed - there)])


def a_backslash_of_a_manual_page_is_seen():
    """scdoc takes one for its own, in examples too."""
    return [f'{p}:{n}: {line.strip()}' for p in files() if p.startswith('man/') and p.endswith('.scd')
            for n, line in enumerate(read(p).splitlines(), 1) if re.search(r'(?<!\\)(?:\\\\)*\\[a-z0]', line)]


def every_source_file_is_built():
    """A file that nobody compiles rots."""
    bad = []
    for path in files():
        top = path.split('/')[0]
        if not path.endswith('.c') or top not in ('src', 'tests', 'bench', 'demo', 'fuzz'):
            continue
        folder, name = os.path.split(path)
        lists = ''
        while folder:
            if os.path.exists(os.path.join(SOURCE, folder, 'meson.build')):
                lists += re.sub(r'#.*', '', read(os.path.join(folder, 'meson.build')))
            folder = os.path.dirname(folder)
        # fuzz and bench may list targets by the name without .c
        if not re.search(r"['/]%s'" % re.escape(name), lists) and not re.search(r"'%s'" % re.escape(name[:-2]), lists):
            bad.append(f'{path} is in no meson.build')
    return bad


def nothing_outside_mmu_reaches_its_internals():
    """Other rooms call gmem_mmu_*() functions; entries, tables and the fields of struct gmem_mmu are the MMU's own."""
    pattern = re.compile(r'\bmmu(?:\.|->)\w+|\b(?:GMEM_PTE_|GMEM_PT_|GMEM_LEVEL_)\w+|\bgmem_(?:pte|pt|level|table)_\w+|\bgmem_pte\b'
                         r'|\bgmem_mmu_walk\b|\bgmem_mmu_map\b|\bvcpu(?:\.|->)(?:root|cache|reader|mapper|counts|last_slot)\b')
    return [f'{path}:{n}: {m.group(0)}' for path, room, text in sources() if room != 'mmu'
            for n, line in enumerate(code(text).split('\n'), 1) if not re.match(r'\s*#\s*include', line)
            for m in [pattern.search(line)] if m]


def the_table_of_ideas_is_true():
    """docs/upstream.md names functions and tests: each is where it says."""
    bad, text = [], read('docs/upstream.md')
    for path, case in re.findall(r'`(tests/[\w.]+): (\w+)`', text):
        if not os.path.exists(os.path.join(SOURCE, path)):
            bad.append(f'docs/upstream.md: there is no {path}')
        elif not re.search(r'^(?:TEST(?:_TIMEOUT)?|CONTRACT)\(%s\b' % case, read(path), re.M):
            bad.append(f'docs/upstream.md: {path} has no case {case}')
    for names, path in re.findall(r'((?:`\w+\(\)`(?:, )?)+) in (src/[\w/]+\.[ch])', text):
        for name in re.findall(r'\w+', names):
            if not os.path.exists(os.path.join(SOURCE, path)) or not re.search(r'\b%s\(' % name, code(read(path))):
                bad.append(f'docs/upstream.md: {path} has no {name}()')
    return bad if re.search(r'`tests/', text) else ['docs/upstream.md names no test']


main([
    include_arrows_between_rooms_go_only_down,
    only_sys_calls_the_kernel_directly,
    the_library_does_not_print_or_exit,
    no_file_closes_before_it_reads_errno,
    every_file_begins_with_its_licence,
    no_white_space_at_line_ends,
    no_file_is_longer_than_500_lines,
    no_line_is_wider_than_120_columns,
    the_tree_speaks_of_itself_alone,
    the_public_header_compiles_alone,
    every_manual_page_is_built,
    a_backslash_of_a_manual_page_is_seen,
    every_source_file_is_built,
    nothing_outside_mmu_reaches_its_internals,
    the_table_of_ideas_is_true,
])
