#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The README's example compiles and runs, against the build tree and against what `make install` installs."""
import glob
import os
import shutil
import tempfile

from common import BUILD, SOURCE, main, read, readme_example, run

FLAGS = ['-Wall', '-Wextra', '-Werror', '-g']


def build_and_run(flags, library_path):
    """Compiles the example with `flags` and runs it in an empty folder."""
    text, line = readme_example()
    if text is None:
        return [line]
    with tempfile.TemporaryDirectory() as folder:
        source, program = os.path.join(folder, 'example.c'), os.path.join(folder, 'example')
        with open(source, 'w') as f:
            f.write(f'#line {line + 1} "README.md"\n{text}')
        result = run(['gcc'] + FLAGS + [source, '-o', program] + flags)
        if result.returncode:
            return [f'the example does not compile:\n{result.stdout}']
        result = run([program], cwd=folder, env=dict(os.environ, LD_LIBRARY_PATH=library_path), timeout=60)
        if result.returncode:
            return [f'the example ends with status {result.returncode}:\n{result.stdout}']
    return []


def readme_example_runs_against_the_build_tree():
    return build_and_run(['-I' + os.path.join(SOURCE, 'include'), '-L' + BUILD, '-lgmem'], BUILD)


def readme_example_has_at_most_25_lines():
    text, problem = readme_example()
    if text is None:
        return [problem]
    lines = len([line for line in text.split('\n') if line.strip()])
    return [f'{lines} lines that are not empty'] if lines > 25 else []


def an_installed_tree_is_complete_and_usable():
    bad = []
    with tempfile.TemporaryDirectory() as root:
        result = run(['meson', 'install', '-C', BUILD, '--no-rebuild', '--quiet', '--destdir', root])
        if result.returncode:
            return [f'meson install fails:\n{result.stdout}']

        def find(name):
            hits = glob.glob(os.path.join(glob.escape(root), '**', name), recursive=True)
            if not hits:
                bad.append(f'{name} is not installed')
            return hits[0] if hits else None

        pc = find('gmem.pc')
        lib = find('libgmem.so.0')
        for name in ('libgmem.so', 'libgmem.a', 'include/gmem.h', 'bin/gmem', 'gmem/libgmem-attach.so'):
            find(name)
        if shutil.which('scdoc'):
            pages = [p for p in os.listdir(os.path.join(SOURCE, 'man')) if p.endswith('.scd')]
            if not pages:
                bad.append('there are no manual pages')
            for page in pages:
                find(f'man{page.split(".")[-2]}/{page[:-4]}')
        if not pc or not lib:
            return bad
        env = dict(os.environ, PKG_CONFIG_PATH=os.path.dirname(pc), PKG_CONFIG_SYSROOT_DIR=root)
        result = run(['pkg-config', '--cflags', '--libs', 'gmem'], env=env)
        if result.returncode:
            return bad + [f'pkg-config: {result.stdout}']
        bad += build_and_run(result.stdout.split(), os.path.dirname(lib))
        # The static library needs what the .pc file names as private. A sanitized one needs its runtime too.
        result = run(['pkg-config', '--static', '--libs', 'gmem'], env=env)
        words = [os.path.join(os.path.dirname(lib), 'libgmem.a') if w == '-lgmem' else w for w in result.stdout.split()]
        bad += build_and_run(['-I' + os.path.dirname(find('include/gmem.h') or '')] + words, '')
        command = find('bin/gmem')
        if command:
            result = run([command, '--version'])
            if result.returncode or '0.1.0' not in result.stdout:
                bad.append(f'the installed gmem --version: status {result.returncode}: {result.stdout}')
    return bad


def versions_agree():
    header = read('include/gmem.h')
    version = '.'.join(header.split(f'define GMEM_VERSION_{part} ')[1].split()[0] for part in ('MAJOR', 'MINOR', 'PATCH'))
    return [] if f"version: '{version}'" in read('meson.build') else [f'include/gmem.h says {version}, meson.build does not']


main([
    readme_example_runs_against_the_build_tree,
    readme_example_has_at_most_25_lines,
    an_installed_tree_is_complete_and_usable,
    versions_agree,
])
