# SPDX-License-Identifier: MIT
"""Rounds, statistics, environment, table and JSON file for the measuring programs with a QEMU: what bench.c is for those in C. And a
machine whose memory is full of data without a Linux to boot."""
import json
import mmap
import os
import random
import socket
import statistics
import struct
import subprocess
import sys
import time
import zlib

HERE = os.path.dirname(os.path.abspath(__file__))
sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(HERE, '..', 'demo'))
import vm  # noqa: E402
from vm import Failure  # noqa: E402


def first_line(path, key=''):
    try:
        with open(path) as f:
            for line in f:
                if line.startswith(key):
                    return (line.split(':', 1)[1] if key else line).strip()
    except OSError:
        pass
    return 'unknown'


def environment(gmem):
    def ask(*argv):
        return subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[0]
    uname = os.uname()
    return {'kernel': f'{uname.sysname} {uname.release} {uname.machine}', 'cores': os.cpu_count(),
            'cpu': first_line('/proc/cpuinfo', 'model name'), 'memory': first_line('/proc/meminfo', 'MemTotal'),
            'thp': first_line('/sys/kernel/mm/transparent_hugepage/enabled'),
            'shmem huge pages': first_line('/sys/kernel/mm/transparent_hugepage/shmem_enabled'),
            'load': first_line('/proc/loadavg'),
            'scheduling': 'real-time' if os.sched_getscheduler(0) == os.SCHED_FIFO else 'ordinary',
            'qemu': ask(vm.QEMU, '--version'), 'accelerator': vm.accel(), 'gmem': ask(gmem, '--version')}


def stats(values):
    if len(values) == 1:
        values = values * 2
    q = statistics.quantiles(values, n=4, method='inclusive')
    return {'min': min(values), 'q1': q[0], 'median': q[1], 'q3': q[2], 'max': max(values)}


class Row:
    def __init__(self, name, unit, baseline):
        self.name, self.unit, self.baseline, self.values = name, unit, baseline, []

    def add(self, value):
        self.values.append(value)

    def ratio(self):
        return stats([a / b for a, b in zip(self.values, self.baseline.values)])

    def json(self):
        answer = {'name': self.name, 'unit': self.unit, **stats(self.values), 'values': self.values}
        if self.baseline:
            answer.update(baseline=self.baseline.name, ratio=self.ratio())
        return answer


class Bench:
    def __init__(self, name, build, folder, rounds, **more):
        self.name, self.folder, self.rounds, self.rows, self.targets = name, folder, rounds, [], []
        self.environment = {**environment(os.path.join(build, 'gmem')), **more}
        print(f'{name}: {rounds} rounds')
        for key, value in self.environment.items():
            print(f'  {key:17} {value}')
        sys.stdout.flush()

    def row(self, name, unit='ms', baseline=None):
        self.rows.append(Row(name, unit, baseline))
        return self.rows[-1]

    def target(self, what, measured, limit, sense='at most'):
        met = measured >= limit if sense == 'at least' else measured <= limit
        self.targets.append({'what': what, 'sense': sense, 'limit': limit, 'measured': measured, 'met': met})

    def end(self):
        print('median (min..max), and how many times its baseline, round by round: median (quartiles)')
        group = None
        for row in self.rows:
            head, _, tail = row.name.rpartition(': ')
            if head and head != group:
                print(f'  {head}')
            group = head
            s = stats(row.values)
            spread = f'({s["min"]:.1f}..{s["max"]:.1f})'
            line = f'  {"  " if head else ""}{tail:{56 if head else 58}} {s["median"]:9.1f} {row.unit:5} {spread:20}'
            if row.baseline:
                r = row.ratio()
                line += f' {r["median"]:6.3f}x ({r["q1"]:.3f}..{r["q3"]:.3f})'
            print(line)
        for t in self.targets:
            print(f'  {t["what"]}: {t["sense"]} {t["limit"]:.2f}x: {t["measured"]:.3f}x: {"met" if t["met"] else "missed"}')
        with open(os.path.join(self.folder, self.name + '.json'), 'w') as f:
            json.dump({'bench': self.name, 'rounds': self.rounds, 'environment': self.environment,
                       'rows': [row.json() for row in self.rows], 'targets': self.targets}, f, indent=1)
        print(flush=True)


class Monitor(vm.Qmp):
    """QMP, told of events as they come: no polling stands between an event and its time."""
    def __init__(self, path, p, timeout=60):
        deadline = time.monotonic() + timeout
        while True:
            self.sock = socket.socket(socket.AF_UNIX)
            try:
                self.sock.connect(path)
                break
            except (FileNotFoundError, ConnectionRefusedError):
                self.sock.close()
                if p.poll() is not None or time.monotonic() > deadline:
                    raise Failure(f'no QMP at {path}') from None
                time.sleep(0.0005)
        self.sock.settimeout(timeout)
        self.file = self.sock.makefile('rw')
        json.loads(self.file.readline())
        self.events = []
        # Answered when the machine is built; the greeting comes earlier, from a thread of its own.
        self.run('qmp_capabilities')
        self.ready = time.monotonic()

    def receive(self):
        line = self.file.readline()
        if not line:
            raise Failure('QEMU closed its monitor')
        return json.loads(line)

    def wait_event(self, test):
        """The time at which the first event that passes came in."""
        while True:
            for event in self.events:
                if test(event):
                    self.events.remove(event)
                    return time.monotonic()
            answer = self.receive()
            if 'event' in answer:
                self.events.append(answer)

    def wait_migration(self):
        """By the event, QEMU's `events` capability being on."""
        def ended(event):
            status = event.get('data', {}).get('status')
            if event['event'] == 'MIGRATION' and status in ('failed', 'cancelled'):
                raise Failure(f'QEMU: the migration has {status}')
            return event['event'] == 'MIGRATION' and status == 'completed'
        self.wait_event(ended)


def synthetic_command(memory):
    """A machine with nothing to boot: its firmware runs, finds no disk and waits, and takes some dozen pages of memory."""
    return [vm.QEMU, '-nodefaults', '-display', 'none', '-m', memory, '-smp', '1', '-accel',
            'kvm' if vm.accel() == 'kvm' else 'tcg,thread=multi']


def stop_all(p, monitor):
    try:
        monitor.run('quit')
    except (Failure, OSError, ValueError):
        pass
    monitor.close()
    p.wait(60)


class Memory:
    """The guest memory file of a running QEMU, seen from here."""
    def __init__(self, pid):
        for candidate in [pid] + vm.children(pid):
            for fd in os.listdir(f'/proc/{candidate}/fd'):
                path = f'/proc/{candidate}/fd/{fd}'
                try:
                    if '/memfd:gmem-ram' in os.readlink(path):
                        self.fd = os.open(path, os.O_RDWR)
                        self.size = os.fstat(self.fd).st_size
                        return
                except OSError:
                    pass
        raise Failure('QEMU has no guest memory file')

    def holes(self):
        at = 0
        while at < self.size:
            start = os.lseek(self.fd, at, os.SEEK_HOLE)
            if start >= self.size:
                return
            try:
                end = os.lseek(self.fd, start, os.SEEK_DATA)
            except OSError:
                end = self.size
            yield start, end - start
            at = end

    def fill(self, most):
        """Fills what nobody uses, up to that many bytes: no two pages alike, a half of each compresses well. Returns the ranges."""
        text = b''.join(b'%015d\n' % i for i in range(8192))
        block = bytearray(b''.join(random.Random(at).randbytes(2048) + text[at * 16:][:2048] for at in range(256)))
        filled, done = [], 0
        for start, length in list(self.holes()):
            length = min(length, most - done)
            if not length:
                break
            filled.append((start, length))
            done += length
            for at in range(start, start + length, len(block)):
                n = min(len(block), start + length - at)
                for page in range(0, n, 4096):
                    struct.pack_into('<Q', block, page, at + page + 1)
                os.pwrite(self.fd, memoryview(block)[:n], at)
        return filled

    def digest(self, ranges):
        value = 0
        with mmap.mmap(self.fd, self.size, mmap.MAP_SHARED, mmap.PROT_READ) as m:
            for start, length in ranges:
                for at in range(start, start + length, 1 << 20):
                    value = zlib.crc32(m[at:min(at + (1 << 20), start + length)], value)
        return value

    def close(self):
        os.close(self.fd)


def options(argv, rounds):
    """[-f] [-r ROUNDS] BUILD FOLDER: (build, folder, rounds)."""
    import getopt
    try:
        given, rest = getopt.getopt(argv[1:], 'fr:')
    except getopt.GetoptError as err:
        sys.exit(f'{argv[0]}: {err}')
    for name, value in given:
        if name == '-r':
            rounds = int(value)
        elif name == '-f':
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    if len(rest) != 2 or rounds < 1:
        sys.exit(f'usage: {argv[0]} [-f] [-r ROUNDS] BUILD FOLDER')
    return os.path.abspath(rest[0]), os.path.abspath(rest[1]), rounds


def main(program):
    try:
        program(*options(sys.argv, 7))
    except vm.Skip as skip:
        print(f'SKIPPED: {skip}')
        return 77
    except Failure as failure:
        print(f'FAILED: {failure}')
        return 1
    except KeyboardInterrupt:
        return 130
    return 0
