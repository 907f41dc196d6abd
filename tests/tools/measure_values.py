#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""gmem measure: digests known from elsewhere, and by the reference; in every format."""
import base64
import hashlib
import os
import subprocess

from lib import (GMEM, OVMF, PAGE, distribution, document, equal, expect, firmware, good, hash_page, line, main, misused, reference,
                 refused, run_examples, snp, svsm_vmsa, write)

# (vCPUs, features): the launch digest of OVMF.fd on QEMU with vCPUs of type EPYC.
KNOWN = {
    (1, 0x1): '11570979c77a0adb515761a702527c8b9e11554e730552621d950988613a3a75c6ff1703f540bd22a9beede8fe7a97e3',
    (1, 0x21): 'c32245cb607f82791b60757bf0b344d9030e5b5a107342e69c09e668ff28aca5af9ca1dc41ce74f5a4e81aeaeb5e7b54',
    (2, 0x1): 'a5b54e62ae971b58274dd24cc6c47b842662617036e7bd67d7326c07ac6363f35399ef933330a5ea160cead90a00603f',
    (2, 0x21): '735869e96909943dd1bd046cf281aec588ae12c2c66ee6844e40e93d423722dbe535fd7dd7cb9a5f45a7adf8d6346c89',
    (4, 0x1): '32ac9d7a17d28f7cd4404a4516d2f00519668c40ada2062351c36767e908eb3f090d66c33ab10f80150e00a4385b6d0f',
    (4, 0x21): '4842cf9f01c38c50535c62e34990ed6c1e8ab4676304545465367358527c359ba164717398516457f8f986cea3e9a221',
    (64, 0x1): '5639a30a8a52d07ccc971c4debceb92f0976f693a06af17035af8802023588cd7f2e80e96229a6c88a4c89d1f4967351',
    (64, 0x21): '07ce08066ff488cdeb60071671d90f001133641cbbc2394ea67a8668fe0b16facaf3ca46ee5abd1d73eb69a506900775',
}
# (zero bytes before it, file): MRTD in a single pass and in two.
KNOWN_TDX = {
    (0, OVMF): ('4c7206f0f483c524f12c366c711e9049030a8d47c471ee5aa9c4999a08de4057fb887fed0744d5631a212967fb231c47',
                'acccbcc870a381adab0d3919d90a7f268ac3b0364771f202ed4bb4e892d045b33db3b32e6924cba830a724eed443f7e1'),
    (0x20000, '/usr/share/OVMF/OVMF_CODE.fd'): (
        '4c7206f0f483c524f12c366c711e9049030a8d47c471ee5aa9c4999a08de4057fb887fed0744d5631a212967fb231c47',
        'acccbcc870a381adab0d3919d90a7f268ac3b0364771f202ed4bb4e892d045b33db3b32e6924cba830a724eed443f7e1'),
    (0x20000, '/usr/share/OVMF/OVMF_CODE.secboot.fd'): (
        'dd2f721cd5f56f4456047dd8c80c22eb5fc0641ae3966ba0e73244c0d51117c87ed0d270efa1f5958453b0f30b2b258d',
        '5d8955577e82488bcde5aaf45df41777a619dda9ab46b28eb4a153e1490229592bd026cf4682993f175e9416630de001'),
}
SNP = ('--vcpus=1', '--vcpu-type=EPYC-v4')


def known_launch_digests_come_out(folder):
    ovmf = distribution(OVMF)
    for (vcpus, features), want in KNOWN.items():
        for spelling in (('snp', '--vcpu-type=EPYC-v4'), ('--mode', 'snp', '--vcpu-sig', '0x800f12'),
                         ('--mode=snp', '--vcpu-family', '23', '--vcpu-model', '1', '--vcpu-stepping', '2')):
            equal(line('measure', *spelling, '--ovmf', ovmf, f'--vcpus={vcpus}', f'--guest-features={features:#x}'), want, str(spelling))
    equal(line('measure', 'snp', '--ovmf', ovmf, '--vcpus=1', '--vcpu-type=EPYC'), KNOWN[1, 1])


def known_mrtds_come_out(folder):
    for (zeros, path), (single, two) in KNOWN_TDX.items():
        with open(distribution(path), 'rb') as f:
            fw = write(folder, 'fw.fd', bytes(zeros) + f.read())
        equal(line('measure', 'tdx', '--ovmf', fw), single, path)
        equal(line('measure', 'tdx', '--firmware', fw, '--two-pass'), two, path)


def digests_are_those_of_the_reference(folder):
    for seed, (pages, vcpus, signature, features, reset) in enumerate((
            (1, 1, 0x800f12, 1, 0x80b004), (16, 3, 0xa00f11, 0x21, 0x80b004), (513, 2, 0xb00f00, 1, 0xffff1230))):
        image = firmware(pages=pages, reset=reset, seed=seed)
        fw = write(folder, 'fw.fd', image)
        equal(line('measure', 'snp', '--ovmf', fw, f'--vcpus={vcpus}', f'--vcpu-sig={signature:#x}', f'--guest-features={features}'),
              snp(image, vcpus, signature, features), f'{pages} pages')
        if pages > 1:
            equal(line('measure', 'tdx', '--ovmf', fw), reference.firmware_tdx(image).hex())
            equal(line('measure', 'tdx', '--ovmf', fw, '--two-pass'), reference.firmware_tdx(image, True).hex())


def a_kernel_is_in_the_digest(folder):
    image = firmware(hashes=True)
    fw = write(folder, 'fw.fd', image)
    # Without one the page is there, of zeros.
    equal(line('measure', 'snp', *SNP, '--ovmf', fw), snp(image))
    kernel, initrd = os.urandom(70001), os.urandom(5 << 20)
    k, i = write(folder, 'kernel', kernel), write(folder, 'initrd', initrd)
    for args, hashes in (((), hash_page(kernel, b'', b'')), (('--initrd', i), hash_page(kernel, initrd, b'')),
                         (('--append', 'console=ttyS0 loglevel=7'), hash_page(kernel, b'', b'console=ttyS0 loglevel=7')),
                         (('--initrd', i, '--append', 'a'), hash_page(kernel, initrd, b'a')),
                         (('--initrd=', '--append='), hash_page(kernel, b'', b''))):
        equal(line('measure', 'snp', *SNP, '--ovmf', fw, '--kernel', k, *args), snp(image, hashes=hashes), str(args))


def a_kernel_needs_a_place_for_its_hashes(folder):
    fw, kernel = write(folder, 'fw.fd', firmware()), write(folder, 'kernel', b'kernel')
    refused('7255371f-3a3b-4b04-927b-1da6efa8d454|[Kk]ernel hashes', 'measure', 'snp', *SNP, '--ovmf', fw, '--kernel', kernel)


def sev_snp_measure_users_change_the_name(folder):
    """Command lines of its README, the name aside."""
    image = firmware(hashes=True)
    for name, data in (('OVMF.fd', image), ('vmlinuz', b'kernel'), ('initrd.img', b'initrd'), ('OVMF_CODE.fd', image)):
        write(folder, name, data)
    hashes = hash_page(b'kernel', b'initrd', b'console=ttyS0 loglevel=7')
    equal(line('measure', '--mode', 'snp', '--vcpus=1', '--vcpu-type=EPYC-v4', '--ovmf=OVMF.fd', '--kernel=vmlinuz', '--initrd=initrd.img',
               '--append=console=ttyS0 loglevel=7', cwd=folder), snp(image, hashes=hashes))
    known = line('measure', '--mode', 'snp:ovmf-hash', '--ovmf', 'OVMF.fd', cwd=folder)
    equal(len(known), 96)
    write(folder, 'OVMF.fd.old', firmware(hashes=True, seed=1))
    for option in ('--snp-ovmf-hash', '--ovmf-hash'):  # its README has the second
        equal(line('measure', '--mode', 'snp', '--vcpus=1', '--vcpu-type=EPYC-v4', '--ovmf=OVMF.fd.old', option, known, cwd=folder), snp(image))
    write(folder, 'svsm.bin', firmware(svsm=0x100))
    write(folder, 'OVMF_VARS.fd', bytes(PAGE))
    line('measure', '--mode', 'snp:svsm', '--vmm-type=QEMU', '--vcpus=4', '--vcpu-type=EPYC-v4', '--ovmf=OVMF_CODE.fd', '--svsm=svsm.bin',
         '--vars-file=OVMF_VARS.fd', cwd=folder)
    for how in (('--vcpu-type=EPYC-v4',), ('--vcpu-sig=0x800f12',), ('--vcpu-family=23', '--vcpu-model=1', '--vcpu-stepping=2')):
        equal(line('measure', '--mode', 'snp', '--vcpus=4', *how, '--ovmf', 'OVMF.fd', cwd=folder), snp(image, 4))


def an_svsm_lies_before_the_variables_and_the_firmware(folder):
    image, svsm, variables = firmware(), firmware(pages=5, sections=((0x800000, 0x2000, 1), (0x805000, 0x1000, 3)), svsm=0x1230), bytes(3 * PAGE)
    fw, sv, va = write(folder, 'fw.fd', image), write(folder, 'svsm.bin', svsm), write(folder, 'vars.fd', variables)
    base = (1 << 32) - len(image)
    ld = bytes(48)
    for gpa, data in ((base, image), (base - len(variables) - len(svsm), svsm)):
        for o in range(0, len(data), PAGE):
            ld = reference.snp_page(ld, reference.NORMAL, gpa + o, data[o:o + PAGE])
    for kind, gpa in ((reference.ZERO, 0x800000), (reference.ZERO, 0x801000), (reference.CPUID, 0x805000)):
        ld = reference.snp_page(ld, kind, gpa)
    for _ in range(4):
        ld = reference.snp_page(ld, reference.VMSA, reference.VMSA_GPA, svsm_vmsa(base - len(variables) - len(svsm) + 0x1230, 0x800f12))
    args = ('measure', '--mode', 'snp:svsm', '--vmm-type=QEMU', '--vcpus=4', '--vcpu-type=EPYC-v4', f'--ovmf={fw}', f'--svsm={sv}')
    equal(line(*args, '--vars-file', va), ld.hex())
    equal(line(*args, f'--vars-size={len(variables)}'), ld.hex())
    equal(good(*args, '--vars-file', va, '-v'), f'Calculated SEV_SNP_SVSM guest measurement: {ld.hex()}\n')
    equal([r['name'] for r in document(*args, '--vars-file', va, '--explain', '--json')['ranges']][:5], ['firmware', 'svsm', 'sec-mem', 'cpuid', 'vmsa 0'])
    refused('a789a612-0597-4c4b-a49f-cbb1fe9d1ddd', *args[:-1], '--svsm', fw, '--vars-file', va)


def the_hash_of_a_firmware_stands_for_it(folder):
    image, other = firmware(seed=1), firmware(seed=2)
    fw, old = write(folder, 'fw.fd', image), write(folder, 'old.fd', other)
    known = line('measure', '--mode=snp:ovmf-hash', '--ovmf', fw)
    equal(line('measure', '--mode=snp:ovmf-hash', '--ovmf', fw, '--output-format=base64', '-v', '--initrd', 'none'), known)
    ld = bytes(48)
    for o in range(0, len(image), PAGE):
        ld = reference.snp_page(ld, reference.NORMAL, (1 << 32) - len(image) + o, image[o:o + PAGE])
    equal(known, ld.hex())
    equal(line('measure', 'snp', *SNP, '--ovmf', old, '--snp-ovmf-hash', known.upper()), snp(image))
    for text in ('', 'ab', known[:-2], known + '00', 'g' + known[1:]):
        misused('--snp-ovmf-hash: .* is not 48 bytes', 'measure', 'snp', *SNP, '--ovmf', old, '--snp-ovmf-hash=' + text)


def every_format_says_the_same(folder):
    image = firmware()
    fw = write(folder, 'fw.fd', image)
    args, want = ('measure', 'snp', *SNP, '--ovmf', fw), snp(image)
    b64 = base64.b64encode(bytes.fromhex(want)).decode()
    equal(good(*args), want + '\n')
    equal(good(*args, '--output-format=hex'), want + '\n')
    equal(good(*args, '--output-format', 'base64'), b64 + '\n')
    equal(good(*args, '-v'), f'Calculated SEV_SNP guest measurement: {want}\n')
    equal(good(*args, '--verbose', '--output-format=base64'), f'Calculated SEV_SNP guest measurement: {b64}\n')
    for args_json in (('--json',), ('--output-format=json',)):
        doc = document(*args, *args_json)
        equal((doc['digest'], doc['digest_base64'], doc['type']), (want, b64, 'snp'))
        expect('ranges' not in doc, 'ranges without --explain')
    mrtd = line('measure', 'tdx', '--ovmf', fw)
    equal(good('measure', 'tdx', '--ovmf', fw, '-v'), f'Calculated TDX guest measurement: {mrtd}\n')
    equal(document('measure', 'tdx', '--ovmf', fw, '--json')['digest'], mrtd)


def vmsas_are_dumped(folder):
    fw = write(folder, 'fw.fd', firmware(reset=0x80b004))
    plain = line('measure', 'snp', '--vcpus=3', '--vcpu-type=EPYC-v4', '--ovmf', fw)
    equal(line('measure', 'snp', '--vcpus=3', '--vcpu-type=EPYC-v4', '--ovmf', fw, '--dump-vmsa', cwd=folder), plain)
    equal(sorted(n for n in os.listdir(folder) if n.startswith('vmsa')), ['vmsa0.bin', 'vmsa1.bin', 'vmsa2.bin'])
    for i in range(3):
        with open(os.path.join(folder, f'vmsa{i}.bin'), 'rb') as f:
            equal(f.read(), reference.vmsa(0x80b004 if i else 0xfffffff0, 0x800f12, 1), f'vmsa{i}.bin')
    os.mkdir(os.path.join(folder, 'sub'))
    os.mkdir(os.path.join(folder, 'sub', 'vmsa0.bin'))
    refused('^gmem: vmsa0.bin: ', 'measure', 'snp', *SNP, '--ovmf', fw, '--dump-vmsa', cwd=os.path.join(folder, 'sub'))


def a_full_disk_is_a_failure(folder):
    fw = write(folder, 'fw.fd', firmware())
    with open('/dev/full', 'wb') as full:
        p = subprocess.run([GMEM, 'measure', 'tdx', '--ovmf', fw], stdout=full, stderr=subprocess.PIPE)
    equal(p.returncode, 1, p.stderr.decode())


def inputs_are_named_with_their_sums(folder):
    image = firmware(hashes=True)
    fw, k = write(folder, 'fw.fd', image), write(folder, 'kernel', b'kernel')
    doc = document('measure', 'snp', *SNP, '--ovmf', fw, '--kernel', k, '--append', 'quiet', '--json')
    want = [('firmware', fw, len(image), image), ('kernel', k, 6, b'kernel'), ('append', None, 6, b'quiet\0')]
    equal(doc['inputs'], [{'name': name, 'path': path, 'bytes': n, 'sha256': hashlib.sha256(data).hexdigest()} for name, path, n, data in want])
    equal(doc['parameters'], {'mode': 'snp', 'vmm': 'QEMU', 'vcpus': 1, 'vcpu_signature': '0x800f12', 'guest_features': '0x1', 'append': 'quiet'})
    doc = document('measure', 'tdx', '--two-pass', '--ovmf', fw, '--json')
    equal(doc['parameters'], {'mode': 'tdx', 'two_pass': True})
    # JSON is UTF-8; an argument need not be.
    doc = document('measure', 'snp', *SNP, '--ovmf', fw, '--kernel', k, b'--append=\xff', '--json')
    equal(doc['parameters']['append'], None)
    equal(doc['inputs'][2]['sha256'], hashlib.sha256(b'\xff\0').hexdigest())


def the_manuals_examples_run(folder):
    for name, data in (('OVMF.fd', firmware()), ('OVMF.amdsev.fd', firmware(hashes=True)), ('vmlinuz', b'kernel'), ('initrd.img', b'initrd')):
        write(folder, name, data)
    run_examples('gmem-measure.1', folder)


main([
    known_launch_digests_come_out,
    known_mrtds_come_out,
    digests_are_those_of_the_reference,
    a_kernel_is_in_the_digest,
    a_kernel_needs_a_place_for_its_hashes,
    sev_snp_measure_users_change_the_name,
    an_svsm_lies_before_the_variables_and_the_firmware,
    the_hash_of_a_firmware_stands_for_it,
    every_format_says_the_same,
    vmsas_are_dumped,
    a_full_disk_is_a_failure,
    inputs_are_named_with_their_sums,
    the_manuals_examples_run,
])
