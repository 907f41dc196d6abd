# SPDX-License-Identifier: MIT
"""Tests of save and restore with a real QEMU and Linux guest, through the public commands only. A test program is a list of functions with one
argument, a World; it prints TAP. A case fails by raising Failure (or anything else), skips by raising Skip.

    tests/vm/basic.py [CASE...]      runs all cases, or some, against the build folder GMEM_BUILD
"""
import json
import os
import re
import subprocess
import sys
import time
import traceback

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, '..', '..', 'demo'))
import vm  # noqa: E402
from vm import Console, Failure, Lab, Qmp, Skip  # noqa: E402, F401

BUILD = os.path.abspath(os.environ.get('GMEM_BUILD', os.path.join(HERE, '..', '..', 'build')))
SMALL = 'gmem.size=8 gmem.tick=0.05'


def expect(condition, text):
    if not condition:
        raise Failure(text)


class Machine:
    """A QEMU under test: its process, console and monitor, and which connection to the console it is."""
    def __init__(self, world, p, console, monitor, number):
        self.world, self.p, self.console, self.monitor, self.number = world, p, console, monitor, number

    def first_tick(self, timeout=60):
        """The number of the first tick of this QEMU. A guest that booted anew is a failure."""
        mark = self.console.wait_connection(self.number, self.p, timeout)
        found = self.console.wait(r'^GMEM-GUEST (TICK (\d+)|READY)', mark, timeout, self.p)[1]
        expect(found[2], f'the guest booted anew: {found[0]}')
        return int(found[2])

    def save(self, image, *options, timeout=120):
        lab = self.world.lab
        status, out, err, _ = lab.run('save', [lab.gmem, 'save', '--qmp', self.monitor, *options, image], timeout)
        expect(status == 0, f'gmem save: status {status}{lab.tail("save")}')
        return out + err

    def power_off(self):
        """Has the guest turn itself off: QEMU ends, and with it what started it, with status 0."""
        self.console.send('off')
        status = self.world.lab.wait_end(self.p, 30)
        expect(status == 0, f'{self.p.name} ended with status {status}{self.world.lab.tail(self.p.name)}')

    def complete(self, timeout=120):
        self.world.lab.wait_for('table of gmem restore', lambda: 'complete after' in self.world.lab.log(self.p.name), timeout, self.p)

    def qemu(self):
        """The QEMU behind p, which may be gmem restore."""
        for pid in [self.p.pid] + vm.children(self.p.pid):
            try:
                if 'qemu-system' in os.readlink(f'/proc/{pid}/exe'):
                    return pid
            except OSError:
                pass
        raise Failure(f'no QEMU behind {self.p.name}')

    def memory(self):
        """(bytes in place, size) of the guest's memory file, as the kernel counts them."""
        pid = self.qemu()
        for fd in os.listdir(f'/proc/{pid}/fd'):
            try:
                if '/memfd:gmem-ram' in os.readlink(f'/proc/{pid}/fd/{fd}'):
                    st = os.stat(f'/proc/{pid}/fd/{fd}')
                    return st.st_blocks * 512, st.st_size
            except OSError:
                pass
        raise Failure('QEMU has no guest memory file open')


class World:
    def __init__(self, lab, guest):
        self.lab, self.guest = lab, guest
        self.count = 0
        self.state = {}         # what a case leaves for the next ones

    def path(self, name):
        return self.lab.path(name)

    def fresh(self, name):
        self.count += 1
        return f'{name}{self.count}'

    def boot(self, append=SMALL, memory='512M', disk=None, extra=(), by_hand=None):
        """Boots a guest and waits until it is ready: under gmem run, or with the RAM options by_hand."""
        name = self.fresh('boot')
        console = Console(self.lab, name + '-console')
        monitor = self.lab.socket(name + '.qmp')
        argv = vm.qemu_command(self.lab, console, self.guest, append, memory, disk, extra)
        if by_hand is None:
            argv = [self.lab.gmem, 'run', '--qmp', monitor, '--'] + argv
        else:
            argv += list(by_hand) + vm.monitor(monitor)
        p = self.lab.start(name, argv)
        console.wait(r'^GMEM-GUEST READY', 0, 240, p)
        console.wait_ticks(2, 0, p=p)
        return Machine(self, p, console, monitor, 1)

    def restore(self, machine, image, *options, command=()):
        """Restores an image of a machine that has ended."""
        name = self.fresh('restore')
        sock = self.lab.socket(name + '.keeper')
        argv = [self.lab.gmem, 'restore', '--socket', sock, *options, image]
        if command:
            argv += ['--', *command]
        number = len(machine.console.starts) + 1
        restored = Machine(self, self.lab.start(name, argv), machine.console, machine.monitor, number)
        restored.keeper = sock
        return restored

    def refuse(self, args, pattern, status=1, folder=None, timeout=60, **kwargs):
        """gmem must fail with that status and one line that matches, and leave its folder as it was."""
        folder = folder or self.lab.dir
        name = self.fresh('refuse')
        before = listing(folder)
        got, out, err, _ = self.lab.run(name, [self.lab.gmem, *args], timeout, **kwargs)
        shown = f'{" ".join(args)}: '
        expect(got == status, f'{shown}status {got}, not {status}{self.lab.tail(name)}')
        lines = [line for line in err.replace('\r', '\n').splitlines() if line.strip()]
        expect(len(lines) == 1 and lines[0].startswith('gmem: '), f'{shown}not one line "gmem: ...":{self.lab.tail(name)}')
        expect(re.search(pattern, lines[0]), f'{shown}does not match /{pattern}/: {lines[0]}')
        expect(not out.strip(), f'{shown}printed on standard output: {out!r}')
        after = {k: v for k, v in listing(folder).items() if not k.startswith(name)}
        expect(after == before, f'{shown}changed its folder: {set(after.items()) ^ set(before.items())}')
        return lines[0]


def listing(folder):
    """Files that hold images: names, sizes and times. Logs go on growing."""
    return {e.name: (e.stat().st_size, e.stat().st_mtime_ns) for e in os.scandir(folder)
            if not e.name.endswith(('.log', '.out', '.err', '.sock', '.qmp', '.keeper', '.raw'))}


def run(name, cases):
    wanted = sys.argv[1:]
    cases = [case for case in cases if not wanted or case.__name__ in wanted]
    print(f'TAP version 13\n1..{len(cases)}', flush=True)
    failed = 0
    try:
        guest = vm.prepare_guest(BUILD)
        skip = None
    except Skip as reason:
        guest, skip = None, reason
    except Failure as failure:
        print(f'Bail out! {failure}')
        return 1
    with Lab(BUILD, name) as lab:
        world = World(lab, guest)
        for number, case in enumerate(cases, 1):
            failed += not run_case(world, number, case, skip)
            lab.end_processes()
            print(end='', flush=True)
        if failed:
            print(f'# logs: {lab.dir}')
            raise SystemExit(1)
    return 0


def comment(text):
    for line in str(text).splitlines():
        print(f'# {line}')


def run_case(world, number, case, skip):
    began = time.monotonic()
    try:
        if skip:
            raise skip
        case(world)
    except Skip as reason:
        if vm.required(reason.tag):
            comment(f'required by GMEM_REQUIRE: {reason.tag}: {reason}')
            print(f'not ok {number} - {case.__name__}')
            return False
        print(f'ok {number} - {case.__name__} # SKIP {reason.tag}: {reason}')
        return True
    except Exception as failure:  # pylint: disable=broad-except
        comment(failure if isinstance(failure, Failure) else traceback.format_exc())
        print(f'not ok {number} - {case.__name__}')
        return False
    comment(f'{time.monotonic() - began:.1f} s')
    print(f'ok {number} - {case.__name__}')
    return True


def gmem_can(ability):
    """Skips unless `gmem info` says that this machine can."""
    answer = subprocess.run([os.path.join(BUILD, 'gmem'), 'info', '--json'], stdout=subprocess.PIPE, check=True, text=True)
    for item in json.loads(answer.stdout)['abilities']:
        if item['name'] == ability and not item['yes']:
            raise Skip('uffd', f'{item["what"]}: {item["lacks"]}', 'see gmem info')
