# SPDX-License-Identifier: MIT
"""A Linux guest in QEMU for the demonstration and the tests: a temporary folder, processes that cannot outlive us, the guest's
serial console and a QMP client. Enters: a build folder. Everything has a time-out; a failure is a Failure with one line of text."""
import ctypes
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
QEMU = 'qemu-system-x86_64'
PR_SET_CHILD_SUBREAPER = 36


class Failure(Exception):
    pass


class Skip(Exception):
    """tag: what GMEM_REQUIRE calls it. command: what to type so that it runs."""
    def __init__(self, tag, reason, command):
        super().__init__(f'{reason}; to run it: {command}')
        self.tag = tag


def required(tag):
    wanted = re.split(r'[,\s]+', os.environ.get('GMEM_REQUIRE', ''))
    return tag in wanted or 'all' in wanted


def accel():
    return os.environ.get('GMEM_ACCEL', 'tcg')


def slow():
    """A factor on every time-out, for slow machines."""
    return float(os.environ.get('GMEM_TEST_TIMEOUT_FACTOR', '1'))


def prepare_guest(build):
    """Returns the folder of the guest's kernel and initramfs. Raises Skip where it cannot be had."""
    if not shutil.which(QEMU):
        raise Skip('linux', f'no {QEMU}', 'sudo apt-get install qemu-system-x86')
    if accel() == 'kvm' and not os.access('/dev/kvm', os.R_OK | os.W_OK):
        raise Skip('kvm', 'GMEM_ACCEL=kvm and /dev/kvm cannot be opened', 'unset GMEM_ACCEL, or join the group kvm')
    run = subprocess.run([os.path.join(HERE, 'guest'), build], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if run.returncode == 77:
        reason, _, command = run.stdout.strip().splitlines()[-1].removeprefix('SKIPPED: ').partition('; to run it: ')
        raise Skip('linux', reason, command)
    if run.returncode:
        raise Failure('demo/guest: ' + ((run.stderr or run.stdout).strip().splitlines() or ['no output'])[-1])
    return os.path.join(build, 'guest')


def children(pid):
    try:
        with open(f'/proc/{pid}/task/{pid}/children') as f:
            return [int(word) for word in f.read().split()]
    except OSError:
        return []


class Lab:
    """A temporary folder below the build folder, and a grip on every process started from it: whatever daemonizes comes back to us
    as our child (subreaper), so that the end of a `with` block is the end of all of them. The folder stays if the block fails."""
    def __init__(self, build, name):
        self.build = os.path.abspath(build)
        self.gmem = os.path.join(self.build, 'gmem')
        self.dir = tempfile.mkdtemp(prefix=f'tmp-{name}-', dir=self.build)
        # The name of a UNIX socket has room for 107 bytes.
        self.sockets = self.dir if len(self.dir) < 80 else tempfile.mkdtemp(prefix='gmem-')
        self.popens = []
        self.consoles = []
        if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
            raise Failure('prctl(PR_SET_CHILD_SUBREAPER): ' + os.strerror(ctypes.get_errno()))
        # A run that is ended from outside must clean up too.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))

    def path(self, name):
        return os.path.join(self.dir, name)

    def socket(self, name):
        return os.path.join(self.sockets, name)

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        self.end_processes()
        for console in self.consoles:
            console.close()
        if self.sockets != self.dir:
            shutil.rmtree(self.sockets, ignore_errors=True)
        if kind in (None, Skip, KeyboardInterrupt):
            shutil.rmtree(self.dir, ignore_errors=True)

    def end_processes(self):
        # Until none is left: what dies may leave orphans, which become ours.
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            alive = children(os.getpid())
            if not alive:
                return
            for pid in alive:
                try:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                except (ProcessLookupError, ChildProcessError):
                    pass

    def start(self, name, argv, **kwargs):
        """Starts a program in the background, its output in NAME.log."""
        with open(self.path(name + '.log'), 'ab') as log:
            p = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.dir, start_new_session=True, **kwargs)
        p.name = name
        p.began = time.monotonic()
        self.popens.append(p)
        return p

    def run(self, name, argv, timeout=120, **kwargs):
        """Runs a program to its end. Returns (status, stdout, stderr, seconds); both are in NAME.log too."""
        began = time.monotonic()
        with open(self.path(name + '.out'), 'w+') as out, open(self.path(name + '.err'), 'w+') as err:
            p = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=self.dir, start_new_session=True, **kwargs)
            try:
                status = p.wait(timeout * slow())
            except subprocess.TimeoutExpired:
                p.kill()
                p.wait()
                status = None
            seconds = time.monotonic() - began
            out.seek(0)
            err.seek(0)
            texts = out.read(), err.read()
        with open(self.path(name + '.log'), 'a') as log:
            log.write('$ ' + ' '.join(argv) + '\n' + texts[0] + texts[1] + f'(exit status {status})\n')
        if status is None:
            raise Failure(f'{" ".join(argv[:2])}: no end within {timeout * slow():.0f} s{self.tail(name)}')
        return status, texts[0], texts[1], seconds

    def log(self, name):
        try:
            with open(self.path(name + '.log'), errors='replace') as f:
                return f.read()
        except OSError:
            return ''

    def tail(self, name, lines=15):
        text = self.log(name).splitlines()[-lines:]
        return ''.join(f'\n    {line}' for line in [f'last lines of {self.path(name + ".log")}:'] + text)

    def wait_end(self, p, timeout):
        try:
            return p.wait(timeout * slow())
        except subprocess.TimeoutExpired:
            raise Failure(f'{p.name} did not end within {timeout * slow():.0f} s{self.tail(p.name)}') from None

    def watch(self, p, **patterns):
        """Notes in p.seen[name] how many seconds after p's start its log first matched a pattern."""
        p.seen = {}

        def look():
            missing = dict(patterns)
            while missing and p.poll() is None and os.path.isdir(self.dir):
                text = self.log(p.name)
                now = time.monotonic() - p.began
                for name in [name for name, pattern in missing.items() if re.search(pattern, text)]:
                    p.seen[name] = now
                    del missing[name]
                time.sleep(0.002)
        threading.Thread(target=look, daemon=True).start()

    def wait_for(self, what, test, timeout, p=None):
        """Polls until test() is true; fails early if process p has ended with a failure."""
        deadline = time.monotonic() + timeout * slow()
        while True:
            answer = test()
            if answer:
                return answer
            if p is not None and p.poll() not in (None, 0):
                raise Failure(f'{p.name} ended with status {p.returncode} before {what}{self.tail(p.name)}')
            if time.monotonic() > deadline:
                raise Failure(f'no {what} within {timeout * slow():.0f} s{self.tail(p.name) if p is not None else ""}')
            time.sleep(0.004)


class Console:
    """The guest's serial console: QEMU connects to us, so that not a byte is lost before we come, and the next QEMU with the same
    command line meets the same listener."""
    def __init__(self, lab, name='console'):
        self.lab, self.name = lab, name
        self.path = lab.socket(name + '.sock')
        self.lines = []         # (monotonic time, text)
        self.starts = []        # index into lines at which each connection begins
        self.conn = None
        self.live, self.waiting = [], []  # connections that talk, and those that have not begun to
        self.changed = threading.Condition()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(4)
        self.closing = False
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()
        lab.consoles.append(self)

    def serve(self):
        """Accepts. A machine that waits for another one's guest connects while that one still talks: it counts from its first word on, or
        when the other has ended."""
        threads = []
        while not self.closing:
            if not select.select([self.listener], [], [], 0.1)[0]:
                continue
            conn, _ = self.listener.accept()
            with self.changed:
                self.waiting.append(conn)
                if not self.live:
                    self.begin(conn)
            threads.append(threading.Thread(target=self.read, args=(conn,), daemon=True))
            threads[-1].start()
        for thread in threads:
            thread.join(2)

    def begin(self, conn):
        if conn in self.waiting:
            self.waiting.remove(conn)
            self.live.append(conn)
            self.conn = conn
            self.starts.append(len(self.lines))

    def read(self, conn):
        pending = b''
        with open(self.lab.path(self.name + '.log'), 'ab', buffering=0) as log:
            log.write(b'(connected)\n')
            while not self.closing:
                if not select.select([conn], [], [], 0.1)[0]:
                    continue
                try:
                    data = conn.recv(65536)
                except OSError:
                    data = b''
                if not data:
                    break
                log.write(data)
                now = time.monotonic()
                *whole, pending = (pending + data).split(b'\n')
                with self.changed:
                    self.begin(conn)
                    self.lines += [(now, line.decode(errors='replace').strip('\r')) for line in whole]
                    self.changed.notify_all()
        with self.changed:
            # One that waited and ended without a word was nobody's guest.
            (self.waiting if conn in self.waiting else self.live).remove(conn)
            if not self.live and self.waiting:
                self.begin(self.waiting[0])
        conn.close()

    def close(self):
        self.closing = True
        self.thread.join(2)
        self.listener.close()

    def mark(self):
        """A place in the console's text: waits begin there."""
        with self.changed:
            return len(self.lines)

    def wait_connection(self, number, p=None, timeout=60):
        """Waits for the number-th QEMU (from 1). Returns the mark at which it connected."""
        self.lab.wait_for(f'connection of QEMU {number} to the console', lambda: len(self.starts) >= number, timeout, p)
        return self.starts[number - 1]

    def send(self, line):
        self.conn.sendall(line.encode() + b'\n')

    def wait(self, pattern, mark=0, timeout=60, p=None):
        """The first line after mark that matches. Returns (time, match)."""
        expression = re.compile(pattern)
        deadline = time.monotonic() + timeout * slow()
        with self.changed:
            while True:
                while mark < len(self.lines):
                    when, line = self.lines[mark]
                    mark += 1
                    found = expression.search(line)
                    if found:
                        return when, found
                if p is not None and p.poll() not in (None, 0):
                    raise Failure(f'{p.name} ended with status {p.returncode}; the guest had not said /{pattern}/'
                                  f'{self.lab.tail(p.name)}')
                if time.monotonic() > deadline:
                    raise Failure(f'the guest did not say /{pattern}/ within {timeout * slow():.0f} s{self.lab.tail(self.name)}')
                self.changed.wait(0.05)

    def wait_ticks(self, count, mark=None, timeout=60, p=None):
        """Waits for count more ticks. Returns the number of the last."""
        mark = self.mark() if mark is None else mark
        first = int(self.wait(r'^GMEM-GUEST TICK (\d+)', mark, timeout, p)[1][1])
        last = first + count - 1
        self.wait(rf'^GMEM-GUEST TICK {last}$', mark, timeout, p)
        return last

    def ticks(self, mark=0, end=None):
        with self.changed:
            found = [re.match(r'GMEM-GUEST TICK (\d+)$', line) for _, line in self.lines[mark:end]]
        return [int(m[1]) for m in found if m]

    def check(self, timeout=120, disk=False):
        """Has the guest check all its bytes; a wrong one is a Failure."""
        mark = self.mark()
        self.send('check')
        answer = self.wait(r'^GMEM-GUEST CHECK (\w+) n=(\d+)', mark, timeout)[1]
        if answer[1] != 'ok':
            raise Failure(f'the guest\'s checksum is wrong: {answer[0]}{self.lab.tail(self.name)}')
        if disk:
            answer = self.wait(r'^GMEM-GUEST DISK (\w+)', mark, timeout)[1]
            if answer[1] != 'ok':
                raise Failure(f'the guest\'s disk is not the one its memory belongs to: {answer[0]}')
        return answer[0]


class Qmp:
    """QEMU's control monitor."""
    def __init__(self, path, timeout=30):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(timeout * slow())
        deadline = time.monotonic() + timeout * slow()
        while True:
            try:
                self.sock.connect(path)
                break
            except (FileNotFoundError, ConnectionRefusedError):
                if time.monotonic() > deadline:
                    raise Failure(f'no QMP at {path}') from None
                time.sleep(0.005)
        self.file = self.sock.makefile('rw')
        self.events = []
        self.receive()
        self.run('qmp_capabilities')

    def receive(self):
        try:
            line = self.file.readline()
        except TimeoutError:
            raise Failure('QMP: no answer') from None
        except OSError as err:
            raise Failure(f'QMP: {err}') from None
        if not line:
            raise Failure('QMP: QEMU closed the connection')
        return json.loads(line)

    def run(self, command, **arguments):
        self.file.write(json.dumps({'execute': command, 'arguments': arguments}) + '\n')
        self.file.flush()
        while True:
            answer = self.receive()
            if 'event' in answer:
                self.events.append(answer)
            elif 'error' in answer:
                raise Failure(f'QMP {command}: {answer["error"]["desc"]}')
            else:
                return answer['return']

    def wait_migration(self, timeout=120):
        deadline = time.monotonic() + timeout * slow()
        while True:
            status = self.run('query-migrate').get('status')
            if status == 'completed':
                return
            if status in ('failed', 'cancelled') or time.monotonic() > deadline:
                raise Failure(f'QMP migrate: {status}')
            time.sleep(0.005)

    def close(self):
        self.file.close()
        self.sock.close()




def qemu_command(lab, console, guest, append='', memory='512M', disk=None, extra=()):
    """A guest's QEMU command line, its RAM left to the caller."""
    argv = [QEMU, '-nodefaults', '-display', 'none', '-no-reboot', '-m', memory, '-smp', '1',
            '-accel', 'kvm' if accel() == 'kvm' else 'tcg,thread=multi',
            '-kernel', os.path.join(guest, 'kernel'), '-initrd', os.path.join(guest, 'initrd'),
            # What costs time when emulated and tells us nothing: page-table isolation and self-tests.
            '-append', f'console=ttyS0 quiet mitigations=off cryptomgr.notests panic=-1 {append}'.strip(),
            '-chardev', f'socket,id=console,path={console.path}', '-serial', 'chardev:console']
    if disk:
        argv += ['-drive', f'file={disk},format=raw,if=virtio']
    return argv + list(extra)


def memfd_ram(memory='512M', name='ram', machine='pc'):
    """QEMU options for shared RAM in a memfd."""
    return ['-object', f'memory-backend-memfd,id={name},size={memory},share=on', '-machine', f'{machine},memory-backend={name}']


def monitor(path):
    return ['-qmp', f'unix:{path},server=on,wait=off']


def qemu_own_save(qmp, path):
    """QEMU's own whole save to a file. Returns seconds; the machine stays stopped."""
    began = time.monotonic()
    qmp.run('stop')
    # Its default is a network's speed.
    qmp.run('migrate-set-parameters', **{'max-bandwidth': 1 << 40})
    qmp.run('migrate', uri=f'exec:cat >{path}')
    qmp.wait_migration()
    return time.monotonic() - began


def qemu_own_restore(lab, argv, qmp_path, path, name='qemu-own'):
    """QEMU's own whole restore. Returns (process, qmp, seconds until the machine ran)."""
    p = lab.start(name, argv + monitor(qmp_path) + ['-S', '-incoming', f'exec:cat {path}'])
    qmp = Qmp(qmp_path)
    lab.wait_for('end of the incoming state', lambda: qmp.run('query-status')['status'] != 'inmigrate', 120, p)
    qmp.run('cont')
    return p, qmp, time.monotonic() - p.began
