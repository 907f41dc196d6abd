#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Which pages a restored guest wants first: recorded, replayed, cut; and what is refused."""
import os
import re
import sys

import lib
from lib import expect


def image_of(world):
    """A machine that has ended, its image, and a recorded working set of its first seconds."""
    if 'image' not in world.state:
        lib.gmem_can('restore-qemu')
        machine = world.boot(lib.SMALL)
        image, trace = world.path('set.gmem'), world.path('set.workset')
        machine.save(image, '--quit')
        world.lab.wait_end(machine.p, 20)
        last = machine.console.ticks()[-1]
        restored = world.restore(machine, image, '--no-fill', '--record', trace)
        expect(restored.first_tick() == last + 1, 'it does not go on where it was saved')
        restored.console.wait_ticks(10)
        restored.power_off()
        log = world.lab.log(restored.p.name)
        pages = int(re.search(r'a working set of (\d+) pages', log)[1])
        expect(pages > 10, f'a working set of {pages} pages')
        world.state.update(machine=machine, image=image, trace=trace, last=last, pages=pages, missing=missing(log))
    return world.state


def missing(log):
    return int(re.search(r'faults, missing\s+(\d+)', log)[1])


def recorded_and_replayed(world):
    """The same guest, its working set in place before it asks: most of its faults do not happen."""
    s = image_of(world)
    expect(os.stat(s['trace']).st_mode & 0o777 == 0o600, 'the working set can be read by others')
    restored = world.restore(s['machine'], s['image'], '--no-fill', '--replay', s['trace'])
    expect(restored.first_tick() == s['last'] + 1, 'it does not go on where it was saved')
    restored.console.wait_ticks(10)
    restored.console.check()
    restored.power_off()
    log = world.lab.log(restored.p.name)
    pages, entries, hits, late = map(int, re.search(r'working set: (\d+) pages in .*; of (\d+) entries (\d+) came in time, (\d+) too late',
                                                    log).groups())
    print(f'# {s["pages"]} pages recorded with {s["missing"]} faults; {pages} replayed, {hits} of {entries} entries in time, {late} late; '
          f'{missing(log)} faults')
    expect(hits + late <= entries and pages > 0, 'nothing was replayed')


def learned(world):
    """What nobody wanted goes; the file stays one that can be replayed, with the fill behind it."""
    s = image_of(world)
    size = os.stat(s['trace']).st_size
    restored = world.restore(s['machine'], s['image'], '--no-fill', '--replay', s['trace'], '--learn')
    restored.first_tick()
    restored.console.wait_ticks(10)
    restored.power_off()
    log = world.lab.log(restored.p.name)
    kept = int(re.search(r'(\d+) entries are worth replaying', log)[1])
    unused = int(re.search(r'(\d+) entries were not wanted', log)[1])
    print(f'# {kept} entries kept, {unused} were not wanted')
    expect(os.stat(s['trace']).st_size <= size, 'the cut file is longer')
    restored = world.restore(s['machine'], s['image'], '--replay', s['trace'])
    restored.first_tick()
    restored.complete()
    restored.console.check()
    restored.power_off()


def refused(world):
    s = image_of(world)
    other = world.path('other')
    with open(other, 'wb') as f:
        f.write(b'x' * 5000)
    world.refuse(['restore', '--replay', other, s['image']], 'no working set')
    world.refuse(['restore', '--replay', world.path('none'), s['image']], 'No such file')
    world.refuse(['restore', '--record', s['trace'], s['image']], 'exists')
    for options in (['--eager', '--replay', s['trace']], ['--reattach', 'x', '--record', other + '2'], ['--learn']):
        status, _, err, _ = world.lab.run('usage', [world.lab.gmem, 'restore', *options, s['image']])
        expect(status == 2 and 'gmem restore: --' in err, f'{options}: status {status}: {err}')
    with open(s['trace'], 'rb') as f:
        trace = bytearray(f.read())
    trace[30] ^= 1
    with open(other, 'wb') as f:
        f.write(trace)
    world.refuse(['restore', '--replay', other, s['image']], 'checksum')


if __name__ == '__main__':
    sys.exit(lib.run('vm-workset', [recorded_and_replayed, learned, refused]))
