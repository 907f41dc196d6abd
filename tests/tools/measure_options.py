#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""gmem measure: every option, which counts before which, and wrong usage."""
import json

from lib import document, equal, expect, firmware, gmem, good, line, main, misused, write

SNP = ('snp', '--vcpus=1', '--vcpu-type=EPYC-v4')
EPYC, ROME, MILAN, GENOA, TURIN = '0x800f12', '0x830f10', '0xa00f11', '0xa10f10', '0xb00f00'


def image(folder, **kwargs):
    return write(folder, 'fw.fd', firmware(**kwargs))


def parameters(*args):
    return document('measure', *args, '--json')['parameters']


def signature(fw, *args):
    return parameters('snp', '--vcpus=1', '--ovmf', fw, *args)['vcpu_signature']


def help_and_version_say_what_they_are(folder):
    for args in (('measure', '--help'), ('measure', '-h'), ('measure', 'snp', '--ovmf', '-h'), ('measure', '-vh')):
        if '--ovmf' in args:  # no value follows
            misused("'--ovmf' takes a value", *args)
        else:
            expect('Usage: gmem measure' in good(*args), str(args))
    version = good('--version').split()[1]
    equal(line('measure', '--version'), f'gmem measure {version}')
    equal(line('launch', '--version'), f'gmem launch {version}')
    expect('Usage: gmem launch' in good('launch', '--help'), 'gmem launch --help')
    for word in ('measure', 'launch'):
        expect(f'  {word} ' in good('--help'), word)


def the_kind_of_guest_is_a_word_or_a_mode(folder):
    fw = image(folder)
    rest = ('--vcpus', '1', '--vcpu-type', 'EPYC-v4', '--ovmf', fw)
    digests = {line('measure', *words, *rest) for words in (('snp',), ('--mode', 'snp'), ('--mode=snp',), ('snp', '--mode', 'snp'))}
    digests.add(line('measure', *rest, 'snp'))
    equal(len(digests), 1)
    equal(len({line('measure', *words, '--ovmf', fw) for words in (('tdx',), ('--mode', 'tdx'), ('--mode=tdx', 'tdx'))}), 1)
    misused('which kind of guest', 'measure', *rest)
    misused("'tdx' and --mode snp", 'measure', 'tdx', '--mode', 'snp', *rest)
    misused("'snp' and --mode tdx", 'measure', 'snp', '--mode', 'tdx', *rest)
    misused("'sgx': there are snp,", 'measure', 'sgx', *rest)
    misused("mode 'SNP': there are", 'measure', '--mode', 'SNP', *rest)
    misused('unrecognized arguments: more', 'measure', 'snp', *rest, 'more')
    for mode in ('sev', 'seves'):
        misused("measures SEV-SNP and TDX guests; .* sev-snp-measure", 'measure', '--mode', mode, '--ovmf', fw)


def options_are_spelt_as_argparse_lets_them_be(folder):
    fw = image(folder)
    want = line('measure', *SNP, '--ovmf', fw)
    for args in (('--ovm', fw), ('--o=' + fw,), ('--firmware', fw), ('--fi', fw), ('--ovmf=other', '--ovmf', fw), ('--', '--ovmf')):
        if args[0] == '--':  # a word, and the kind has been said
            misused('unrecognized arguments: --ovmf', 'measure', *SNP, *args)
        elif args[0].startswith('--o='):
            misused("ambiguous option '--o'", 'measure', *SNP, *args)
        else:
            equal(line('measure', *SNP, *args), want, str(args))
    # What abbreviates one of sev-snp-measure's goes on doing so.
    hashed = image(folder, hashes=True)
    kernel = write(folder, 'kernel', b'kernel')
    full = document('measure', *SNP, '--ovmf', hashed, '--kernel', kernel, '--initrd', kernel, '--append', 'a b', '--json')
    short = document('measure', *SNP, '--ov', hashed, '--k', kernel, '--i', kernel, '--a', 'a b', '--json')
    equal(short, full)
    equal(full['parameters']['append'], 'a b')
    # A dash begins an option, unless there is a space in it, or =.
    equal(parameters(*SNP, '--ovmf', hashed, '--kernel', kernel, '--append', '-v quiet')['append'], '-v quiet')
    equal(parameters(*SNP, '--ovmf', hashed, '--kernel', kernel, '--append=-v')['append'], '-v')
    misused("'--append' takes a value; .*--append=VALUE", 'measure', *SNP, '--ovmf', hashed, '--kernel', kernel, '--append', '-v')
    misused("'--kernel' takes a value", 'measure', *SNP, '--ovmf', hashed, '--kernel', '--initrd', kernel)
    misused("'--ovmf' takes a value", 'measure', *SNP, '--ovmf')
    misused("ambiguous option '--vcpu'", 'measure', 'snp', '--vcpu', '1', '--ovmf', fw)
    misused("unknown option '--frobnicate'", 'measure', *SNP, '--frobnicate=1')
    misused("unknown option '-x'", 'measure', *SNP, '-vx')
    misused("no value belongs to '--verbose'", 'measure', *SNP, '--verbose=1')
    misused('required: --ovmf', 'measure', *SNP)
    misused('required: --ovmf', 'measure', *SNP, '--ovmf=')
    misused('required: --ovmf', 'measure', 'tdx')


def processors_have_their_signature(folder):
    fw = image(folder)
    names = {EPYC: ['EPYC', 'EPYC-IBPB'] + [f'EPYC-v{n}' for n in range(1, 6)], ROME: ['EPYC-Rome'] + [f'EPYC-Rome-v{n}' for n in range(1, 6)],
             MILAN: ['EPYC-Milan'] + [f'EPYC-Milan-v{n}' for n in range(1, 4)], GENOA: ['EPYC-Genoa', 'EPYC-Genoa-v1', 'EPYC-Genoa-v2'],
             TURIN: ['EPYC-Turin', 'EPYC-Turin-v1']}
    for want, types in names.items():
        for name in types:
            equal(signature(fw, '--vcpu-type', name), want, name)
    for name in ('EPYC-v', 'EPYC-v0', 'EPYC-v12', 'EPYC-IBPB-v1', 'EPYC-Rome-v6', 'EPYC-Turin-v2', 'Skylake', '', 'epyc'):
        misused('--vcpu-type: .* is not one of EPYC, ', 'measure', 'snp', '--vcpus=1', '--ovmf', fw, '--vcpu-type=' + name)


def a_signature_by_numbers(folder):
    fw = image(folder)
    for value, want in ((EPYC, EPYC), ('8392466', EPYC), ('0X800F12', EPYC), ('0b1', '0x1'), ('0o17', '0xf'), ('1_0', '0xa'), ('0xffffffff', '0xffffffff')):
        equal(signature(fw, '--vcpu-sig', value), want, value)
    for value in ('', 'x', '0x', '-1', '1__0', '0x1_0000_0000', '1 ', '4294967296', '0x800f12z', '99999999999999999999999'):
        misused('--vcpu-sig', 'measure', 'snp', '--vcpus=1', '--ovmf', fw, '--vcpu-sig=' + value)
    for numbers, want in (((23, 1, 2), EPYC), ((23, 49, 0), ROME), ((25, 1, 1), MILAN), ((25, 17, 0), GENOA), ((26, 0, 0), TURIN),
                          ((6, 0x9e, 3), '0x906e3'), ((15, 255, 15), '0xf0fff'), ((270, 0, 0), '0xff00f00')):
        args = [f'--vcpu-{name}={n}' for name, n in zip(('family', 'model', 'stepping'), numbers)]
        equal(signature(fw, *args), want, str(numbers))
    for name, n in (('family', 271), ('model', 256), ('stepping', 16), ('family', '0x17'), ('model', -1)):
        misused(f'--vcpu-{name}', 'measure', 'snp', '--vcpus=1', '--ovmf', fw, f'--vcpu-{name}={n}')
    for args in (('--vcpu-family=23',), ('--vcpu-family=23', '--vcpu-model=1'), ('--vcpu-family=23', '--vcpu-stepping=1')):
        misused('--vcpu-family goes with --vcpu-model and --vcpu-stepping', 'measure', 'snp', '--vcpus=1', '--ovmf', fw, *args)


def family_counts_before_signature_before_type(folder):
    fw = image(folder)
    family, sig, name = ('--vcpu-family=25', '--vcpu-model=17', '--vcpu-stepping=0'), ('--vcpu-sig=0x830f10',), ('--vcpu-type=EPYC-Milan',)
    equal(signature(fw, *name, *sig, *family), GENOA)
    equal(signature(fw, *family, *name), GENOA)
    equal(signature(fw, *name, *sig), ROME)
    equal(signature(fw, *sig, *name), ROME)
    equal(signature(fw, *name), MILAN)
    equal(signature(fw, *name, '--vcpu-type=EPYC'), EPYC)
    # A 0 is none.
    equal(signature(fw, *name, '--vcpu-sig=0', '--vcpu-family=0'), MILAN)
    equal(signature(fw, *sig, '--vcpu-family=0'), ROME)
    misused('missing --vcpu-type or --vcpu-sig', 'measure', 'snp', '--vcpus=1', '--ovmf', fw, '--vcpu-sig=0')
    # By itself a model or a stepping says nothing.
    equal(signature(fw, *name, '--vcpu-model=1'), MILAN)


def what_is_missing_is_named(folder):
    fw, kernel = image(folder, hashes=True), write(folder, 'kernel', b'kernel')
    misused('^gmem measure: --kernel required when using --initrd\n', 'measure', *SNP, '--ovmf', fw, '--initrd', kernel)
    misused('^gmem measure: --kernel required when using --append\n', 'measure', *SNP, '--ovmf', fw, '--append', 'quiet')
    misused("missing --vcpus N in guest mode 'snp'", 'measure', 'snp', '--vcpu-type=EPYC', '--ovmf', fw)
    misused("missing --vcpu-type or --vcpu-sig or --vcpu-family in guest mode 'snp'", 'measure', 'snp', '--vcpus=1', '--ovmf', fw)
    # In this order, and an empty text is none.
    misused('when using --initrd', 'measure', 'snp', '--initrd', kernel, '--append', 'quiet', '--ovmf', fw)
    misused('when using --append', 'measure', 'snp', '--append', 'quiet', '--ovmf', fw)
    plain = line('measure', *SNP, '--ovmf', fw)
    equal(line('measure', *SNP, '--ovmf', fw, '--initrd=', '--append='), plain)
    equal(line('measure', *SNP, '--ovmf', fw, '--kernel=', '--append=x'), plain)
    for value in ('0', '-1', 'many', '1.5', '0x1', '65537', '4294967296', ''):
        misused('--vcpus', 'measure', 'snp', '--vcpu-type=EPYC', '--ovmf', fw, '--vcpus=' + value)


def monitors_have_their_names(folder):
    fw = image(folder)
    for name, want in (('QEMU', 'QEMU'), ('qemu', 'QEMU'), ('ec2', 'ec2'), ('EC2', 'ec2'), ('gce', 'gce'), ('GCE', 'gce'), ('krun', 'krun')):
        equal(parameters(*SNP, '--ovmf', fw, '--vmm-type', name)['vmm'], want, name)
    digests = [line('measure', *SNP, '--ovmf', fw, '--vmm-type', name) for name in ('qemu', 'ec2', 'gce', 'krun')]
    equal(len(set(digests)), 4)
    # Whose vCPUs do not have the signature need none.
    for name in ('ec2', 'gce', 'krun'):
        without = line('measure', 'snp', '--vcpus=1', '--vmm-type', name, '--ovmf', fw)
        equal(without, digests[('qemu', 'ec2', 'gce', 'krun').index(name)], name)
    misused("unknown VMM type 'vbox': there are QEMU, ec2, gce and krun", 'measure', *SNP, '--ovmf', fw, '--vmm-type', 'vbox')
    misused("unknown VMM type 'svsm'", 'measure', *SNP, '--ovmf', fw, '--vmm-type', 'svsm')
    ec2 = ('measure', *SNP, '--ovmf', fw, '--vmm-type', 'ec2')
    equal(line(*ec2, '--ec2-rdx', '0x600'), digests[1])
    equal(line(*ec2, '--ec2-rdx', '1536'), digests[1])
    expect(line(*ec2, '--ec2-rdx', '0') not in digests, 'rdx 0 makes no difference')
    equal(line(*ec2, '--ec2-rdx', '0', '--ec2-rdx', '0x600'), digests[1])
    misused('--ec2-rdx', *ec2, '--ec2-rdx', '1')
    misused('--ec2-rdx belongs to --vmm-type ec2', 'measure', *SNP, '--ovmf', fw, '--ec2-rdx', '0')


def features_are_of_snp_guests(folder):
    fw = image(folder)
    equal(parameters(*SNP, '--ovmf', fw)['guest_features'], '0x1')
    equal(parameters(*SNP, '--ovmf', fw, '--guest-features', '33')['guest_features'], '0x21')
    expect(line('measure', *SNP, '--ovmf', fw) != line('measure', *SNP, '--ovmf', fw, '--guest-features=0x21'), 'no difference')
    for value in ('0', '0x20'):
        misused('bit 0, SNPActive', 'measure', *SNP, '--ovmf', fw, '--guest-features', value)
    misused('--guest-features', 'measure', *SNP, '--ovmf', fw, '--guest-features', '0x10000000000000001')


def an_svsm_has_options_of_its_own(folder):
    fw, svsm = image(folder), write(folder, 'svsm.bin', firmware())
    mode = ('measure', '--mode', 'snp:svsm', '--vcpus=1', '--vcpu-type=EPYC-v4', '--ovmf', fw)
    misused('requires --vars-size or --vars-file', *mode, '--svsm', svsm)
    misused('requires --vars-size or --vars-file', *mode, '--svsm', svsm, '--vars-size=0')
    misused('requires --svsm', *mode, '--vars-size', '4096')
    misused('--vars-size and --vars-file: one of them', *mode, '--svsm', svsm, '--vars-size', '4096', '--vars-file', svsm)
    misused('--vars-size and --vars-file: one of them', *mode, '--svsm', svsm, '--vars-file', svsm, '--vars-size', '4096')
    misused('an SVSM is launched by QEMU', *mode, '--svsm', svsm, '--vars-size', '4096', '--vmm-type', 'ec2')
    misused('--svsm belongs to --mode snp:svsm', 'measure', *SNP, '--ovmf', fw, '--svsm', svsm)
    # Its vCPUs have no other features, which is said, and told as it is.
    rest = (*mode, '--svsm', write(folder, 'entered.bin', firmware(svsm=0x100)), '--vars-size=4096')
    r = gmem(*rest, '--guest-features=0x21')
    equal((r.status, r.out), (0, line(*rest) + '\n'), str(r))
    expect('--guest-features 0x21: with an SVSM they are 0x1' in r.err, str(r))
    equal(json.loads(gmem(*rest, '--guest-features=0x21', '--json').out)['parameters']['guest_features'], '0x1')


def tdx_takes_what_mrtd_covers(folder):
    fw = image(folder)
    one, two = line('measure', 'tdx', '--ovmf', fw), line('measure', 'tdx', '--ovmf', fw, '--two-pass')
    expect(one != two, 'two passes make no difference')
    misused('--two-pass belongs to tdx', 'measure', *SNP, '--ovmf', fw, '--two-pass')
    for name in ('kernel', 'initrd', 'append'):
        misused(f'--{name}: MRTD does not cover it.*RTMR', 'measure', 'tdx', '--ovmf', fw, f'--{name}=x')
    misused('--vcpus: MRTD', 'measure', 'tdx', '--ovmf', fw, '--vcpus=1')
    for args in (('--vcpu-type', 'EPYC'), ('--vcpu-sig', '1'), ('--vmm-type', 'qemu'), ('--guest-features', '1'), ('--dump-vmsa',), ('--svsm', fw),
                 ('--vars-size', '1'), ('--snp-ovmf-hash', '0' * 96), ('--ec2-rdx', '0')):
        misused(f'{args[0]} belongs to snp', 'measure', 'tdx', '--ovmf', fw, *args)


def the_commands_keep_their_options_apart(folder):
    fw = image(folder)
    for args in (('--policy', '0x30000'), ('--id-block', fw), ('--id-auth', fw), ('--author-key-enabled',), ('--vcek-disabled',), ('--host-data', '0' * 64)):
        misused(f'{args[0]} belongs to gmem launch', 'measure', *SNP, '--ovmf', fw, *args)
    for args in (('--snp-ovmf-hash', '0' * 96), ('--dump-vmsa',), ('--explain',), ('--against', fw)):
        misused(f'{args[0]} belongs to gmem measure', 'launch', *SNP, '--ovmf', fw, *args)
    misused('JSON belongs to gmem measure', 'launch', *SNP, '--ovmf', fw, '--json')
    misused('ovmf-hash belongs to gmem measure', 'launch', '--mode', 'snp:ovmf-hash', '--ovmf', fw)
    misused('--id-block and --id-auth go together', 'launch', *SNP, '--ovmf', fw, '--id-block', fw)
    misused('--author-key-enabled goes with', 'launch', *SNP, '--ovmf', fw, '--author-key-enabled')
    misused('--host-data: .* is not 32 bytes', 'launch', *SNP, '--ovmf', fw, '--host-data', '00')
    misused('--policy', 'launch', *SNP, '--ovmf', fw, '--policy', 'none')
    misused('--policy 0: bit 17', 'launch', *SNP, '--ovmf', fw, '--policy', '0')
    misused('--output-format', 'measure', *SNP, '--ovmf', fw, '--output-format', 'xml')


def nothing_is_measured_after_wrong_usage(folder):
    """No file is opened, none written."""
    misused('--vcpus', 'measure', 'snp', '--vcpu-type=EPYC', '--ovmf', folder + '/none', '--vcpus=x', '--dump-vmsa', cwd=folder)
    r = gmem('measure', *SNP, '--ovmf', folder + '/none', '--dump-vmsa', cwd=folder)
    equal(r.status, 1)


main([
    help_and_version_say_what_they_are,
    the_kind_of_guest_is_a_word_or_a_mode,
    options_are_spelt_as_argparse_lets_them_be,
    processors_have_their_signature,
    a_signature_by_numbers,
    family_counts_before_signature_before_type,
    what_is_missing_is_named,
    monitors_have_their_names,
    features_are_of_snp_guests,
    an_svsm_has_options_of_its_own,
    tdx_takes_what_mrtd_covers,
    the_commands_keep_their_options_apart,
    nothing_is_measured_after_wrong_usage,
])
