#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""gmem measure --explain, --expect, --against: what was measured, and where two measurements differ."""
import base64
import json
import os
import random
import re

from lib import PAGE, SLOW, document, equal, expect, firmware, gmem, good, line, main, misused, reference, refused, snp, write

SNP = ('snp', '--vcpus=2', '--vcpu-type=EPYC')


def ranges_of(image):
    """(name, gpa, bytes, contents, digest after it) of a guest of SNP's with two vCPUs."""
    base, ld, ranges = (1 << 32) - len(image), bytes(48), []

    def add(name, gpa, length, contents, steps):
        nonlocal ld
        for kind, at, page in steps:
            ld = reference.snp_page(ld, kind, at, page)
        ranges.append((name, hex(gpa), length, contents, ld.hex()))

    add('firmware', base, len(image), True, [(reference.NORMAL, base + o, image[o:o + PAGE]) for o in range(0, len(image), PAGE)])
    add('sec-mem', 0x800000, 0x9000, False, [(reference.ZERO, 0x800000 + o, None) for o in range(0, 0x9000, PAGE)])
    add('secrets', 0x80d000, PAGE, False, [(reference.SECRETS, 0x80d000, None)])
    add('cpuid', 0x80e000, PAGE, False, [(reference.CPUID, 0x80e000, None)])
    add('svsm-caa', 0x80f000, PAGE, False, [(reference.ZERO, 0x80f000, None)])
    for i in range(2):
        add(f'vmsa {i}', reference.VMSA_GPA, PAGE, True,
            [(reference.VMSA, reference.VMSA_GPA, reference.vmsa(0x80b004 if i else 0xfffffff0, 0x800f12, 1))])
    return ranges


def json_has_each_range(folder):
    image = firmware()
    fw = write(folder, 'fw.fd', image)
    doc = document('measure', *SNP, '--ovmf', fw, '--explain', '--json')
    equal([(r['name'], r['gpa'], r['bytes'], r['contents'], r['digest']) for r in doc['ranges']], ranges_of(image))
    equal(doc['digest'], doc['ranges'][-1]['digest'])
    tdx = document('measure', 'tdx', '--ovmf', fw, '--explain', '--json')
    equal(tdx['digest'], tdx['ranges'][-1]['digest'])
    base = (1 << 32) - len(image)
    equal([(r['name'], r['gpa'], r['bytes'], r['contents']) for r in tdx['ranges']],
          [('BFV', hex(base + PAGE), len(image) - PAGE, True), ('CFV', hex(base), PAGE, False), ('TEMP_MEM', '0x810000', 0x4000, False),
           ('TD_HOB', '0x809000', 0x2000, False)])
    hashed = document('measure', '--mode=snp:ovmf-hash', '--ovmf', fw, '--explain', '--json')
    equal([r['name'] for r in hashed['ranges']], ['firmware'])
    equal(hashed['digest'], doc['ranges'][0]['digest'])


def the_table_has_each_range_and_ends_with_the_digest(folder):
    image = firmware()
    fw = write(folder, 'fw.fd', image)
    lines = good('measure', *SNP, '--ovmf', fw, '--explain').splitlines()
    equal(lines[-1], snp(image, 2))
    rows = [row.split() for row in lines if re.match(r' *\d+ ', row)]
    equal([(row[-1], row[-2], row[-4]) for row in rows], [(d, 'contents' if c else 'presence', gpa) for _, gpa, _, c, d in ranges_of(image)])
    header = next(row for row in lines if 'digest after it' in row)
    column = header.index('digest after it')
    expect(all(row.index(row.split()[-1]) == column for row in lines if re.match(r' *\d+ ', row)), 'not aligned:\n' + '\n'.join(lines))
    expect(any(fw in row for row in lines), 'the file is not named')


def the_expected_digest_is_success(folder):
    image = firmware()
    fw, want = write(folder, 'fw.fd', image), snp(image, 2)
    raw = bytes.fromhex(want)
    for text in (want, want.upper(), '0x' + want, base64.b64encode(raw).decode()):
        equal(line('measure', *SNP, '--ovmf', fw, '--expect', text), want, text)
    for text in ('', want[:-1], want + '0', 'x' * 96, base64.b64encode(raw).decode()[:-1], base64.b64encode(raw + b'x').decode(), '=' * 64):
        misused('--expect: .* is not 48 bytes', 'measure', *SNP, '--ovmf', fw, '--expect=' + text)


def another_digest_is_a_failure_that_says_both(folder):
    image = firmware()
    fw, want = write(folder, 'fw.fd', image), snp(image, 2)
    other = want[:-1] + ('0' if want[-1] != '0' else '1')
    err = refused(f'expected {other}, it is {want}', 'measure', *SNP, '--ovmf', fw, '--expect', other, out=want + '\n')
    expect('--against' in err, err)


def earlier(folder, *args):
    path = os.path.join(folder, 'old.json')
    with open(path, 'w') as f:
        f.write(good('measure', *args, '--explain', '--json'))
    return path


def the_same_as_before_is_success(folder):
    fw = write(folder, 'fw.fd', firmware())
    for args in ((*SNP, '--ovmf', fw), ('tdx', '--ovmf', fw)):
        old = earlier(folder, *args)
        digest = line('measure', *args)
        equal(line('measure', *args, '--against', old), digest)
        equal(line('measure', *args, '--against', old, '--expect', digest), digest)
        # The file's place does not count.
        moved = write(folder, 'moved.fd', firmware())
        equal(line('measure', *args[:-1], moved, '--against', old), digest)


def what_differs_is_named(folder):
    image = firmware(hashes=True)
    fw, k, k2 = write(folder, 'fw.fd', image), write(folder, 'kernel', b'kernel'), write(folder, 'kernel2', b'Kernel')
    full = ('--ovmf', fw, '--kernel', k, '--append', 'quiet')
    old = earlier(folder, *SNP, *full)
    before = {r['name']: r['digest'] for r in document('measure', *SNP, *full, '--explain', '--json')['ranges']}

    def told(*args):
        r = gmem('measure', *args, '--against', old)
        equal(r.status, 1, str(r))
        expect('not the expected digest' in r.err and f'compared with {old}' in r.err, str(r))
        return r.err

    err = told('snp', '--vcpus=3', '--vcpu-type=EPYC', *full)
    expect('vcpus differs: it was 2, now it is 3' in err, err)
    expect('range 8 is the first that differs: it is new' in err and 'now it is vmsa 2 at 0xfffffffff000' in err, err)
    expect(f'digest before it is the same: {before["vmsa 1"]}' in err, err)
    err = told('snp', '--vcpus=1', '--vcpu-type=EPYC', *full)
    expect('range 7 is the first that differs: it is gone' in err and 'it was vmsa 1' in err, err)
    err = told('snp', '--vcpus=2', '--vcpu-type=EPYC-Milan', *full)
    expect('vcpu_signature differs: it was "0x800f12", now it is "0xa00f11"' in err, err)
    expect('range 6 is the first that differs: other contents' in err, err)
    err = told(*SNP, *full, '--guest-features=0x21')
    expect('guest_features differs' in err, err)
    err = told(*SNP, '--ovmf', fw, '--kernel', k2, '--append', 'quiet')
    expect('input kernel differs' in err and k2 in err and 'range 5 is the first that differs: other contents' in err, err)
    expect(f'digest before it is the same: {before["svsm-caa"]}' in err, err)
    err = told(*SNP, '--ovmf', fw, '--kernel', k, '--append', 'debug')
    expect('append differs: it was "quiet", now it is "debug"' in err and 'input append differs' in err, err)
    err = told(*SNP, '--ovmf', fw)
    expect('input kernel differs' in err and 'now it is nothing' in err and 'range 5 is the first' in err and 'another kind' in err, err)
    other = write(folder, 'other.fd', image[:5000] + bytes([image[5000] ^ 1]) + image[5001:])
    err = told(*SNP, '--ovmf', other, *full[2:])
    expect('input firmware differs' in err and 'range 0 is the first that differs: other contents' in err and 'before it' not in err, err)
    err = told(*SNP, '--ovmf', write(folder, 'long.fd', firmware(pages=17, hashes=True)), *full[2:])
    expect('range 0 is the first that differs: another address' in err, err)
    err = told('tdx', '--ovmf', fw)
    expect('type differs: it was "snp", now it is "tdx"' in err and 'range 0 is the first that differs: another range' in err, err)
    err = told(*SNP, *full, '--vmm-type=gce')
    expect('vmm differs' in err and 'range 1 is the first that differs: another type of page' in err, err)
    # Another digest is expected than the document's: all of it is the same, and that is said.
    r = gmem('measure', *SNP, *full, '--against', old, '--expect', '00' * 48)
    expect(r.status == 1 and 'all 8 ranges are the same: the digest expected is of something else' in r.err, str(r))


def another_order_is_named(folder):
    fw = write(folder, 'fw.fd', firmware())
    old = earlier(folder, 'tdx', '--ovmf', fw)
    r = gmem('measure', 'tdx', '--two-pass', '--ovmf', fw, '--against', old)
    expect(r.status == 1 and 'two_pass differs: it was false, now it is true' in r.err, str(r))
    expect('range 0 is the first that differs: measured in another order' in r.err, str(r))


def sections_that_move_are_named(folder):
    sections = ((0x800000, 0x9000, 1), (0x80d000, 0x1000, 2), (0x80e000, 0x1000, 3))

    def image(name, sections):
        return write(folder, name, firmware(sections=sections))

    # The firmware itself is another one then; by its hash it is not.
    known = ('--snp-ovmf-hash', '11' * 48)
    old = earlier(folder, *SNP, *known, '--ovmf', image('a.fd', sections))
    for changed, what in ((((0x800000, 0xa000, 1), *sections[1:]), 'range 1 .*: another length'),
                          (((0x801000, 0x9000, 1), *sections[1:]), 'range 1 .*: another address'),
                          ((sections[0], sections[2], sections[1]), 'range 2 .*: another range')):
        r = gmem('measure', *SNP, *known, '--ovmf', image('b.fd', changed), '--against', old)
        expect(r.status == 1 and re.search(what, r.err), f'{what}: {r}')


def a_document_that_is_none_is_refused(folder):
    fw = write(folder, 'fw.fd', firmware())
    with open(earlier(folder, *SNP, '--ovmf', fw)) as f:
        doc = json.load(f)

    def against(pattern, text):
        path = write(folder, 'bad.json', text if isinstance(text, bytes) else json.dumps(text).encode())
        refused(f'{path}: .*{pattern}', 'measure', *SNP, '--ovmf', fw, '--against', path)

    against('no JSON', b'')
    against('no JSON', b'{')
    against('no JSON', b'\xff\xfe')
    against('no JSON', b'[' * 100000)
    against('no JSON', b'{"a": 1, "a": 2}')
    against('no output of gmem measure', [])
    against('no output of gmem measure', {})
    against('no output of gmem measure', 7 * [doc])
    without = {k: v for k, v in doc.items() if k != 'ranges'}
    against('it has no ranges', without)
    for key in ('type', 'parameters', 'inputs', 'digest'):
        for value in (None, 7, 'x', [7], {'a': 7}, [[]]):
            if not (key == 'type' and value == 'x') and not (key == 'parameters' and isinstance(value, dict)):
                against('no output', {**doc, key: value})
    for key, value in (('name', 7), ('gpa', 4096), ('gpa', ''), ('gpa', '-1'), ('gpa', '0x'), ('gpa', '0x1' + '0' * 20), ('bytes', '1'), ('bytes', 1.5), ('bytes', -1),
                       ('contents', 1), ('digest', 'ab'), ('digest', 'x' * 96), ('digest', None)):
        against('a range that is none', {**doc, 'ranges': [doc['ranges'][0], {**doc['ranges'][1], key: value}]})
    against('ranges is no array', {**doc, 'ranges': {}})


def nothing_of_a_document_commands_the_terminal(folder):
    fw = write(folder, 'fw.fd', firmware())
    with open(earlier(folder, *SNP, '--ovmf', fw)) as f:
        doc = json.load(f)
    evil = '\x1b[2J\x1b]0;title\x07\r\n\u202e' + 'A' * 5000
    doc['type'] = evil
    doc['parameters'][evil] = {evil: [evil]}
    doc['inputs'].append({'name': evil, 'path': evil, 'sha256': '00' * 32})
    doc['ranges'][0]['name'] = evil
    doc['digest'] = '00' * 48
    path = write(folder, 'evil.json', json.dumps(doc).encode())
    r = gmem('measure', *SNP, '--ovmf', fw, '--against', path)
    equal(r.status, 1, str(r))
    expect(all(c == '\n' or ' ' <= c <= '~' for c in r.err), repr(r.err))
    expect(max(map(len, r.err.splitlines())) < 1000, 'long lines')


def mutations_are_refused_or_compared(folder):
    """Bytes of a document changed, cut and doubled: an exit status of the command's own, never a signal."""
    seed = int(os.environ.get('GMEM_TEST_SEED', random.randrange(1 << 32)))
    print(f'# seed {seed} (GMEM_TEST_SEED)')
    rng = random.Random(seed)
    fw = write(folder, 'fw.fd', firmware(pages=1))
    with open(earlier(folder, *SNP, '--ovmf', fw), 'rb') as f:
        good_text = f.read()
    words = [b'"', b'{', b'}', b'[', b']', b',', b':', b'null', b'-1', b'9' * 30, b'\\u0000', b'\\ud800', b'\xf0\x9f', b'1e999', b'true', b'"ranges"']
    for i in range(600 // SLOW):
        text = bytearray(good_text)
        for _ in range(rng.randrange(1, 4)):
            at, end = sorted((rng.randrange(len(text) + 1), rng.randrange(len(text) + 1)))
            end = min(end, at + rng.randrange(1, 200))
            how = rng.randrange(5)
            if how == 0:
                text[at:end] = b''
            elif how == 1:
                text[at:at] = text[at:end]
            elif how == 2:
                text[at:at + 1] = rng.choice(words)
            elif how == 3 and at < len(text):
                text[at] ^= 1 << rng.randrange(8)
            elif how == 4:
                del text[at:]
        path = write(folder, 'mutant.json', bytes(text))
        r = gmem('measure', *SNP, '--ovmf', fw, '--against', path, '--expect', '00' * 48)
        expect(r.status == 1 and r.err.startswith('gmem: '), f'seed {seed}, step {i}: {r}\n{bytes(text)!r}')


main([
    json_has_each_range,
    the_table_has_each_range_and_ends_with_the_digest,
    the_expected_digest_is_success,
    another_digest_is_a_failure_that_says_both,
    the_same_as_before_is_success,
    what_differs_is_named,
    another_order_is_named,
    sections_that_move_are_named,
    a_document_that_is_none_is_refused,
    nothing_of_a_document_commands_the_terminal,
    mutations_are_refused_or_compared,
])
