#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The page server killed at random instants, with a fault in flight and 10 to 90 % of the stored pages unserved: the guest waits, reads
neither zeros nor stale bytes, and another server carries on."""
import os
import random
import re
import signal
import sys
import time

import lib
import vm
from lib import Failure, expect


def base(world):
    lib.gmem_can('restore-qemu')
    if 'image' not in world.state:
        seed = int(os.environ.get('GMEM_SEED', random.randrange(1 << 32)))
        print(f'# GMEM_SEED={seed}')
        machine = world.boot('gmem.size=64 gmem.tick=0.05')
        image = world.path('vm.gmem')
        said = machine.save(image, '--quit')
        world.lab.wait_end(machine.p, 20)
        stored = int(re.search(r'pages stored\s+(\d+)', said)[1])
        world.state.update(machine=machine, image=image, stored=stored, rng=random.Random(seed), last=machine.console.ticks()[-1])
    return world.state['machine'], world.state['image']


def in_flight(pid):
    """Faults that wait in any userfaultfd of a process, read by a server or not, as the kernel counts them."""
    count = 0
    for fd in os.listdir(f'/proc/{pid}/fd'):
        try:
            if 'userfaultfd' in os.readlink(f'/proc/{pid}/fd/{fd}'):
                with open(f'/proc/{pid}/fdinfo/{fd}', encoding='ascii') as f:
                    count += int(re.search(r'^total:\s*(\d+)', f.read(), re.M)[1])
        except OSError:
            pass
    return count


def stopped(pid):
    with open(f'/proc/{pid}/stat', encoding='ascii', errors='replace') as f:
        return f.read().rpartition(')')[2].split()[0] in 'Tt'


class Missed(Exception):
    """Too late: more than 90 % served."""


def kill_in_flight(world, server, qemu, memory, also=()):
    """Stops the server at a random instant, and kills it if that is one with a fault in flight and 10 to 90 % unserved (the upper bound
    drawn anew each time); else lets it go on and tries again. What is looked at does not move meanwhile: only the server serves."""
    stored = world.state['stored'] * 4096
    most = world.state['rng'].uniform(0.6, 0.9)  # the guest itself touches little more than half
    deadline = time.monotonic() + 60 * vm.slow()
    while time.monotonic() < deadline:
        time.sleep(world.state['rng'].uniform(0, 0.03))
        if server.poll() is not None:
            raise Failure(f'{server.name} ended by itself{world.lab.tail(server.name)}')
        os.kill(server.pid, signal.SIGSTOP)
        world.lab.wait_for('stop of the server', lambda: stopped(server.pid), 5)
        # The guest goes on to the next page that is not there.
        waited = time.monotonic() + 0.2
        while not in_flight(qemu) and time.monotonic() < waited:
            time.sleep(0.001)
        unserved = 1 - memory()[0] / stored
        faults = in_flight(qemu)
        if faults and 0.1 <= unserved <= most:
            for pid in (server.pid, *also):
                os.kill(pid, signal.SIGKILL)
            server.wait()
            print(f'# killed with {faults} fault(s) in flight and {unserved:.0%} of the stored pages unserved')
            return
        os.kill(server.pid, signal.SIGCONT)
        if unserved < 0.1:
            raise Missed()
    raise Failure('no moment with a fault in flight and 10 to 90 % unserved within 60 s')


def keeper_of(world, restored):
    """The keeper is nobody's child, and so has become ours."""
    for pid in vm.children(os.getpid()):
        try:
            with open(f'/proc/{pid}/cmdline', 'rb') as f:
                words = f.read().split(b'\0')
        except OSError:
            continue
        if pid != restored.p.pid and words[:2] == [world.lab.gmem.encode(), b'restore']:
            return pid
    raise Failure('no keeper')


def reattach(world, where, *options):
    return world.lab.start(world.fresh('reattach'), [world.lab.gmem, 'restore', '--reattach', where, *options])


def guest_waits(world, qemu, console, mark):
    """Without a server: QEMU lives, and the guest, which needs a page, says nothing."""
    time.sleep(0.3)
    expect(os.path.exists(f'/proc/{qemu}/exe') and in_flight(qemu), 'QEMU has ended, or does not wait for a page')
    answers = [line for _, line in console.lines[mark:] if 'CHECK' in line]
    expect(not answers, f'the guest checked its memory without a server: {answers}')


def start_and_kill(world, *options, keeper_too=False):
    """A restored guest that is checking its memory, and whose server is dead."""
    machine, image = base(world)
    for _ in range(10):
        restored = world.restore(machine, image, *options)
        console = machine.console
        expect(restored.first_tick() == world.state['last'] + 1, 'it does not go on where it was saved')
        qemu = restored.qemu()
        mark = console.mark()
        console.send('check')
        try:
            kill_in_flight(world, restored.p, qemu, restored.memory, [keeper_of(world, restored)] if keeper_too else ())
        except Missed:
            print('# too late, once more')
            world.lab.end_processes()
            continue
        guest_waits(world, qemu, console, mark)
        return restored, qemu, mark
    raise Failure('in ten tries no server could be killed in time')


def check_answer(console, mark, p):
    answer = console.wait(r'^GMEM-GUEST CHECK (\w+)', mark, 120, p)[1]
    expect(answer[1] == 'ok', f'the guest read wrong bytes: {answer[0]}')


def carries_on(world, restored, p, mark):
    check_answer(restored.console, mark, p)
    world.lab.wait_for('table of gmem restore', lambda: 'complete after' in world.lab.log(p.name), 120, p)
    restored.console.wait_ticks(3)
    restored.console.check()
    expect(world.lab.wait_end(p, 30) == 0, f'{p.name} ended with status {p.returncode}{world.lab.tail(p.name)}')


def while_filling(world):
    for _ in range(3):
        restored, _, mark = start_and_kill(world)
        carries_on(world, restored, reattach(world, restored.keeper), mark)
        world.lab.end_processes()


def while_serving_faults(world):
    restored, _, mark = start_and_kill(world, '--no-fill')
    carries_on(world, restored, reattach(world, restored.keeper), mark)


def again_and_again(world):
    """The next server is killed too, and the next."""
    restored, qemu, mark = start_and_kill(world, '--no-fill')
    memory = memory_of(qemu)
    for _ in range(3):
        p = reattach(world, restored.keeper, '--no-fill')
        try:
            kill_in_flight(world, p, qemu, memory)
        except Missed:
            break
        guest_waits(world, qemu, restored.console, mark)
    else:
        p = reattach(world, restored.keeper)
        carries_on(world, restored, p, mark)
        return
    raise Failure('more than 90 % were served before the server was killed four times')


def memory_of(qemu):
    """As Machine.memory(), for a QEMU whose parent is dead."""
    for fd in os.listdir(f'/proc/{qemu}/fd'):
        if '/memfd:gmem-ram' in os.readlink(f'/proc/{qemu}/fd/{fd}'):
            def look():
                st = os.stat(f'/proc/{qemu}/fd/{fd}')
                return st.st_blocks * 512, st.st_size
            return look
    raise Failure('QEMU has no guest memory file open')


def keeper_killed_too(world):
    """The VM's own side holds what is needed."""
    lib.gmem_can('take-over')
    restored, qemu, mark = start_and_kill(world, keeper_too=True)
    world.refuse(['restore', '--reattach', restored.keeper], r'keeper')
    carries_on(world, restored, reattach(world, str(qemu), '--socket', restored.keeper + '2'), mark)


def one_server_at_a_time(world):
    machine, image = base(world)
    restored = world.restore(machine, image, '--no-fill')
    restored.first_tick()
    world.refuse(['restore', '--reattach', restored.keeper], rf'alive.*{restored.p.pid}')
    mark = machine.console.mark()
    machine.console.send('check')
    p = reattach(world, restored.keeper, '--take-over')
    check_answer(machine.console, mark, p)
    status = world.lab.wait_end(restored.p, 20)
    expect(status == -signal.SIGKILL, f'the server taken over from ended with {status}')


if __name__ == '__main__':
    sys.exit(lib.run('vm-kill', [while_filling, while_serving_faults, again_and_again, keeper_killed_too, one_server_at_a_time]))
