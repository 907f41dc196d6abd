#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Launch digests from their specifications, with hashlib alone: what the library's are compared with.

Prints JSON: the values of single steps ("units") and the digests of the demo's firmware, which is built here too, from what
demo/firmware.h says of it ("firmware"). With --firmware FILE [VCPUS]: the digests of that image instead, for SNP as QEMU launches it
without a kernel on vCPUs of type EPYC-v4.

Sources: SEV-SNP Firmware ABI (PAGE_INFO, page types), AMD64 APM volume 2 (VMSA), Intel TDX Module Base specification (TDH.MEM.PAGE.ADD,
TDH.MR.EXTEND), OVMF's SEV and TDX metadata (edk2, OvmfPkg/ResetVector).
"""
import hashlib
import json
import struct
import sys
import uuid

PAGE = 4096
NORMAL, VMSA, ZERO, UNMEASURED, SECRETS, CPUID = range(1, 7)
VMSA_GPA = 0xfffffffff000


def sha384(data):
    return hashlib.sha384(data).digest()


# SEV-SNP

def snp_extend(ld, kind, gpa, contents):
    """One PAGE_INFO: digest so far, contents, length, page type, IMI_PAGE, reserved, VMPL3..1 permissions, address."""
    info = struct.pack('<48s48sHBBBBBBQ', ld, contents, 0x70, kind, 0, 0, 0, 0, 0, gpa)
    assert len(info) == 0x70
    return sha384(info)


def snp_page(ld, kind, gpa, page=None):
    if kind == NORMAL:
        return snp_extend(ld, kind, gpa, sha384(page))
    if kind == VMSA:
        return snp_extend(ld, kind, gpa, sha384(page[:0x2f0] + bytes(16) + page[0x300:]))
    return snp_extend(ld, kind, gpa, bytes(48))


def vmsa(eip, signature, features):
    """The first state of a vCPU as QEMU and KVM make it."""
    page = bytearray(PAGE)

    def segment(offset, selector, attributes, limit, base):
        struct.pack_into('<HHIQ', page, offset, selector, attributes, limit, base)

    for offset in (0x00, 0x20, 0x30, 0x40, 0x50):  # es, ss, ds, fs, gs
        segment(offset, 0, 0x93, 0xffff, 0)
    segment(0x10, 0xf000, 0x9b, 0xffff, eip & 0xffff0000)
    segment(0x60, 0, 0, 0xffff, 0)  # gdtr
    segment(0x70, 0, 0x82, 0xffff, 0)  # ldtr
    segment(0x80, 0, 0, 0xffff, 0)  # idtr
    segment(0x90, 0, 0x8b, 0xffff, 0)  # tr
    for offset, value in ((0xd0, 0x1000), (0x148, 0x40), (0x158, 0x10), (0x160, 0x400), (0x168, 0xffff0ff0), (0x170, 2),
                          (0x178, eip & 0xffff), (0x268, 0x7040600070406), (0x310, signature), (0x3b0, features), (0x3e8, 1)):
        struct.pack_into('<Q', page, offset, value)
    struct.pack_into('<I', page, 0x408, 0x1f80)
    struct.pack_into('<H', page, 0x410, 0x37f)
    return bytes(page)


# TDX

def tdx_block(name, gpa):
    return struct.pack('<16sQ104x', name, gpa)


def tdx_add(gpa):
    return tdx_block(b'MEM.PAGE.ADD', gpa)


def tdx_extend(gpa, page):
    return b''.join(tdx_block(b'MR.EXTEND', gpa + o) + page[o:o + 256] for o in range(0, PAGE, 256))


# Firmware

def table(image):
    """The entries of the GUID table at the end of an image: GUID to data."""
    at = len(image) - 32 - 18
    length, guid = struct.unpack_from('<H16s', image, at)
    assert uuid.UUID(bytes_le=guid) == uuid.UUID('96b582de-1fb2-45f7-baea-a366c55a082d'), 'no GUID table'
    begin, entries = at + 18 - length, {}
    while at > begin:
        length, guid = struct.unpack_from('<H16s', image, at - 18)
        entries[str(uuid.UUID(bytes_le=guid))] = image[at - length:at - 18]
        at -= length
    return entries


def metadata(image, guid, signature, fields):
    at = len(image) - struct.unpack('<I', table(image)[guid])[0]
    found, _, version, count = struct.unpack_from('<4sIII', image, at)
    assert (found, version) == (signature, 1)
    return [struct.unpack_from(fields, image, at + 16 + i * struct.calcsize(fields)) for i in range(count)]


def firmware_snp(image):
    """All of the image, then the sections in the order of their table."""
    gpa, ld = (1 << 32) - len(image), bytes(48)
    for offset in range(0, len(image), PAGE):
        ld = snp_page(ld, NORMAL, gpa + offset, image[offset:offset + PAGE])
    kinds = {1: ZERO, 2: SECRETS, 3: CPUID, 4: ZERO, 0x10: ZERO}
    for gpa, length, kind in metadata(image, 'dc886566-984a-4798-a75e-5585a7bf67cc', b'ASEV', '<III'):
        for page in range(gpa, gpa + length, PAGE):
            ld = snp_page(ld, kinds[kind], page)
    return ld


def firmware_tdx(image, two_pass=False):
    """Section by section in the order of their table, page by page; two passes: a section's pages first, then their bytes."""
    h = hashlib.sha384()
    for offset, raw, gpa, length, _, attributes in metadata(image, 'e47a6535-984a-4798-865e-4685a7bf8ec2', b'TDVF', '<IIQQII'):
        if attributes & 2:
            continue
        data = image[offset:offset + raw].ljust(length, b'\0')
        added = [tdx_add(gpa + o) for o in range(0, length, PAGE)]
        bytes_ = [tdx_extend(gpa + o, data[o:o + PAGE]) if attributes & 1 else b'' for o in range(0, length, PAGE)]
        h.update(b''.join(added + bytes_ if two_pass else [x for pair in zip(added, bytes_) for x in pair]))
    return h.digest()


def demo_firmware():
    """What demo/firmware.h describes."""
    pages = [bytes(PAGE) if p % 16 == 5 else
             struct.pack('<1024I', *((w * 2654435761 + 97) & 0xffffffff for w in range(p * 1024, p * 1024 + 1024)))
             for p in range(1024)]
    image = bytearray(b''.join(pages))
    end, cfv = len(image), 0x84000
    base = (1 << 32) - end

    def entry(guid, data):
        return data + struct.pack('<H16s', len(data) + 18, uuid.UUID(guid).bytes_le)

    def place(at, data):
        image[at:at + len(data)] = data

    place(end - 0x400, struct.pack('<4sIII', b'ASEV', 16 + 2 * 12, 1, 2)
          + struct.pack('<III', 0x800000, 0x9000, 1) + struct.pack('<III', 0x80f000, 0x11000, 1))
    place(end - 0x310, uuid.UUID('e9eaf9f3-168e-44d5-a8eb-7f4d8738f6ae').bytes_le)
    place(end - 0x300, struct.pack('<4sIII', b'TDVF', 16 + 4 * 32, 1, 4)
          + struct.pack('<IIQQII', cfv, end - cfv, base + cfv, end - cfv, 0, 1)
          + struct.pack('<IIQQII', 0, cfv, base, cfv, 1, 0)
          + struct.pack('<IIQQII', 0, 0, 0x810000, 0x10000, 3, 0)
          + struct.pack('<IIQQII', 0, 0, 0x809000, 0x2000, 2, 0))
    entries = (entry('e47a6535-984a-4798-865e-4685a7bf8ec2', struct.pack('<I', 0x300))
               + entry('dc886566-984a-4798-a75e-5585a7bf67cc', struct.pack('<I', 0x400))
               + entry('00f771de-1a7e-4fcb-890e-68c77e2fb44e', struct.pack('<I', 0x80b004)))
    entries += struct.pack('<H16s', len(entries) + 18, uuid.UUID('96b582de-1fb2-45f7-baea-a366c55a082d').bytes_le)
    place(end - 0x20 - len(entries), entries)
    assert len(image) == end
    return bytes(image)


def units():
    """Single steps: from the empty digest, at address 0x1000 unless said."""
    start, gpa, zero = bytes(48), 0x1000, bytes(PAGE)
    pattern = bytes((7 * i + 3) & 255 for i in range(PAGE))
    bsp, ap = vmsa(0xfffffff0, 0x800f12, 1), vmsa(0x80b004, 0x800f12, 1)
    return {
        'snp normal, contents sha384("page")': snp_extend(start, NORMAL, gpa, sha384(b'page')),
        'snp normal, zero page': snp_page(start, NORMAL, gpa, zero),
        'snp normal, pattern': snp_page(start, NORMAL, gpa, pattern),
        'snp zero': snp_page(start, ZERO, gpa),
        'snp unmeasured': snp_page(start, UNMEASURED, gpa),
        'snp secrets': snp_page(start, SECRETS, gpa),
        'snp cpuid': snp_page(start, CPUID, gpa),
        'snp vmsa bsp, sha384': sha384(bsp),
        'snp vmsa ap, sha384': sha384(ap),
        'snp vmsa bsp, at its address': snp_page(start, VMSA, VMSA_GPA, bsp),
        'tdx empty': sha384(b''),
        'tdx add': sha384(tdx_add(gpa)),
        'tdx add, extend zero page': sha384(tdx_add(gpa) + tdx_extend(gpa, zero)),
        'tdx add, extend pattern': sha384(tdx_add(gpa) + tdx_extend(gpa, pattern)),
    }


def main(argv):
    if argv[:1] == ['--firmware']:
        with open(argv[1], 'rb') as f:
            image = f.read()
        ld, vcpus = firmware_snp(image), int(argv[2]) if len(argv) > 2 else 0
        for i in range(vcpus):
            ld = snp_page(ld, VMSA, VMSA_GPA, vmsa(0x80b004 if i else 0xfffffff0, 0x800f12, 1))
        out = {'snp': ld.hex()}
        if 'e47a6535-984a-4798-865e-4685a7bf8ec2' in table(image):
            out.update({'tdx': firmware_tdx(image).hex(), 'tdx two passes': firmware_tdx(image, True).hex()})
    else:
        image = demo_firmware()
        out = {'units': {name: value.hex() for name, value in units().items()},
               'firmware': {'snp': firmware_snp(image).hex(), 'tdx': firmware_tdx(image).hex()}}
    print(json.dumps(out, indent=1))


if __name__ == '__main__':
    main(sys.argv[1:])
