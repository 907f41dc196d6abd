#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""gmem launch: an emulated launch equals the measurement of the files, and its memory is private."""
import base64
import hashlib
import os
import re
import shutil
import struct
import subprocess

from lib import OVMF, Skip, distribution, equal, expect, firmware, gmem, good, line, main, misused, refused, run_examples, snp, write

SNP = ('snp', '--vcpus=2', '--vcpu-type=EPYC')
POLICY = 0x30000


def launched(*args, **kwargs):
    """The values of the lines at the end."""
    out = good('launch', *args, **kwargs)
    expect(out.startswith('emulated: '), out)
    lines = dict(re.findall(r'^(launched|digest|measured|inside|outside) +(.*)$', out, re.M))
    equal(sorted(lines), ['digest', 'inside', 'launched', 'measured', 'outside'], out)
    expect(lines['measured'].startswith('the same'), out)
    expect('SIGBUS' in lines['outside'] and '-EACCES' in lines['outside'], out)
    return lines


def an_snp_launch_has_the_digest_of_its_files(folder):
    for pages, hashes in ((16, False), (300, True)):
        image = firmware(pages=pages, hashes=hashes)
        fw = write(folder, 'fw.fd', image)
        for vcpus in (1, 3):
            lines = launched('snp', f'--vcpus={vcpus}', '--vcpu-type=EPYC', '--ovmf', fw)
            equal(lines['digest'], snp(image, vcpus))
            n = pages + 12 + hashes
            expect(lines['launched'].startswith(f'{n} pages, {vcpus} vCPU') and f'{n} private pages' in lines['inside'], str(lines))


def a_tdx_launch_has_the_digest_of_its_files(folder):
    for pages in (16, 300):
        fw = write(folder, 'fw.fd', firmware(pages=pages))
        for two in ((), ('--two-pass',)):
            lines = launched('tdx', *two, '--ovmf', fw)
            equal(lines['digest'], line('measure', 'tdx', *two, '--ovmf', fw))
            expect(lines['launched'].startswith(f'{pages + 6} pages, 1 vCPU'), str(lines))
    equal(launched('tdx', '--vcpus=4', '--ovmf', fw)['digest'], line('measure', 'tdx', '--ovmf', fw))


def a_section_begins_anywhere_in_its_file(folder):
    base = (1 << 32) - 0x4000
    fw = write(folder, 'fw.fd', firmware(tdvf=((0x10, 0x4000, base, 0x4000, 0, 1), (0, 0, 0x809000, 0x2000, 2, 0))))
    equal(launched('tdx', '--ovmf', fw)['digest'], line('measure', 'tdx', '--ovmf', fw))


def every_kind_of_guest_is_launched(folder):
    fw, kernel = write(folder, 'fw.fd', firmware(hashes=True)), write(folder, 'kernel', os.urandom(30000))
    svsm = ('--mode=snp:svsm', '--svsm', write(folder, 'svsm.bin', firmware(pages=7, svsm=0x1234)), '--vars-size=8192')
    for args in (('--vmm-type=ec2',), ('--vmm-type=ec2', '--ec2-rdx=0'), ('--vmm-type=gce',), ('--vmm-type=krun',), ('--guest-features=0x21',),
                 ('--kernel', kernel, '--append', 'quiet'), ('--vcpu-type=EPYC-Milan',), svsm):
        equal(launched(*SNP, '--ovmf', fw, *args)['digest'], line('measure', *SNP, '--ovmf', fw, *args), str(args))
    # An SVSM's features are always the same.
    r = gmem('launch', *SNP, '--ovmf', fw, *svsm, '--guest-features=0x21')
    expect(r.status == 0 and line('measure', *SNP, '--ovmf', fw, *svsm) in r.out, str(r))


def the_distributions_firmware_is_launched_by_snp(folder):
    equal(launched('snp', '--vcpus=1', '--vcpu-type=EPYC-v4', '--ovmf', distribution(OVMF))['digest'],
          '11570979c77a0adb515761a702527c8b9e11554e730552621d950988613a3a75c6ff1703f540bd22a9beede8fe7a97e3')


def the_distributions_firmware_is_launched_by_tdx(folder):
    equal(launched('tdx', '--ovmf', distribution(OVMF))['digest'],
          '4c7206f0f483c524f12c366c711e9049030a8d47c471ee5aa9c4999a08de4057fb887fed0744d5631a212967fb231c47')


def another_digest_than_expected_is_a_failure(folder):
    fw = write(folder, 'fw.fd', firmware())
    digest = line('measure', 'tdx', '--ovmf', fw)
    b64 = base64.b64encode(bytes.fromhex(digest)).decode()
    equal(launched('tdx', '--ovmf', fw, '--expect', digest, '--output-format=base64')['digest'], b64)
    refused(f'digest of the launch is {digest}, not what is expected: {"00" * 48}', 'launch', 'tdx', '--ovmf', fw, '--expect', '00' * 48, out=None)


def what_cannot_be_launched_is_refused(folder):
    refused('no such file', 'launch', *SNP, '--ovmf', folder + '/none')
    fw, short = write(folder, 'fw.fd', firmware()), write(folder, 'short', bytes(95))
    refused(f'--id-block: {short}: neither 96 bytes nor their base64', 'launch', *SNP, '--ovmf', fw, '--id-block', short, '--id-auth', short)
    # Bit 17 has to be set in every policy.
    refused('policy 0x10000', 'launch', *SNP, '--ovmf', fw, '--policy', '0x10000')
    misused("'sgx'", 'launch', 'sgx', '--ovmf', fw)


def openssl(*args, data=None):
    p = subprocess.run(['openssl', *args], input=data, capture_output=True)
    expect(p.returncode == 0, f'openssl {args}: {p.stderr.decode()}')
    return p.stdout


def integer(der, at):
    """An INTEGER of DER there as 72 bytes little-endian, and what is behind it."""
    expect(der[at] == 2, 'no INTEGER')
    n = der[at + 1]
    return int.from_bytes(der[at + 2:at + 2 + n], 'big').to_bytes(72, 'little'), at + 2 + n


def signed(folder, block):
    """The ID authentication of a block, by a key of P-384 that is made here."""
    key, data = os.path.join(folder, 'id.pem'), write(folder, 'block', block)
    openssl('ecparam', '-name', 'secp384r1', '-genkey', '-noout', '-out', key)
    point = openssl('ec', '-in', key, '-pubout', '-outform', 'DER')[-96:]
    der = openssl('dgst', '-sha384', '-sign', key, data)
    r, at = integer(der, 2)
    s, _ = integer(der, at)
    auth = bytearray(4096)
    struct.pack_into('<II', auth, 0, 1, 1)
    auth[0x40:0x40 + 144] = r + s
    public = struct.pack('<I', 2) + point[:48][::-1].ljust(72, b'\0') + point[48:][::-1].ljust(72, b'\0')
    auth[0x240:0x240 + len(public)] = public
    return bytes(auth)


def an_id_block_has_to_fit(folder):
    if not shutil.which('openssl'):
        raise Skip('openssl: not installed')
    image = firmware()
    fw = write(folder, 'fw.fd', image)

    def block(digest, policy=POLICY):
        return bytes.fromhex(digest) + b'f' * 16 + b'i' * 16 + struct.pack('<IIQ', 1, 7, policy)

    def launch(block, auth, *args):
        return ('launch', *SNP, '--ovmf', fw, '--id-block', write(folder, 'block.id', block), '--id-auth', write(folder, 'auth.id', auth), *args)

    fitting = block(snp(image, 2))
    auth = signed(folder, fitting)
    good(*launch(fitting, auth))
    good(*launch(base64.b64encode(fitting), base64.encodebytes(auth), '--host-data', hashlib.sha256(b'').hexdigest()))
    good(*launch(block(snp(image, 2), 0xb0000), signed(folder, block(snp(image, 2), 0xb0000)), '--policy=0xb0000'))
    wrong = block('00' * 48)
    err = refused(r'\(0xb\)', *launch(wrong, signed(folder, wrong)))  # BAD_MEASUREMENT
    expect(f'ID block is for the digest {"00" * 48}, the launch has {snp(image, 2)}' in err and 'policy' not in err, err)
    err = refused(r'\(0x7\)', *launch(fitting, auth, '--policy=0xb0000'))  # POLICY_FAILURE
    expect('ID block is for the policy 0x30000, the launch has 0xb0000' in err and 'digest' not in err, err)
    auth = signed(folder, fitting)
    refused(r'\(0xa\)', *launch(fitting, auth[:0x50] + bytes([auth[0x50] ^ 1]) + auth[0x51:]))  # BAD_SIGNATURE
    refused(r'\(0x16\)', *launch(fitting, bytes(4) + auth[4:]))  # INVALID_PARAM: the algorithm


def the_manuals_examples_run(folder):
    if not shutil.which('openssl'):
        raise Skip('openssl: not installed')
    image = firmware()
    block = bytes.fromhex(snp(image, 1)) + bytes(32) + struct.pack('<IIQ', 1, 0, POLICY)
    for name, data in (('OVMF.fd', image), ('id.bin', block), ('auth.bin', signed(folder, block))):
        write(folder, name, data)
    run_examples('gmem-launch.1', folder)


def emulation_is_said(folder):
    fw = write(folder, 'fw.fd', firmware())
    expect('nothing is encrypted' in good('launch', 'tdx', '--ovmf', fw), 'not said')
    expect('nothing is encrypted' in good('launch', '--help'), 'not said')
    equal(gmem('launch').status, 2)


main([
    an_snp_launch_has_the_digest_of_its_files,
    a_tdx_launch_has_the_digest_of_its_files,
    a_section_begins_anywhere_in_its_file,
    every_kind_of_guest_is_launched,
    the_distributions_firmware_is_launched_by_snp,
    the_distributions_firmware_is_launched_by_tdx,
    another_digest_than_expected_is_a_failure,
    what_cannot_be_launched_is_refused,
    an_id_block_has_to_fit,
    the_manuals_examples_run,
    emulation_is_said,
])
