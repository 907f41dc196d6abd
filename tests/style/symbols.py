#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The public header, the symbol map and the built library name the same functions."""
import os
import re

from common import BUILD, code, declared, main, read, run


def differences(left, a, right, b):
    return ([f'{name}: in {left}, not in {right}' for name in sorted(a - b)]
            + [f'{name}: in {right}, not in {left}' for name in sorted(b - a)])


def in_map():
    return set(re.findall(r'\b(gmem_\w+)\s*;', code(read('src/gmem.map'))))


def exported(library):
    result = run(['nm', '-D', '--defined-only', os.path.join(BUILD, library)])
    if result.returncode:
        raise RuntimeError(result.stdout)
    symbols = set()
    for line in result.stdout.split('\n'):
        fields = line.split()
        if len(fields) >= 2 and fields[-2] in 'TDBRWV':
            symbols.add(fields[-1].split('@')[0])
    return symbols


def the_header_and_the_map_agree():
    names = declared(read('include/gmem.h'))
    if not names:
        return ['no function found in include/gmem.h']
    return differences('include/gmem.h', names, 'src/gmem.map', in_map())


def the_library_exports_what_the_map_says():
    return differences('src/gmem.map', in_map(), 'libgmem.so', exported('libgmem.so'))


def the_library_has_its_soname():
    result = run(['readelf', '-d', os.path.join(BUILD, 'libgmem.so')])
    return [] if 'Library soname: [libgmem.so.0]' in result.stdout else ['the SONAME is not libgmem.so.0']


def the_preload_exports_only_what_it_replaces():
    path = os.path.join(BUILD, 'libgmem-attach.so')
    if not os.path.exists(path):
        return ['libgmem-attach.so was not built']
    names = exported('libgmem-attach.so')
    return ([f'{name}: exported by libgmem-attach.so' for name in sorted(names) if name.startswith('gmem')]
            + (['libgmem-attach.so exports no mmap'] if 'mmap' not in names else []))


def the_static_library_keeps_to_its_prefix():
    """Programs that link libgmem.a share one name space with its internal functions."""
    result = run(['nm', '-g', '--defined-only', os.path.join(BUILD, 'libgmem.a')])
    names = {line.split()[-1] for line in result.stdout.split('\n') if len(line.split()) == 3}
    if 'gmem_version' not in names:
        return [f'nm finds no gmem_version:\n{result.stdout[:500]}']
    return [f'{name}: global, but does not begin with gmem_' for name in sorted(names) if not name.startswith('gmem_')]


main([
    the_header_and_the_map_agree,
    the_library_exports_what_the_map_says,
    the_library_has_its_soname,
    the_static_library_keeps_to_its_prefix,
    the_preload_exports_only_what_it_replaces,
])
