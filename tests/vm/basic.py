#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Save and restore of a guest that gmem run started."""
import os
import re
import sys
import time

import lib
import vm
from lib import expect


def going_on_and_ended(world):
    """Two images of one guest; each restored guest goes on from its own."""
    machine = world.boot('gmem.size=16 gmem.tick=0.05')
    first, second = world.path('first.gmem'), world.path('second.gmem')
    before = machine.console.ticks()[-1]
    machine.save(first)
    after = machine.console.wait_ticks(3)
    expect(os.stat(first).st_mode & 0o777 == 0o600, 'the image can be read by others')
    machine.console.send('renew')
    machine.console.wait('^GMEM-GUEST RENEW', 0)
    machine.console.wait_ticks(2)
    machine.save(second, '--quit')
    expect(world.lab.wait_end(machine.p, 20) == 0, f'QEMU ended with status {machine.p.returncode}')
    last = machine.console.ticks()[-1]

    lib.gmem_can('restore-qemu')
    restored = world.restore(machine, second)
    expect(restored.first_tick() == last + 1, 'the second image does not go on where it was saved')
    restored.console.check()
    restored.complete()
    restored.power_off()
    restored = world.restore(machine, first)
    tick = restored.first_tick()
    expect(before < tick <= after, f'the first image goes on with {tick}; it was saved between {before} and {after}')
    restored.console.check()
    restored.power_off()
    world.state.update(image=second, machine=machine, last=last)


def base(world):
    """The image of the first case, for the others."""
    if 'image' not in world.state:
        machine = world.boot('gmem.size=16 gmem.tick=0.05')
        image = world.path('base.gmem')
        machine.save(image, '--quit')
        world.lab.wait_end(machine.p, 20)
        world.state.update(image=image, machine=machine, last=machine.console.ticks()[-1])
    return world.state['machine'], world.state['image'], world.state['last']


def eager(world):
    machine, image, last = base(world)
    restored = world.restore(machine, image, '--eager')
    expect(restored.first_tick() == last + 1, 'it does not go on where it was saved')
    restored.console.check()
    restored.power_off()


def no_fill_and_save_again(world):
    """Pages nobody touches are not brought in, until a save needs all."""
    lib.gmem_can('restore-qemu')
    machine, image, last = base(world)
    restored = world.restore(machine, image, '--no-fill')
    expect(restored.first_tick() == last + 1, 'it does not go on where it was saved')
    restored.console.wait_ticks(10)
    there, size = restored.memory()
    expect(0 < there < size // 2, f'{there} of {size} bytes are in place though the guest touches little')
    again = world.path('again.gmem')
    restored.save(again, '--quit')
    expect(world.lab.wait_end(restored.p, 30) == 0, f'gmem restore ended with status {restored.p.returncode}')
    last = machine.console.ticks()[-1]
    restored = world.restore(machine, again)
    expect(restored.first_tick() == last + 1, 'the second generation does not go on where it was saved')
    restored.console.check()
    restored.power_off()


def paused_stays_paused(world):
    lib.gmem_can('restore-qemu')
    machine, image, _ = base(world)
    restored = world.restore(machine, image)
    restored.first_tick()
    qmp = lib.Qmp(machine.monitor)
    qmp.run('stop')
    qmp.close()
    paused = world.path('paused.gmem')
    restored.save(paused)
    qmp = lib.Qmp(machine.monitor)
    # QEMU's word for paused after its state was taken.
    status = qmp.run('query-status')['status']
    expect(status in ('paused', 'postmigrate'), f'a paused machine is {status} after a save')
    qmp.run('quit')
    world.lab.wait_end(restored.p, 20)
    last = machine.console.ticks()[-1]
    restored = world.restore(machine, paused)
    restored.complete()
    expect(lib.Qmp(machine.monitor).run('query-status')['status'] == 'paused', 'the restored machine is not paused')
    mark = machine.console.wait_connection(restored.number)
    expect(not machine.console.ticks(mark), 'a paused guest counts')
    lib.Qmp(machine.monitor).run('cont')
    expect(restored.first_tick() == last + 1, 'it does not go on where it was paused')
    restored.console.check()


def detach(world):
    """gmem ends, the machine runs on."""
    lib.gmem_can('restore-qemu')
    machine, image, last = base(world)
    restored = world.restore(machine, image, '--detach')
    expect(restored.first_tick() == last + 1, 'it does not go on where it was saved')
    expect(world.lab.wait_end(restored.p, 60) == 0, f'gmem restore ended with status {restored.p.returncode}')
    machine.console.wait_ticks(5)
    machine.console.check()


def firmware_under_kvm(world):
    """The kernel's own accesses are served: firmware runs on under KVM, its memory brought in as KVM touches it."""
    lib.gmem_can('restore-qemu')
    if not os.access('/dev/kvm', os.R_OK | os.W_OK):
        raise vm.Skip('kvm', '/dev/kvm cannot be opened', 'join the group kvm')
    lab, monitor, image = world.lab, world.lab.socket('kvm.sock'), world.path('kvm.gmem')
    p = lab.start('kvm', [lab.gmem, 'run', '--qmp', monitor, '--', vm.QEMU, '-accel', 'kvm', '-m', '256M', '-nodefaults', '-display',
                          'none'])
    qmp = lib.Qmp(monitor)
    time.sleep(2)
    expect(qmp.run('query-kvm')['enabled'], 'KVM is not used')
    qmp.close()
    status, _, err, _ = lab.run('kvm-save', [lab.gmem, 'save', '--qmp', monitor, '--quit', image])
    expect(status == 0, f'gmem save: {err}')
    lab.wait_end(p, 20)
    p = lab.start('kvm-restore', [lab.gmem, 'restore', '--no-fill', image])
    lab.wait_for('resume', lambda: 'resumed after' in lab.log('kvm-restore'), 30, p)
    time.sleep(1)
    qmp = lib.Qmp(monitor)
    expect(qmp.run('query-status')['status'] == 'running', 'it does not run')
    qmp.run('quit')
    expect(lab.wait_end(p, 20) == 0, f'gmem restore ended with status {p.returncode}')
    missing = int(re.search(r'faults, missing\s+(\d+)', lab.log('kvm-restore'))[1])
    print(f'# {missing} faults served')
    expect(missing > 0, 'no fault was served')


if __name__ == '__main__':
    sys.exit(lib.run('vm-basic', [going_on_and_ended, eager, no_fill_and_save_again, paused_stays_paused, detach, firmware_under_kvm]))
