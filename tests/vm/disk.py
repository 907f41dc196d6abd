#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Disks: a restored guest never meets a disk that moved on. The guest writes a sector each tick and remembers in memory what it wrote."""
import os
import sys

import lib
from lib import expect

APPEND = 'gmem.size=4 gmem.tick=0.1 gmem.disk=1'


def make_disk(world):
    path = world.path(world.fresh('disk') + '.raw')
    with open(path, 'wb') as f:
        f.truncate(1 << 20)
    return path


def writes(machine, count=3):
    machine.console.wait_ticks(count)
    machine.console.check(disk=True)


def ended_with_the_save(world):
    """--quit: the disk stays as it is; once the restored guest has written to it, the image is refused."""
    disk = make_disk(world)
    machine = world.boot(APPEND, disk=disk)
    writes(machine)
    image = world.path('ended.gmem')
    machine.save(image, '--quit')
    world.lab.wait_end(machine.p, 20)
    lib.gmem_can('restore-qemu')
    restored = world.restore(machine, image)
    restored.first_tick()
    writes(restored)
    restored.power_off()
    world.refuse(['restore', image], rf'{os.path.basename(disk)}.*changed since the save')


def changed_by_others(world):
    disk = make_disk(world)
    machine = world.boot(APPEND, disk=disk)
    image = world.path('changed.gmem')
    machine.save(image, '--quit')
    world.lab.wait_end(machine.p, 20)
    with open(disk, 'r+b') as f:
        f.write(b'moved on')
    world.refuse(['restore', image], rf'{os.path.basename(disk)}.*changed since the save')
    os.unlink(disk)
    world.refuse(['restore', image], rf'{os.path.basename(disk)}.*No such file')


def going_on_freezes_the_disk(world):
    """The machine goes on into an overlay: the image can be restored again and again, each time with the disk of its moment."""
    disk = make_disk(world)
    machine = world.boot(APPEND, disk=disk)
    writes(machine)
    image = world.path('frozen.gmem')
    said = machine.save(image)
    expect('frozen' in said and os.path.basename(disk) in said, f'gmem save does not say what it did to the disk: {said}')
    with open(disk, 'rb') as f:
        frozen = f.read()
    writes(machine, 5)
    machine.power_off()
    lib.gmem_can('restore-qemu')
    for _ in range(2):
        restored = world.restore(machine, image)
        restored.first_tick()
        writes(restored)
        restored.power_off()
    with open(disk, 'rb') as f:
        expect(f.read() == frozen, 'the frozen disk was written to')


def refused_by_name(world):
    """A writable disk that cannot be snapshotted: refused without --quit, and the machine goes on."""
    disk = make_disk(world)
    machine = world.boot(APPEND, extra=['-blockdev', f'driver=file,filename={disk},node-name=file0', '-blockdev',
                                        'driver=raw,file=file0,node-name=disk0', '-device', 'virtio-blk-pci,drive=disk0'])
    writes(machine)
    image = world.path('blockdev.gmem')
    world.refuse(['save', '--qmp', machine.monitor, image], rf'{os.path.basename(disk)}.*--quit')
    writes(machine)
    machine.save(image, '--quit')
    world.lab.wait_end(machine.p, 20)
    lib.gmem_can('restore-qemu')
    restored = world.restore(machine, image)
    restored.first_tick()
    writes(restored)


def thrown_away_writes(world):
    disk = make_disk(world)
    machine = world.boot(APPEND, extra=['-drive', f'file={disk},format=raw,if=virtio,snapshot=on'])
    world.refuse(['save', '--qmp', machine.monitor, '--quit', world.path('temporary.gmem')], r'snapshot=on')
    writes(machine)


def read_only(world):
    """A disk that cannot be written needs no snapshot, and its image is restored as often as one likes."""
    disk = make_disk(world)
    machine = world.boot('gmem.size=4 gmem.tick=0.05', extra=['-drive', f'file={disk},format=raw,if=virtio,readonly=on'])
    image = world.path('readonly.gmem')
    files = os.listdir(world.lab.dir)
    machine.save(image)
    new = {name for name in set(os.listdir(world.lab.dir)) - set(files) if not name.startswith('save.')}
    expect(new == {'readonly.gmem'}, f'saving with a read-only disk made {new}')
    machine.power_off()
    lib.gmem_can('restore-qemu')
    for _ in range(2):
        restored = world.restore(machine, image)
        restored.first_tick()
        restored.console.check()
        restored.power_off()


if __name__ == '__main__':
    sys.exit(lib.run('vm-disk', [ended_with_the_save, changed_by_others, going_on_freezes_the_disk, refused_by_name, thrown_away_writes,
                                 read_only]))
