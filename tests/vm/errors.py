#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Bad input: one line that says what and what to do, exit status not 0, nothing half-written under the real name."""
import ctypes
import json
import os
import random
import re
import resource
import shutil
import socket
import struct
import sys
import threading

import lib
from lib import expect

SYS_USERFAULTFD = 323           # x86-64
USERFAULTFD_IOC_NEW = 0xaa00


def base(world):
    """One saved machine, for all cases."""
    if 'image' not in world.state:
        machine = world.boot()
        image = world.path('good.gmem')
        machine.save(image, '--quit')
        world.lab.wait_end(machine.p, 20)
        world.state.update(image=image, machine=machine)
    return world.state['image']


def copy(world, name='bad.gmem'):
    path = world.path(name)
    shutil.copyfile(base(world), path)
    return path


# ---- images

def wrong_file(world):
    for name, data, pattern in (('empty.gmem', b'', 'no.such'), ('text.gmem', b'not an image\n' * 1000, 'not.*image'),
                                ('zero.gmem', bytes(8192), 'not.*image')):
        path = world.path(name)
        with open(path, 'wb') as f:
            f.write(data)
        world.refuse(['restore', path], pattern if data else r'empty\.gmem: ')
    world.refuse(['restore', world.path('missing.gmem')], 'missing.gmem.*No such file')
    world.refuse(['restore', world.lab.dir], 'irectory|regular file')


def truncated(world):
    size = os.path.getsize(base(world))
    for length in (1, 4095, 4096, size // 2, size - 4096, size - 1):
        path = copy(world)
        os.truncate(path, length)
        world.refuse(['restore', path], r'bad\.gmem.*(truncated|not.*image|too short|bytes)')


def future_version(world):
    path = copy(world)
    with open(path, 'r+b') as f:
        f.seek(8)
        f.write(struct.pack('<I', 2))
    world.refuse(['restore', path], r'bad\.gmem.*newer gmem \(format 2\)')


def flip(path, off, bit):
    with open(path, 'r+b') as f:
        f.seek(off)
        byte = f.read(1)[0]
        f.seek(off)
        f.write(bytes([byte ^ 1 << bit]))


def places(path):
    """Name, offset and length of every part of an image that is read before the guest runs: gmem-image(5)."""
    with open(path, 'rb') as f:
        data = f.read()
    regions, nregions, region_len = struct.unpack_from('<QII', data, 64)
    sections, nsections, section_len = struct.unpack_from('<QII', data, 88)
    yield 'header', 0, 4096
    yield 'region table', regions, nregions * region_len
    yield 'section table', sections, nsections * section_len
    for i in range(nsections):
        name = data[sections + i * section_len:][:64].split(b'\0')[0].decode()
        yield f'section {name}', *struct.unpack_from('<QQ', data, sections + i * section_len + 72)


def flipped_bits(world):
    seed = int(os.environ.get('GMEM_SEED', random.randrange(1 << 32)))
    print(f'# GMEM_SEED={seed}')
    rng = random.Random(seed)
    parts = list(places(base(world)))
    expect({'header', 'section device-state', 'section qemu'} <= {p[0] for p in parts}, f'parts of the image: {parts}')
    for name, off, length in parts:
        for at in (0, length - 1, rng.randrange(length), rng.randrange(length)):
            path = copy(world)
            flip(path, off + at, rng.randrange(8))
            print(f'# {name}, byte {at}')
            world.refuse(['restore', path], r'bad\.gmem')


def damaged_chunk(world):
    """Found only when its page is wanted: the page is lost, by name, and the guest never reads wrong bytes in its place."""
    lib.gmem_can('restore-qemu')
    path = copy(world)
    regions = next(off for name, off, _ in places(path) if name == 'region table')
    # Chunks lie between header and tables; most of them are the guest's random file, whose every byte is checked.
    seed = int(os.environ.get('GMEM_SEED', random.randrange(1 << 32)))
    print(f'# GMEM_SEED={seed}')
    flip(path, random.Random(seed).randrange(4096, regions * 9 // 10), 3)
    status, out, err, _ = world.lab.run('verify', [world.lab.gmem, 'verify', path])
    expect(status == 1 and re.search(r'bad\.gmem.*chunk', out + err), f'gmem verify: status {status}: {out}{err}')
    restored = world.restore(world.state['machine'], path)
    log = lambda: world.lab.log(restored.p.name)  # noqa: E731
    world.lab.wait_for('report of the lost page', lambda: re.search(r'lost.*bad\.gmem.*chunk', log()), 60)
    world.lab.wait_for('end of the restore, or of QEMU', lambda: 'pages lost' in log() or restored.p.poll() is not None, 60)


def wrong_machine(world):
    image = base(world)
    machine = world.state['machine']
    command = lib.vm.qemu_command(world.lab, machine.console, world.guest, extra=['-machine', 'q35'])
    world.refuse(['restore', image, '--', *command], r'q35.*pc-i440fx|pc-i440fx.*q35')
    world.refuse(['restore', image, '--', 'qemu-that-is-not-there'], r'qemu-that-is-not-there')


# ---- places to write to

def no_place(world):
    machine = world.boot()
    for path, pattern in ((world.path('no/such/folder/vm.gmem'), 'No such file'), ('/proc/vm.gmem', '/proc'),
                          (world.lab.dir, 'not a regular file')):
        world.refuse(['save', '--qmp', machine.monitor, '--quit', path], pattern)
    machine.console.wait_ticks(3)
    machine.console.check()
    too_large(world, machine)
    full_disk(world, machine)


def too_large(world, machine):
    """A limit on the size of a file stands for every disk that is too small. An older image of that name stays."""
    folder = world.path('limited')
    os.mkdir(folder)
    path = os.path.join(folder, 'vm.gmem')
    with open(path, 'wb') as f:
        f.write(b'older')
    world.refuse(['save', '--qmp', machine.monitor, '--quit', path], r'File too large', folder=folder, restore_signals=False,
                 preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)))
    machine.console.wait_ticks(3)


def full_disk(world, machine):
    folder = world.path('small')
    os.mkdir(folder)
    mount = ['unshare', '-m', 'sh', '-c', f'mount -t tmpfs -o size=4m tmpfs {folder} && "$@"; code=$?; ls -A {folder} >&2; exit $code', 'sh']
    if lib.subprocess.run(['unshare', '-m', 'true'], stderr=lib.subprocess.DEVNULL, check=False).returncode:
        print('# not root: a disk that is really full was not tried')
        return
    status, _, err, _ = world.lab.run('full', mount + [world.lab.gmem, 'save', '--qmp', machine.monitor, '--quit',
                                                       os.path.join(folder, 'vm.gmem')])
    expect(status == 1, f'saving to a full disk: status {status}')
    lines = err.replace('\r', '\n').strip().splitlines()
    expect(len(lines) == 1 and 'No space left' in lines[0], f'saving to a full disk: {err}')
    machine.console.wait_ticks(3)
    machine.console.check()


# ---- monitors

class FakeMonitor(threading.Thread):
    """A QMP server that answers so many commands as QEMU might, and then closes the connection."""
    GREETING = {'QMP': {'version': {'qemu': {'micro': 0, 'minor': 2, 'major': 7}, 'package': ''}, 'capabilities': []}}

    def __init__(self, path, answers, greeting=True):
        super().__init__(daemon=True)
        self.answers, self.greeting = answers, greeting
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(1)
        self.start()

    def run(self):
        conn, _ = self.listener.accept()
        file = conn.makefile('rw')
        if self.greeting:
            file.write(json.dumps(self.GREETING) + '\r\n')
        else:
            file.write('SSH-2.0-OpenSSH_9.2\r\n')
        file.flush()
        for _ in range(self.answers):
            if not file.readline():
                break
            file.write('{"return": {}}\r\n')
            file.flush()
        else:
            # The next command is read and never answered.
            if self.greeting:
                file.readline()
        file.close()
        conn.close()
        self.listener.close()


def dead_monitor(world):
    image = world.path('never.gmem')
    world.refuse(['save', '--qmp', world.lab.socket('nobody.qmp'), image], r'nobody\.qmp.*no such socket')
    path = world.lab.socket('abandoned.qmp')
    abandoned = socket.socket(socket.AF_UNIX)
    abandoned.bind(path)
    world.refuse(['save', '--qmp', path, image], r'abandoned\.qmp')
    plain = world.path('plain.raw')
    with open(plain, 'w', encoding='ascii'):
        pass
    world.refuse(['save', '--qmp', plain, image], r'plain\.raw')
    path = world.lab.socket('other.qmp')
    FakeMonitor(path, 0, greeting=False)
    world.refuse(['save', '--qmp', path, image], r'QMP|QEMU|monitor')


def monitor_closes_midway(world):
    for answers in range(4):
        path = world.lab.socket(f'closing{answers}.qmp')
        FakeMonitor(path, answers)
        world.refuse(['save', '--qmp', path, '--pid', str(os.getpid()), world.path('never.gmem')], '.')


def qemu_dies_during_save(world):
    """Killed at a random moment of the save: either it was complete, or nothing is there."""
    image = world.path('killed.gmem')
    for delay in (0.02, 0.1, random.uniform(0.02, 0.5)):
        machine = world.boot()
        timer = threading.Timer(delay, machine.p.kill)
        timer.start()
        status, _, err, _ = world.lab.run('dying', [world.lab.gmem, 'save', '--qmp', machine.monitor, image])
        timer.join()
        machine.p.wait()
        there = os.path.exists(image)
        print(f'# killed after {delay:.3f} s: status {status}')
        expect(there == (status == 0), f'QEMU killed after {delay:.3f} s: status {status}, image {"" if there else "not "}there: {err}')
        left = [name for name in os.listdir(world.lab.dir) if name.startswith(('.killed', 'killed')) and name != 'killed.gmem']
        expect(not left, f'left behind: {left}')
        if there:
            os.unlink(image)


# ---- permissions

class Filter(ctypes.Structure):
    _fields_ = [('code', ctypes.c_ushort), ('jt', ctypes.c_ubyte), ('jf', ctypes.c_ubyte), ('k', ctypes.c_uint)]


class Program(ctypes.Structure):
    _fields_ = [('len', ctypes.c_ushort), ('filter', ctypes.POINTER(Filter))]


def without_userfaultfd():
    """In the child: what a container's seccomp profile does."""
    load, equal, give = 0x20, 0x15, 0x06
    eperm, allow = 0x00050001, 0x7fff0000
    code = (Filter * 7)(Filter(load, 0, 0, 0), Filter(equal, 4, 0, SYS_USERFAULTFD), Filter(equal, 0, 2, 16),
                        Filter(load, 0, 0, 24), Filter(equal, 1, 0, USERFAULTFD_IOC_NEW), Filter(give, 0, 0, allow),
                        Filter(give, 0, 0, eperm))
    libc = ctypes.CDLL(None)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(Program(len(code), code)), 0, 0):
        os._exit(99)


def no_userfaultfd(world):
    """Refused with what to do; --eager does without."""
    image = base(world)
    line = world.refuse(['restore', image], r'userfaultfd', preexec_fn=without_userfaultfd)
    expect('--eager' in line or 'gmem info' in line, f'it does not say what to do: {line}')
    machine = world.state['machine']
    number = len(machine.console.starts) + 1
    p = world.lab.start('eager', [world.lab.gmem, 'restore', '--eager', image], preexec_fn=without_userfaultfd)
    restored = lib.Machine(world, p, machine.console, machine.monitor, number)
    restored.first_tick()
    restored.console.check()


def wrong_usage(world):
    image = base(world)
    for args in (['restore'], ['restore', image, image], ['restore', '--nonsense', image], ['restore', image, '--'],
                 ['restore', '--eager', '--no-fill', image], ['save'], ['save', image], ['save', '--qmp'],
                 ['run'], ['run', '--'], ['nonsense']):
        name = world.fresh('usage')
        status, _, err, _ = world.lab.run(name, [world.lab.gmem, *args], 20)
        expect(status == 2 and re.match('gmem[ a-z]*: ', err), f'{args}: status {status}, {err}')
    world.refuse(['run', '--', 'qemu-that-is-not-there', '-m', '64M'], 'qemu-that-is-not-there')
    world.refuse(['restore', '--reattach', world.lab.socket('nobody.keeper')], r'nobody\.keeper')


if __name__ == '__main__':
    sys.exit(lib.run('vm-errors', [wrong_file, truncated, future_version, flipped_bits, damaged_chunk, wrong_machine, wrong_usage, dead_monitor,
                                   monitor_closes_midway, no_userfaultfd, no_place, qemu_dies_during_save]))
