#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""gmem serve: its options, its keeper, what it prints, its status, and that it is upgraded and taken over."""
import contextlib
import os
import re
import signal
import socket
import subprocess
import time

from lib import GMEM, SLOW, Failure, equal, expect, gmem, good, main

LIMIT = 30 * SLOW


def until(what, text):
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        if what():
            return
        time.sleep(0.01)
    raise Failure(text() if callable(text) else text)


class Server:
    """`gmem serve` in a folder, with what it says in a file."""

    def __init__(self, folder, *args):
        self.folder, self.log = folder, os.path.join(folder, 'log')
        self.state, self.metrics = os.path.join(folder, 'state'), os.path.join(folder, 'state', 'metrics')
        raw = os.path.join(folder, 'mem')
        if not os.path.exists(raw):
            with open(raw, 'wb') as f:
                f.write(os.urandom(1 << 20))
        env = {k: v for k, v in os.environ.items() if k not in ('NOTIFY_SOCKET', 'LISTEN_FDS', 'LISTEN_PID')}
        with open(self.log, 'ab') as log:
            self.p = subprocess.Popen([GMEM, 'serve', '--state-dir', self.state, '--source', f'base=raw:{raw}', *args],
                                      stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)

    def said(self):
        with open(self.log, encoding='utf-8', errors='replace') as f:
            return f.read()

    def answers(self):
        return gmem('serve', 'status', '--state-dir', self.state).status == 0

    def ready(self):
        until(lambda: self.p.poll() is not None or self.answers(), self.said)
        expect(self.p.poll() is None, self.said())
        return self

    def generation(self):
        r = gmem('serve', 'status', '--state-dir', self.state)
        m = re.match(r'server number (\d+) ', r.out)
        return int(m.group(1)) if m else 0

    def child(self):
        with open(f'/proc/{self.p.pid}/task/{self.p.pid}/children', encoding='ascii') as f:
            return [int(x) for x in f.read().split()]

    def stop(self):
        if self.p.poll() is None:
            self.p.terminate()
        try:
            return self.p.wait(LIMIT)
        except subprocess.TimeoutExpired:
            self.p.kill()
            self.p.wait()
            raise Failure(f'it does not end:\n{self.said()}') from None


@contextlib.contextmanager
def server(folder, *args):
    s = Server(folder, *args)
    try:
        yield s.ready()
    finally:
        s.stop()


def wrong_arguments_are_named(_):
    for args, text in (
            ((), 'no --source'),
            (('--source', 'x'), '--source x'),
            (('--source', '=raw:x'), '--source =raw:x'),
            (('--source', 'a=zero:', '--policy', 'hope'), '--policy hope'),
            (('--source', 'a=zero:', '--patience', 'x'), '--patience x'),
            (('--source', 'a=zero:', '--patience', '-1'), '--patience -1'),
            (('--source', 'a=zero:', '--max-memory', '12Q'), '--max-memory 12Q'),
            (('--source', 'a=zero:', '--max-memory', '99999999999T'), '--max-memory 99999999999T'),
            (('--source', 'a=zero:', '--max-vms', '-3'), '--max-vms -3'),
            (('--source', 'a=zero:', '--resolvers', '65'), '--resolvers 65'),
            (('--source', 'a=zero:', '--user', 'no such user'), '--user no such user'),
            (('--source', 'a=zero:', 'word'), "'word'"),
            (('--nonsense',), '--nonsense'),
            (('status', '--nonsense'), '--nonsense')):
        r = gmem('serve', *args, env={'XDG_RUNTIME_DIR': '/nowhere'})
        expect(r.status == 2 and text in r.err and 'gmem serve --help' in r.err, str(r))
    expect('--working-set' in good('serve', '--help'), 'help')
    expect('upgrade' in good('serve', 'status', '--help'), 'help')


def what_cannot_be_served_is_said_at_once(folder):
    for args, text in (
            (('--source', 'a=raw:/nowhere/mem'), 'No such file'),
            (('--source', 'a=what:ever'), 'what:ever'),
            (('--source', 'a=zero:', '--source', 'a=zero:'), 'there is one of that name'),
            (('--source', 'a=zero:', '--default', 'b'), "no source 'b'"),
            (('--source', 'a=zero:', '--listen', f'{folder}/x=b'), "no source 'b'"),
            (('--source', 'a=zero:', '--working-set', f'b={folder}/x'), "no source 'b'")):
        r = gmem('serve', '--no-keeper', '--state-dir', f'{folder}/state', *args)
        expect(r.status == 1 and text in r.err, str(r))


def a_server_without_clients(folder):
    with server(folder) as s:
        out = good('serve', 'status', '--state-dir', s.state)
        expect(out.startswith('server number 1 ') and 'a keeper holds' in out and 'no machines' in out, out)
        equal(out, good('serve', 'status', '--metrics', s.metrics))
        for name in ('socket', 'metrics'):
            equal(os.stat(os.path.join(s.state, name)).st_mode & 0o777, 0o600)
        # Nobody was a client yet, the server itself least of all.
        expect('refused' not in s.said(), s.said())
        equal(s.stop(), 0)
    r = gmem('serve', 'status', '--state-dir', s.state)
    expect(r.status == 1 and 'no page server answers there' in r.err, str(r))


def a_killed_server_is_started_again(folder):
    with server(folder) as s:
        for n in range(2, 4):
            os.kill(s.child()[0], signal.SIGKILL)
            until(lambda: s.generation() == n, s.said)
        expect('signal 9' in s.said(), s.said())


def an_upgrade(folder):
    with server(folder) as s:
        r = gmem('serve', 'upgrade', '--state-dir', s.state)
        expect(r.status == 0 and str(s.p.pid) in r.err, str(r))
        until(lambda: s.generation() == 2, s.said)
        expect(s.p.poll() is None, s.said())


def one_directory_one_server(folder):
    with server(folder) as s:
        r = gmem('serve', '--state-dir', s.state, '--source', 'a=zero:')
        expect(r.status == 1 and str(s.p.pid) in r.err, str(r))
        equal(s.generation(), 1)


def a_server_without_a_keeper_is_taken_over(folder):
    with server(folder, '--no-keeper', '--no-fill') as s:
        expect('nobody would hold' in good('serve', 'status', '--state-dir', s.state), s.said())
        with server(folder, '--no-keeper', '--take-over') as t:
            until(lambda: s.p.poll() is not None, 'the old one lives')
            until(lambda: t.generation() == 2, t.said)


def lines_are_bounded(folder):
    with server(folder) as s:
        for _ in range(200):
            c = socket.socket(socket.AF_UNIX)
            c.connect(os.path.join(s.state, 'socket'))
            c.send(b'x')
            c.close()
        time.sleep(1.1)
        c = socket.socket(socket.AF_UNIX)
        c.connect(os.path.join(s.state, 'socket'))
        c.close()
        until(lambda: 'were left out' in s.said(), s.said)
        expect(s.said().count('refused') < 150, s.said())


main([
    wrong_arguments_are_named,
    what_cannot_be_served_is_said_at_once,
    a_server_without_clients,
    a_killed_server_is_started_again,
    an_upgrade,
    one_directory_one_server,
    a_server_without_a_keeper_is_taken_over,
    lines_are_bounded,
])
