# SPDX-License-Identifier: MIT
"""Tests of single commands, run as a user runs them. A test program is a list of functions with one argument, an empty folder; it prints TAP.
A case fails by raising Failure (or anything else), skips by raising Skip.

    tests/tools/measure_options.py [CASE...]      all cases, or some, with the command of the build folder GMEM_BUILD
"""
import hashlib
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import traceback
import uuid

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, '..', 'reference'))
import launch as reference  # noqa: E402

BUILD = os.path.abspath(os.environ.get('GMEM_BUILD', os.path.join(HERE, '..', '..', 'build')))
SOURCE = os.path.abspath(os.path.join(HERE, '..', '..'))
GMEM = os.path.join(BUILD, 'gmem')
PAGE = 4096
SLOW = int(os.environ.get('GMEM_TEST_TIMEOUT_FACTOR', '1'))

OVMF = '/usr/share/ovmf/OVMF.fd'
# Of Debian's ovmf 2022.11-6+deb12u2, which the known digests are of.
OVMF_SHA256 = {
    OVMF: '7b456907dd0786d415999e801a1ac4637b8ed4d7cf5378cfc6edbe5e574dd773',
    '/usr/share/OVMF/OVMF_CODE.fd': 'd9b568def24088c92f34b5479e0ed7e44d0a4d4cea8a0f5716719180bba48106',
    '/usr/share/OVMF/OVMF_CODE_4M.fd': 'b157d97b1f69729514feb7f201d2cbe4957f23ab77920e361fe9f822ba49ca4c',
    '/usr/share/OVMF/OVMF_CODE.secboot.fd': '6ee6a5db7a1443d17594f1e00e3cf2a2250bc1c95c8f9101bc49c9977ce11a68',
}
SEV, TDX = 'dc886566-984a-4798-a75e-5585a7bf67cc', 'e47a6535-984a-4798-865e-4685a7bf8ec2'
RESET, HASHES = '00f771de-1a7e-4fcb-890e-68c77e2fb44e', '7255371f-3a3b-4b04-927b-1da6efa8d454'
SVSM = 'a789a612-0597-4c4b-a49f-cbb1fe9d1ddd'
HASH_TABLE_GPA = 0x810c00


class Failure(Exception):
    pass


class Skip(Exception):
    pass


def expect(condition, text):
    if not condition:
        raise Failure(text)


def equal(got, want, text=''):
    expect(got == want, f'{text}{": " if text else ""}{got!r}, not {want!r}')


class Ran:
    def __init__(self, args, p):
        self.args, self.status = args, p.returncode
        self.out, self.err = p.stdout.decode('utf-8', 'replace'), p.stderr.decode('utf-8', 'replace')

    def __str__(self):
        return f'gmem {" ".join(map(str, self.args))}: status {self.status}\n{self.out}{self.err}'


def gmem(*args, cwd=None, stdin=None, env=None):
    """Runs the command, whatever comes of it."""
    p = subprocess.run([GMEM, *args], cwd=cwd, stdin=stdin or subprocess.DEVNULL, capture_output=True, timeout=120 * SLOW,
                       env=dict(os.environ, **(env or {})))
    return Ran(args, p)


def good(*args, **kwargs):
    """What it prints; it has to succeed, and say nothing on standard error."""
    r = gmem(*args, **kwargs)
    expect(r.status == 0 and not r.err, str(r))
    return r.out


def line(*args, **kwargs):
    """The one line it prints."""
    out = good(*args, **kwargs)
    expect(out.count('\n') == 1 and out.endswith('\n'), f'{args}: not one line: {out!r}')
    return out[:-1]


def document(*args, **kwargs):
    return json.loads(good(*args, **kwargs))


def refused(pattern, *args, status=1, out='', **kwargs):
    """It has to fail with that status, a line that matches, and nothing on standard output."""
    r = gmem(*args, **kwargs)
    expect(r.status == status, str(r))
    expect(re.search(pattern, r.err), f'does not match /{pattern}/: {r}')
    expect(r.err.startswith('gmem'), str(r))
    if out is not None:
        equal(r.out, out, str(r))
    return r.err


def misused(pattern, *args, **kwargs):
    err = refused(pattern, *args, status=2, **kwargs)
    expect("Try 'gmem " in err, err)


def distribution(path):
    """A file of the distribution's, of the version that digests are known of."""
    try:
        with open(path, 'rb') as f:
            found = hashlib.sha256(f.read()).hexdigest()
    except OSError as e:
        raise Skip(f"ovmf: {path}: {e.strerror}; Debian's package ovmf has it")
    if found != OVMF_SHA256[path]:
        raise Skip(f'ovmf: {path} is of another version than Debian 12 has')
    return path


def write(folder, name, data):
    path = os.path.join(folder, name)
    with open(path, 'wb') as f:
        f.write(data)
    return path


def entry(guid, data):
    return data + struct.pack('<H16s', len(data) + 18, uuid.UUID(guid).bytes_le)


SECTIONS = ((0x800000, 0x9000, 1), (0x80d000, 0x1000, 2), (0x80e000, 0x1000, 3), (0x80f000, 0x1000, 4))


def firmware(pages=16, sections=SECTIONS, tdvf=None, hashes=False, reset=0x80b004, seed=0, svsm=None):
    """An image that says how it is launched. `hashes`: with a place for hashes of a kernel. `svsm`: it is one, entered at this offset."""
    image = bytearray(b''.join(struct.pack('<I', (seed * 40503 + i * 2654435761) & 0xffffffff) * 1024 for i in range(pages)))
    end, entries = len(image), b''
    if hashes:
        sections = (*sections, (HASH_TABLE_GPA & ~0xfff, 0x1000, 0x10))
        entries += entry(HASHES, struct.pack('<II', HASH_TABLE_GPA, 0x400))
    if sections is not None:
        data = struct.pack('<4sIII', b'ASEV', 16 + 12 * len(sections), 1, len(sections))
        data += b''.join(struct.pack('<III', *s) for s in sections)
        image[end - 0x800:end - 0x800 + len(data)] = data
        entries += entry(SEV, struct.pack('<I', 0x800))
    if svsm is not None:
        entries += entry(SVSM, struct.pack('<I', svsm))
    if tdvf is None:
        tdvf = ((0x1000, end - 0x1000, (1 << 32) - end + 0x1000, end - 0x1000, 0, 1), (0, 0x1000, (1 << 32) - end, 0x1000, 1, 0),
                (0, 0, 0x810000, 0x4000, 3, 0), (0, 0, 0x809000, 0x2000, 2, 0))
    data = struct.pack('<4sIII', b'TDVF', 16 + 32 * len(tdvf), 1, len(tdvf))
    data += b''.join(struct.pack('<IIQQII', *s) for s in tdvf)
    image[end - 0x600:end - 0x600 + len(data)] = data
    entries += entry(TDX, struct.pack('<I', 0x600)) + entry(RESET, struct.pack('<I', reset))
    entries += struct.pack('<H16s', len(entries) + 18, uuid.UUID('96b582de-1fb2-45f7-baea-a366c55a082d').bytes_le)
    image[end - 32 - len(entries):end - 32] = entries
    return bytes(image)


def hash_page(kernel, initrd, append):
    """The page of kernel hashes as QEMU makes it."""
    def sha256(data):
        return hashlib.sha256(data).digest()

    table = b''
    for guid, digest in (('97d02dd8-bd20-4c94-aa78-e7714d36ab2a', sha256(append + b'\0')),
                         ('44baf731-3a2f-4bd7-9af1-41e29169781d', sha256(initrd)),
                         ('4de79437-abd2-427f-b835-d5b172d2045b', sha256(kernel))):
        table += uuid.UUID(guid).bytes_le + struct.pack('<H', 50) + digest
    table = uuid.UUID('9438d606-4f22-4cc9-b479-a793d411fd21').bytes_le + struct.pack('<H', 168) + table
    page = bytearray(PAGE)
    page[HASH_TABLE_GPA & 0xfff:(HASH_TABLE_GPA & 0xfff) + len(table)] = table
    return bytes(page)


def snp(image, vcpus=1, signature=0x800f12, features=1, hashes=None, ld=None):
    """The launch digest by the reference: a guest of QEMU's."""
    gpa = (1 << 32) - len(image)
    if ld is None:
        ld = bytes(48)
        for o in range(0, len(image), PAGE):
            ld = reference.snp_page(ld, reference.NORMAL, gpa + o, image[o:o + PAGE])
    kinds = {1: reference.ZERO, 2: reference.SECRETS, 3: reference.CPUID, 4: reference.ZERO, 0x10: reference.ZERO}
    for gpa, length, kind in reference.metadata(image, SEV, b'ASEV', '<III'):
        for page in range(gpa, gpa + length, PAGE):
            if kind == 0x10 and hashes is not None:
                ld = reference.snp_page(ld, reference.NORMAL, page, hashes)
            else:
                ld = reference.snp_page(ld, kinds[kind], page)
    eip = struct.unpack('<I', reference.table(image)[RESET])[0]
    for i in range(vcpus):
        ld = reference.snp_page(ld, reference.VMSA, reference.VMSA_GPA, reference.vmsa(eip if i else 0xfffffff0, signature, features))
    return ld.hex()


def svsm_vmsa(eip, signature):
    """What each vCPU of an SVSM begins with: flat and in protected mode."""
    page = bytearray(reference.vmsa(0xfffffff0, signature, 1))
    for offset, selector, attributes, limit in ((0x00, 0x10, 0xc93, 0xffffffff), (0x10, 0x08, 0xc9b, 0xffffffff), (0x20, 0x10, 0xc93, 0xffffffff),
                                                (0x30, 0x10, 0xc93, 0xffffffff), (0x40, 0x10, 0xc93, 0xffffffff)):
        struct.pack_into('<HHIQ', page, offset, selector, attributes, limit, 0)
    struct.pack_into('<Q', page, 0x158, 0x11)
    struct.pack_into('<Q', page, 0x178, eip)
    return bytes(page)


def run_examples(page, folder):
    """What a manual page has under EXAMPLES, by a shell, in that folder."""
    with open(os.path.join(SOURCE, 'man', page + '.scd')) as f:
        part = re.search(r'^# EXAMPLES\n(.*?)(?=^# )', f.read(), re.S | re.M)
    blocks = re.findall(r'^```\n(.*?)^```', part.group(1), re.S | re.M)
    expect(blocks, f'{page} has no examples')
    p = subprocess.run(['bash', '-exc', ''.join(blocks)], cwd=folder, env=dict(os.environ, PATH=BUILD + ':' + os.environ['PATH']), stdin=subprocess.DEVNULL,
                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300 * SLOW)
    expect(p.returncode == 0, f'{page}: status {p.returncode}\n{p.stdout}')


def main(cases):
    chosen = [c for c in cases if c.__name__ in sys.argv[1:]] if sys.argv[1:] else cases
    required, failures = os.environ.get('GMEM_REQUIRE', '').split(','), 0
    print(f'1..{len(chosen)}')
    for number, case in enumerate(chosen, 1):
        name, why = case.__name__.replace('_', ' '), None
        with tempfile.TemporaryDirectory() as folder:
            try:
                case(folder)
            except Skip as skip:
                if 'all' not in required and str(skip).split(':')[0] not in required:
                    print(f'ok {number} - {name} # SKIP {skip}', flush=True)
                    continue
                why = f'required by GMEM_REQUIRE: {skip}'
            except Failure as failure:
                why = str(failure)
            except Exception:
                why = traceback.format_exc()
        for text in (why or '').rstrip().splitlines():
            print('#   ' + text)
        print(f'{"not " if why else ""}ok {number} - {name}', flush=True)
        failures += bool(why)
    sys.exit(failures > 0)
