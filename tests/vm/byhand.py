#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Save of a QEMU that was started without gmem."""
import os
import sys

import lib
import vm
from lib import expect


def there_and_back(world, ram, memory='512M'):
    machine = world.boot(by_hand=ram, memory=memory)
    image = world.path(world.fresh('hand') + '.gmem')
    machine.save(image)
    machine.console.wait_ticks(2)
    machine.save(image, '--quit')
    world.lab.wait_end(machine.p, 20)
    last = machine.console.ticks()[-1]
    lib.gmem_can('restore-qemu')
    restored = world.restore(machine, image)
    expect(restored.first_tick() == last + 1, 'it does not go on where it was saved')
    restored.console.check()
    restored.complete()
    restored.power_off()


def memfd(world):
    there_and_back(world, vm.memfd_ram())


def memfd_q35(world):
    there_and_back(world, vm.memfd_ram(machine='q35'))


def shared_file(world):
    path = world.path('ram.raw')
    there_and_back(world, ['-object', f'memory-backend-file,id=ram,size=512M,mem-path={path},share=on', '-machine',
                           'pc,memory-backend=ram'])


def refused(world, ram, pattern):
    """RAM that cannot be had from outside: the save says so, and the machine goes on as if nothing had been."""
    machine = world.boot(by_hand=ram)
    world.refuse(['save', '--qmp', machine.monitor, '--quit', world.path('no.gmem')], pattern)
    machine.console.wait_ticks(3)
    machine.console.check()
    expect(machine.p.poll() is None, 'QEMU has ended')


def anonymous(world):
    refused(world, ['-machine', 'pc'], r'share=on')


def private_file(world):
    path = world.path('private.raw')
    refused(world, ['-object', f'memory-backend-file,id=ram,size=512M,mem-path={path},share=off', '-machine', 'pc,memory-backend=ram'],
            r'share=on')
    os.unlink(path)


if __name__ == '__main__':
    sys.exit(lib.run('vm-byhand', [memfd, memfd_q35, shared_file, anonymous, private_file]))
