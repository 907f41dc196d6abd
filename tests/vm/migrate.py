#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A running guest moved between two network namespaces, over a wire that is slow, loses packets, or is cut; with either process killed.
The guest checks its own bytes, and counts: no tick is missing and none comes twice."""
import contextlib
import os
import random
import re
import signal
import sys
import time

import lib
import net
import vm
from lib import Failure, expect

APPEND = 'gmem.size=24 gmem.tick=0.05 gmem.churn=1'
PORT = 7700


class Move:
    """One migration: the machine it leaves, and the processes on both sides."""
    def __init__(self, world, wire, machine, identities, port=PORT):
        self.world, self.wire, self.machine, self.port = world, wire, machine, port
        self.source_tls, self.target_tls = identities
        self.keeper = world.lab.socket(world.fresh('move') + '.keeper')
        self.receiver = self.sender = None
        env = dict(os.environ)
        # What each side keeps for the next process must be found by it, and by nobody else.
        env['XDG_RUNTIME_DIR'] = world.lab.sockets
        self.env = env

    def start(self, name, side, *args):
        return self.world.lab.start(self.world.fresh(name), self.wire.inside(side, [self.world.lab.gmem, 'migrate', *args]), env=self.env)

    def receive(self, *options, command=()):
        self.receiver = self.start('receive', 'target', 'receive', '--tls', self.target_tls, '--peer', 'source.test', '--socket', self.keeper,
                                   *options, f'{net.TARGET}:{self.port}', *(['--', *command] if command else []))
        self.said(self.receiver, 'waiting for a guest')
        return self.receiver

    def send(self, *options):
        self.sender = self.start('send', 'source', 'send', '--qmp', self.machine.monitor, '--tls', self.source_tls, *options,
                                 f'{net.TARGET}:{self.port}')
        return self.sender

    def said(self, p, text, timeout=120):
        """Waits until a process has written something that matches. Returns the match."""
        return self.world.lab.wait_for(f'"{text}" of {p.name}', lambda: re.search(text, self.world.lab.log(p.name)), timeout, p)

    def resumed(self):
        self.said(self.receiver, 'resumed after')
        self.said(self.sender, 'resumed on the other machine')

    def reattach(self, where=None, *options):
        self.receiver = self.start('reattach', 'target', 'receive', '--reattach', where or self.keeper, *options)
        return self.receiver

    def resume_file(self):
        return self.said(self.sender, r'gmem migrate send --resume (\S+)')[1]

    def carry_on_sending(self, *options):
        self.sender = self.start('resend', 'source', 'send', '--resume', self.resume_file(), *options)
        return self.sender

    def finish(self, keep=False):
        """The memory becomes complete; both sides say so, and the old machine ends. The guest's bytes are as they were."""
        lab = self.world.lab
        self.said(self.receiver, 'complete after')
        status = lab.wait_end(self.sender, 60)
        expect(status == 0, f'the sender ended with status {status}{lab.tail(self.sender.name)}')
        expect('complete after' in lab.log(self.sender.name), f'the sender does not say that it is complete{lab.tail(self.sender.name)}')
        if not keep:
            expect(lab.wait_end(self.machine.p, 20) == 0, 'the old QEMU did not end in order')
        self.machine.console.check()

    def arrived(self):
        """The guest goes on over there with the tick after its last one here."""
        console = self.machine.console
        mark = console.wait_connection(2, self.receiver)
        first = int(console.wait(r'^GMEM-GUEST (?:TICK (\d+)|READY)', mark, 60, self.receiver)[1][1] or 0)
        last = console.ticks(0, mark)[-1]
        expect(first == last + 1, f'the guest goes on with tick {first}; its last one before was {last}')

    def power_off(self):
        self.machine.console.send('off')
        status = self.world.lab.wait_end(self.receiver, 60)
        expect(status == 0, f'the receiver ended with status {status}{self.world.lab.tail(self.receiver.name)}')


def no_gap(console):
    ticks = console.ticks()
    for a, b in zip(ticks, ticks[1:]):
        expect(b == a + 1, f'tick {b} after {a}')


def away(monitor):
    """Both machines have one file system here: the monitor that the command line names is to be made anew by the target."""
    os.rename(monitor, monitor + '.source')
    return monitor + '.source'


@contextlib.contextmanager
def scene(world, append=APPEND, direct=False, **kwargs):
    """A booted guest, two machines and their identities."""
    lib.gmem_can('restore-qemu')
    with net.Net(world.lab, direct) as wire:
        if 'pki' not in world.state:
            world.state['pki'] = net.make_identities(world.lab)
        machine = world.boot(append, memory='256M', **kwargs)
        machine.monitor = away(machine.monitor)
        yield Move(world, wire, machine, world.state['pki'])
        world.lab.end_processes()


def whole(move):
    """What every migration ends with."""
    move.finish()
    move.machine.console.wait_ticks(3)
    no_gap(move.machine.console)
    move.power_off()


def over_a_quiet_wire(world):
    with scene(world) as move:
        move.receive()
        move.send()
        move.arrived()
        move.machine.console.check()
        whole(move)


def over_a_slow_wire_that_loses_packets(world):
    with scene(world) as move:
        move.wire.tell('delay 5')
        move.wire.tell('loss 1')
        move.receive()
        move.send()
        # At once, while most of its memory is over there.
        check_while(move, lambda: None, False)
        move.arrived()
        whole(move)


def check_while(move, event, meanwhile=True):
    """The guest checks its memory, most of which is not here yet; `event` happens meanwhile."""
    console = move.machine.console
    move.resumed()
    console.wait_connection(2, move.receiver)
    mark = console.mark()
    console.send('check')
    event()
    expect(not meanwhile or 'complete after' not in move.world.lab.log(move.receiver.name), 'the memory was complete before that')
    answer = console.wait(r'^GMEM-GUEST CHECK (\w+)', mark, 240)[1]
    expect(answer[1] == 'ok', f'the guest read wrong bytes: {answer[0]}')


def slow(move):
    """So slow that the memory is still on its way when something happens."""
    move.wire.tell('delay 10')
    move.wire.tell('rate 5')


def a_cut_wire_pauses_and_goes_on(world):
    with scene(world) as move:
        slow(move)
        move.receive()
        move.send()

        def cut():
            for how in (lambda on: move.wire.tell(f'cut {on}'), lambda on: move.wire.link('down' if on else 'up')):
                how(1)
                time.sleep(7)  # longer than either side takes to notice
                how(0)
                time.sleep(0.3)
        check_while(move, cut)
        move.said(move.receiver, 'the link is lost')
        move.said(move.receiver, 'the link is there again')
        move.arrived()
        whole(move)


def the_receiver_killed(world):
    with scene(world) as move:
        slow(move)
        move.receive()
        move.send()

        def kill():
            for _ in range(2):
                time.sleep(0.2)
                move.receiver.send_signal(signal.SIGKILL)
                move.receiver.wait()
                time.sleep(0.2)
                move.reattach()
        check_while(move, kill)
        move.arrived()
        move.finish()
        no_gap(move.machine.console)


def the_sender_killed(world):
    with scene(world) as move:
        slow(move)
        move.receive()
        move.send()

        def kill():
            for _ in range(2):
                time.sleep(0.2)
                move.sender.send_signal(signal.SIGKILL)
                move.sender.wait()
                time.sleep(0.2)
                expect(move.machine.p.poll() is None, 'the old QEMU ended with its sender')
                move.carry_on_sending()
        check_while(move, kill)
        move.arrived()
        whole(move)


def both_killed(world):
    with scene(world) as move:
        slow(move)
        move.receive()
        move.send()

        def kill():
            time.sleep(0.3)
            for p in (move.sender, move.receiver):
                p.send_signal(signal.SIGKILL)
                p.wait()
            move.carry_on_sending()
            move.reattach()
        check_while(move, kill)
        move.arrived()
        move.finish()
        no_gap(move.machine.console)


def goes_on_here(move, pattern):
    """The migration failed: said, and the guest has hardly noticed."""
    lab, console = move.world.lab, move.machine.console
    status = lab.wait_end(move.sender, 90)
    expect(status == 1, f'the sender ended with status {status}{lab.tail(move.sender.name)}')
    expect(re.search(pattern, lab.log(move.sender.name)), f'it does not say /{pattern}/{lab.tail(move.sender.name)}')
    console.wait_ticks(3)
    console.check()
    no_gap(console)
    left = [name for name in os.listdir(os.path.join(lab.sockets, 'gmem')) if name.endswith('.sending')] \
        if os.path.isdir(os.path.join(lab.sockets, 'gmem')) else []
    expect(not left, f'the sender left {left}')


def failures_before_the_guest_is_handed_over(world):
    with scene(world) as move:
        # Nobody listens.
        move.send()
        goes_on_here(move, r'gmem: ')
        # Certificates of somebody else, on either side.
        folder = world.lab.path('strangers')
        os.makedirs(folder)
        ca = net.make_ca(folder, 'other')
        stranger = net.make_identity(folder, ca, 'source.test', net.SOURCE)
        right, move.source_tls = move.source_tls, stranger
        move.receive()
        move.send()
        goes_on_here(move, r'certificate')
        expect(move.receiver.poll() is None, 'a stranger ended the receiver')
        move.source_tls = right
        # The right CA, but not who was asked for.
        move.send('--peer', 'another.test')
        goes_on_here(move, r'another\.test|certificate')
        # The receiver has no such disk, no such QEMU: it says so.
        move.world.lab.wait_for('receiver', lambda: move.receiver.poll() is None, 5)
        move.receiver.kill()
        move.receiver.wait()
        move.receive(command=['/nonexistent/qemu', '-m', '256M'])
        move.send()
        goes_on_here(move, r'receiver|QEMU|nonexistent')
        expect(world.lab.wait_end(move.receiver, 30) == 1, 'the receiver did not end with status 1')
        # And now it goes.
        move.receive()
        move.send()
        move.arrived()
        whole(move)


def killed_while_the_guest_is_handed_over(world):
    """Either process, at random instants from the moment the receiver is ready: the guest runs on one side, and on one only."""
    seed = int(os.environ.get('GMEM_SEED', random.randrange(1 << 32)))
    rng = random.Random(seed)
    print(f'# GMEM_SEED={seed}')
    here = 0
    for _ in range(3):
        with scene(world) as move:
            move.wire.tell('delay 25')
            for _ in range(4):
                move.receive()
                move.send()
                move.said(move.sender, 'is ready after')
                time.sleep(rng.uniform(0.1, 0.8))
                if not one_killed(world, move, rng.choice(['sender', 'receiver'])):
                    break
                here += 1
                no_gap(move.machine.console)
            no_gap(move.machine.console)
            world.lab.end_processes()
    print(f'# {here} times it went on here, and then over there')


def one_killed(world, move, who):
    """True: the guest goes on here; false: it moved, and all came after it."""
    victim, path = getattr(move, who), None
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    if who == 'sender':
        path = os.path.join(world.lab.sockets, 'gmem', f'{move.machine.p.pid}.sending')
        if os.path.exists(path):
            move.sender = move.start('resend', 'source', 'send', '--resume', path)
    elif re.search('resumed after|if this process dies', world.lab.log(move.sender.name)) or not gives_up(world, move):
        # It has GO, or will not hear of it but from us.
        move.reattach()
    log = lambda: world.lab.log(move.sender.name)  # noqa: E731
    world.lab.wait_for('a decision of the sender', lambda: not path and who == 'sender' or move.sender.poll() is not None
                       or 'complete after' in world.lab.log(move.receiver.name) or not os.path.exists(path or '/'), 90)
    if re.search('complete after', world.lab.log(move.receiver.name)):
        move.machine.console.wait_connection(2)
        move.finish()
        return False
    world.lab.wait_for('end of the sender', lambda: move.sender.poll() is not None, 60)
    expect('goes on here' in log() or who == 'sender' and not os.path.exists(path), f'nobody has the guest{world.lab.tail(move.sender.name)}')
    move.machine.console.wait_ticks(3)
    move.machine.console.check()
    move.receiver.kill()
    move.receiver.wait()
    end_strays(world, move)
    return True


def gives_up(world, move):
    """Whether the sender, whose receiver was killed, takes the guest back: it does, unless it has given it away."""
    world.lab.wait_for('what the sender makes of it', lambda: move.sender.poll() is not None or
                       'if this process dies' in world.lab.log(move.sender.name), 60)
    return move.sender.poll() is not None


def end_strays(world, move):
    """QEMUs and keepers that a killed receiver left."""
    keep = {move.machine.p.pid, move.machine.qemu()}
    for pid in vm.children(os.getpid()):
        if pid not in keep and pid != (move.wire.relay.pid if move.wire.relay else 0):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def with_a_disk(world):
    """The disk is the target's when the guest is, and not before."""
    disk = world.path('disk.raw')
    with open(disk, 'wb') as f:
        f.truncate(1 << 20)
    with scene(world, 'gmem.size=4 gmem.tick=0.1 gmem.disk=1', disk=disk) as move:
        move.machine.console.check(disk=True)
        move.receive()
        move.send()
        move.arrived()
        move.machine.console.wait_ticks(3)
        move.machine.console.check(disk=True)
        move.finish()


# Real mode: 256 words in 128 pages; each pass looks whether every word is as the pass before left it, counts it, and says a letter. A
# word that is not says X, for ever.
CHECKER = bytes.fromhex('fa31dbb800108ed831ff891d81c7000875f80500103d009075ec'
                        'b800108ed831ff391d751dff0581c7000875f40500103d009075e8'
                        '4388d8240f0441baf803eeebd8b058baf803eeebf8')


def letters(path):
    with open(path, encoding='ascii') as f:
        return f.read()


def after_precopy(world):
    """A guest that writes and checks all the time, its memory sent three times while it does."""
    if not os.access('/dev/kvm', os.R_OK | os.W_OK):
        raise vm.Skip('kvm', '/dev/kvm cannot be opened', 'join the group kvm')
    lib.gmem_can('restore-qemu')
    lab = world.lab
    boot, serial, monitor = lab.path('boot.img'), lab.path('serial'), lab.socket('precopy.qmp')
    with open(boot, 'wb') as f:
        f.write(CHECKER.ljust(510, b'\0') + b'\x55\xaa')
        f.truncate(1474560)
    with net.Net(lab) as wire:
        wire.tell('delay 2')
        if 'pki' not in world.state:
            world.state['pki'] = net.make_identities(lab)
        p = lab.start('precopy', [lab.gmem, 'run', '--qmp', monitor, '--', vm.QEMU, '-nodefaults', '-display', 'none', '-accel', 'kvm', '-m',
                                  '64M', '-drive', f'file={boot},format=raw,if=floppy,readonly=on', '-chardev',
                                  f'file,id=c,path={serial},append=on', '-serial', 'chardev:c'])
        try:
            lab.wait_for('letters of the guest', lambda: os.path.exists(serial) and len(letters(serial)) > 20, 60, p)
        except Failure:
            # With or without gmem.
            raise vm.Skip('kvm', 'this KVM does not boot a floppy within 60 s', 'use a machine that is less busy') from None
        move = Move(world, wire, lib.Machine(world, p, None, away(monitor), 1), world.state['pki'])
        move.receive()
        move.send('--precopy', '3')
        move.resumed()
        move.said(move.sender, 'pre-copy took')
        before = len(letters(serial))
        lab.wait_for('more letters', lambda: len(letters(serial)) > before + 100, 240, move.receiver)
        move.said(move.receiver, 'complete after')
        expect(lab.wait_end(move.sender, 60) == 0, f'the sender failed{lab.tail(move.sender.name)}')
        text = letters(serial)
        for i in range(1, len(text)):
            expect(text[i] == chr(ord('A') + (ord(text[i - 1]) - ord('A') + 1) % 16), f'letter {i} is {text[i]} after {text[i - 1]}')
        print(f'# {len(text)} passes of the guest, none with a wrong word')
        lab.end_processes()


def precopy_refused(world):
    with scene(world) as move:
        move.receive()
        move.send('--precopy', '1')
        goes_on_here(move, 'without pre-copy')


CASES = [over_a_quiet_wire, over_a_slow_wire_that_loses_packets, a_cut_wire_pauses_and_goes_on, the_receiver_killed, the_sender_killed,
         both_killed, failures_before_the_guest_is_handed_over, killed_while_the_guest_is_handed_over, with_a_disk, after_precopy,
         precopy_refused]

if __name__ == '__main__':
    sys.exit(lib.run('vm-migrate', CASES))
