# SPDX-License-Identifier: MIT
"""What the style tests share: the source tree, C without comments and strings, and TAP."""
import os
import re
import subprocess
import sys

SOURCE = os.environ.get('GMEM_SOURCE') or os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.environ.get('GMEM_BUILD') or os.path.join(SOURCE, 'build')
SKIP_DIRS = {'.git', '__pycache__', '.cache'}


def files():
    """Every file of the tree, as paths relative to it. What git ignores is left out, with or without git."""
    found = []
    for folder, dirs, names in os.walk(SOURCE):
        rel = os.path.relpath(folder, SOURCE)
        top = rel == '.'
        dirs[:] = sorted(d for d in dirs if d not in SKIP_DIRS
                         and not (top and (d == 'build' or d.startswith('build-')))
                         and not os.path.exists(os.path.join(folder, d, 'build.ninja')))
        for name in sorted(names):
            path = os.path.normpath(os.path.join(rel, name))
            if name not in SKIP_DIRS and os.path.isfile(os.path.join(SOURCE, path)) and not name.endswith(('.o', '.swp', '~', '.pyc')):
                found.append(path)
    return found


def read(path):
    with open(os.path.join(SOURCE, path), encoding='utf-8', errors='strict') as f:
        return f.read()


def is_binary(path):
    with open(os.path.join(SOURCE, path), 'rb') as f:
        return b'\0' in f.read(8192)


TOKEN = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', re.S)


def code(text):
    """C without comments, and with empty string and character literals; line numbers stay."""
    def blank(m):
        lines = '\n' * m.group(0).count('\n')
        return ('""' if m.group(0)[0] == '"' else "' '" if m.group(0)[0] == "'" else ' ') + lines
    return TOKEN.sub(blank, text)


def declared(text):
    """The functions a header declares."""
    text = re.sub(r'^[ \t]*#(?:\\\n|[^\n])*', '', code(text).replace('extern "" {', ''), flags=re.M)
    while True:
        shorter = re.sub(r'\{[^{}]*\}', '', text)
        if shorter == text:
            break
        text = shorter
    names = set()
    for declaration in text.split(';'):
        m = re.search(r'\b(gmem_\w+)\s*\(', declaration)
        if m and not re.match(r'\s*typedef\b', declaration):
            names.add(m.group(1))
    return names


def readme_example():
    """The first C block of README.md, and the line it begins at. An error text instead of the block if there is none."""
    if not os.path.exists(os.path.join(SOURCE, 'README.md')):
        return None, 'there is no README.md yet; it has to hold a library example in a ```c block'
    text = read('README.md')
    m = re.search(r'^```c\n(.*?)^```', text, re.S | re.M)
    if not m:
        return None, 'README.md has no ```c block'
    return m.group(1), text[:m.start(1)].count('\n') + 1


def run(args, **kw):
    kw.setdefault('stdin', subprocess.DEVNULL)
    return subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace', **kw)


class Skip(Exception):
    pass


def main(checks):
    """Runs functions that return a list of complaints; name and words are the function's own."""
    failures = 0
    for number, check in enumerate(checks, 1):
        name = check.__name__.replace('_', ' ')
        try:
            complaints = check()
        except Skip as skip:
            required = os.environ.get('GMEM_REQUIRE', '').split(',')
            tag = str(skip).split(':')[0]
            if 'all' not in required and tag not in required:
                print(f'ok {number} - {name} # SKIP {skip}')
                continue
            complaints = [f'required by GMEM_REQUIRE: {skip}']
        for complaint in complaints:
            for line in complaint.rstrip().split('\n'):
                print('#   ' + line)
        print(f'{"not " if complaints else ""}ok {number} - {name}', flush=True)
        failures += bool(complaints)
    print(f'1..{len(checks)}')
    sys.exit(failures > 0)
