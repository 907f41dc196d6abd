#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""gmem measure: what is wrong with a file is said, with its path and what to do."""
import os
import struct
import subprocess
import uuid

from lib import (GMEM, RESET, SEV, SLOW, TDX, Skip, distribution, entry, equal, expect, firmware, gmem, hash_page, line, main, refused,
                 snp, write)

SNP = ('snp', '--vcpus=1', '--vcpu-type=EPYC')


def a_firmware_that_is_none_is_refused(folder):
    missing, empty, odd = folder + '/missing.fd', write(folder, 'empty.fd', b''), write(folder, 'odd.fd', firmware() + b'x')
    for kind in (SNP, ('tdx',)):
        refused(f'firmware: {missing}: no such file; .*package ovmf', 'measure', *kind, '--ovmf', missing)
        refused(f'firmware: {empty}: is empty', 'measure', *kind, '--ovmf', empty)
        refused(f'firmware: {folder}: a folder', 'measure', *kind, '--ovmf', folder)
        refused(f'firmware: {odd}: 65537 bytes are no whole number of pages of 4096', 'measure', *kind, '--ovmf', odd)
        qcow2 = write(folder, 'fw.qcow2', b'QFI\xfb' + bytes(4092))
        refused(f'firmware: {qcow2}: a qcow2 image: qemu-img convert -O raw', 'measure', *kind, '--ovmf', qcow2)
        huge = folder + '/huge.fd'
        with open(huge, 'wb') as f:
            f.truncate(1 << 32)
        refused(f'firmware: {huge}: 4.00 GiB or more', 'measure', *kind, '--ovmf', huge)
        with open(huge, 'wb') as f:
            f.truncate((1 << 32) - 1)
        refused(f'firmware: {huge}: 4294967295 bytes are no whole number of pages', 'measure', *kind, '--ovmf', huge)


def other_files_too(folder):
    fw = write(folder, 'fw.fd', firmware(hashes=True))
    kernel, missing = write(folder, 'kernel', b'kernel'), folder + '/missing'
    refused(f'kernel: {missing}: no such file\n', 'measure', *SNP, '--ovmf', fw, '--kernel', missing)
    refused(f'initrd: {missing}: no such file\n', 'measure', *SNP, '--ovmf', fw, '--kernel', kernel, '--initrd', missing)
    refused(f'kernel: {folder}: a folder', 'measure', *SNP, '--ovmf', fw, '--kernel', folder)
    svsm = ('measure', '--mode=snp:svsm', '--vcpus=1', '--vcpu-type=EPYC', '--ovmf', fw)
    refused(f'svsm: {missing}: no such file', *svsm, '--svsm', missing, '--vars-size=4096')
    refused(f'variables: {missing}: no such file', *svsm, '--svsm', fw, '--vars-file', missing)
    refused(f'variables: {kernel}: a file of whole pages', *svsm, '--svsm', fw, '--vars-file', kernel)
    refused(f'--against: {missing}: no such file', 'measure', *SNP, '--ovmf', fw, '--against', missing)


def a_file_that_may_not_be_read_is_named(folder):
    if os.geteuid() == 0 and subprocess.run(['setpriv', '--version'], capture_output=True).returncode:
        raise Skip('user: root may read everything, and there is no setpriv')
    fw = write(folder, 'fw.fd', firmware())
    os.chmod(folder, 0o755)
    os.chmod(fw, 0)
    argv = [GMEM, 'measure', *SNP, '--ovmf', fw]
    if os.geteuid() == 0:
        argv = ['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups', *argv]
    p = subprocess.run(argv, capture_output=True, text=True)
    if 'setpriv' in p.stderr:
        raise Skip(f'user: {p.stderr.strip()}')
    equal(p.returncode, 1, p.stderr)
    expect(f'firmware: {fw}: not allowed to be read' in p.stderr, p.stderr)


def an_empty_kernel_is_measured_and_noted(folder):
    image = firmware(hashes=True)
    fw = write(folder, 'fw.fd', image)
    r = gmem('measure', *SNP, '--ovmf', fw, '--kernel', '/dev/null', '--initrd', '/dev/null', '--append', 'x')
    equal((r.status, r.out), (0, snp(image, hashes=hash_page(b'', b'', b'x')) + '\n'))
    expect('kernel: /dev/null is empty' in r.err and 'initrd: /dev/null is empty' in r.err, r.err)


def a_pipe_is_as_good_as_a_file(folder):
    image = firmware(pages=600)
    fw = write(folder, 'fw.fd', image)
    want = line('measure', 'tdx', '--ovmf', fw)
    p = subprocess.run([GMEM, 'measure', 'tdx', '--ovmf', '/dev/stdin'], input=image, capture_output=True, timeout=60 * SLOW)
    equal((p.returncode, p.stdout.decode()), (0, want + '\n'), p.stderr.decode())


def a_firmware_without_metadata_names_the_guid(folder):
    path = distribution('/usr/share/OVMF/OVMF_CODE_4M.fd')
    refused(f'{path}.*{SEV}', 'measure', *SNP, '--ovmf', path)
    refused(f'{path}.*{TDX}', 'measure', 'tdx', '--ovmf', path)


def half_a_firmware_is_no_tdx_image(folder):
    path = distribution('/usr/share/OVMF/OVMF_CODE.fd')
    refused(f'{path}.*code alone .* variable store', 'measure', 'tdx', '--ovmf', path)
    line('measure', *SNP, '--ovmf', path)


def broken_metadata_is_refused(folder):
    good = firmware()
    at = len(good) - 0x800

    for offset, data, why in ((at, b'XSEV', 'ASEV'), (at + 8, struct.pack('<I', 2), 'version'), (at + 16, struct.pack('<I', 0x800001), 'whole pages'),
                              (at + 4, struct.pack('<I', 5), '5 bytes'), (at + 12, struct.pack('<I', 0xffffffff), '4294967295 sections'),
                              (at + 24, struct.pack('<I', 99), 'type'), (len(good) - 50, bytes(2), 'GUID table'), (len(good) - 34, b'x', 'GUID table')):
        fw = write(folder, 'bad.fd', good[:offset] + data + good[offset + len(data):])
        refused(f'{fw}.*{why}', 'measure', *SNP, '--ovmf', fw)
    refused('GUID table', 'measure', *SNP, '--ovmf', write(folder, 'zero.fd', bytes(4096)))


def what_to_take_instead_is_said(folder):
    zero, fw, kernel = write(folder, 'zero.fd', bytes(4096)), write(folder, 'fw.fd', firmware()), write(folder, 'kernel', b'kernel')
    refused('\ngmem: it has to be firmware built for SEV-SNP guests; .*OVMF.fd', 'measure', *SNP, '--ovmf', zero)
    refused('\ngmem: it has to be firmware built for TDX guests; .*OVMF.fd', 'measure', 'tdx', '--ovmf', zero)
    refused('\ngmem: .*OVMF.amdsev.fd', 'measure', *SNP, '--ovmf', fw, '--kernel', kernel)


def no_reset_block_and_one_vcpu(folder):
    """Where the others begin matters if there are others."""
    image = bytearray(firmware())
    old = entry(RESET, struct.pack('<I', 0x80b004))
    at = bytes(image).index(old)
    image[at + 6:at + len(old)] = uuid.uuid4().bytes_le
    fw = write(folder, 'fw.fd', bytes(image))
    refused(f'{fw}.*{RESET}', 'measure', 'snp', '--vcpus=2', '--vcpu-type=EPYC', '--ovmf', fw)


main([
    a_firmware_that_is_none_is_refused,
    other_files_too,
    a_file_that_may_not_be_read_is_named,
    an_empty_kernel_is_measured_and_noted,
    a_pipe_is_as_good_as_a_file,
    a_firmware_without_metadata_names_the_guid,
    half_a_firmware_is_no_tdx_image,
    broken_metadata_is_refused,
    what_to_take_instead_is_said,
    no_reset_block_and_one_vcpu,
])
