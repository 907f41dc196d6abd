# SPDX-License-Identifier: MIT
"""Two machines, as network namespaces: `source` and `target`, joined by a wire. Certificates for them. Enters: a Lab. Everything goes
with the `with` block. Raises Skip where this user may not make namespaces."""
import os
import shutil
import subprocess
import sys

import vm
from vm import Failure, Skip

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE, TARGET = '10.77.0.1', '10.77.0.2'


def call(*argv, check=True):
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if check and done.returncode:
        raise Failure(f'{" ".join(argv)}: {done.stdout.strip()}')
    return done


class Net:
    """direct: one veth pair; else two pairs and a relay between them, which can be told to delay and to lose (relay.py)."""
    def __init__(self, lab, direct=False):
        if os.geteuid():
            raise Skip('root', 'network namespaces need root', 'sudo make test')
        if not shutil.which('ip') or not shutil.which('nsenter'):
            raise Skip('net', 'no ip or no nsenter', 'sudo apt-get install iproute2 util-linux')
        self.lab, self.direct = lab, direct
        tag = f'gm{os.getpid() % 100000}'
        self.spaces = {'source': tag + 's', 'target': tag + 't', 'wire': tag + 'w'}
        self.relay = None

    def __enter__(self):
        try:
            self.make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def make(self):
        for name in self.spaces.values():
            if call('ip', 'netns', 'add', name, check=False).returncode:
                raise Skip('net', 'network namespaces cannot be made here', 'sudo make test, on a kernel with CONFIG_NET_NS')
        s, t, w = self.spaces['source'], self.spaces['target'], self.spaces['wire']
        if self.direct:
            call('ip', 'link', 'add', 'eth0', 'netns', s, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', t)
        else:
            call('ip', 'link', 'add', 'eth0', 'netns', s, 'type', 'veth', 'peer', 'name', 'left', 'netns', w)
            call('ip', 'link', 'add', 'eth0', 'netns', t, 'type', 'veth', 'peer', 'name', 'right', 'netns', w)
            for end in ('left', 'right'):
                call('ip', '-n', w, 'link', 'set', 'dev', end, 'mtu', '9000', 'up')
        for space, address in ((s, SOURCE), (t, TARGET)):
            call('ip', '-n', space, 'addr', 'add', address + '/24', 'dev', 'eth0')
            call('ip', '-n', space, 'link', 'set', 'lo', 'up')
            call('ip', '-n', space, 'link', 'set', 'eth0', 'mtu', '9000', 'up')
        if not self.direct:
            self.relay = subprocess.Popen(self.inside('wire', [sys.executable, os.path.join(HERE, 'relay.py'), 'left', 'right']),
                                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self.answer()

    def answer(self):
        if self.relay.stdout.readline() != 'ok\n':
            raise Failure('the relay has ended')

    def tell(self, line):
        self.relay.stdin.write(line + '\n')
        self.relay.stdin.flush()
        self.answer()

    def inside(self, side, argv):
        return ['nsenter', f'--net=/run/netns/{self.spaces[side]}', *argv]

    def link(self, state, side='source'):
        """Takes the interface up or down: connections are not closed by it."""
        call('ip', '-n', self.spaces[side], 'link', 'set', 'eth0', state)

    def __exit__(self, *_):
        if self.relay:
            self.relay.kill()
            self.relay.wait()
        for name in self.spaces.values():
            call('ip', 'netns', 'del', name, check=False)


def openssl(*args):
    call('openssl', *args)


def make_ca(folder, name):
    key, cert = os.path.join(folder, name + '.key'), os.path.join(folder, name + '.pem')
    openssl('req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2', '-subj', f'/CN={name}',
            '-keyout', key, '-out', cert, '-addext', 'basicConstraints=critical,CA:TRUE', '-addext', 'keyUsage=critical,keyCertSign')
    return key, cert


def make_identity(folder, ca, name, address):
    """A folder as --tls takes it, for a machine that is called `name` and has this address."""
    if not shutil.which('openssl'):
        raise Skip('openssl', 'no openssl', 'sudo apt-get install openssl')
    where = os.path.join(folder, name)
    os.makedirs(where)
    key, cert, request = (os.path.join(where, f) for f in ('key.pem', 'cert.pem', 'request'))
    openssl('req', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-subj', f'/CN={name}', '-keyout', key, '-out',
            request)
    extensions = os.path.join(where, 'extensions')
    with open(extensions, 'w', encoding='ascii') as f:
        f.write(f'subjectAltName=DNS:{name},IP:{address}\nextendedKeyUsage=serverAuth,clientAuth\n')
    openssl('x509', '-req', '-in', request, '-CA', ca[1], '-CAkey', ca[0], '-CAcreateserial', '-days', '1', '-extfile', extensions,
            '-out', cert)
    shutil.copy(ca[1], os.path.join(where, 'ca-cert.pem'))
    return where


def make_identities(lab):
    """Folders of --tls for the source and for the target."""
    folder = lab.path('pki')
    os.makedirs(folder, exist_ok=True)
    ca = make_ca(folder, 'ca')
    return make_identity(folder, ca, 'source.test', SOURCE), make_identity(folder, ca, 'target.test', TARGET)


__all__ = ['Net', 'SOURCE', 'TARGET', 'make_ca', 'make_identity', 'make_identities', 'vm']
