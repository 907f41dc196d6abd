#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The reference for launch digests prints what the C tests and the demo hold as constants."""
import json
import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir, 'style'))
from common import SOURCE, main, read, run  # noqa: E402

VALUE = re.compile(r'"([0-9a-f]{96})"')
HEADER = 'demo/firmware_digests.h'
TEST = 'tests/launch_digest.c'


def reference(part):
    result = run([sys.executable, os.path.join(SOURCE, 'tests/reference/launch.py')])
    if result.returncode:
        raise RuntimeError(result.stdout)
    return json.loads(result.stdout)[part]


def the_reference_gives_the_values_of_the_unit_tests():
    there = set(VALUE.findall(read(TEST)))
    return [f'{name}: {value} is not in {TEST}' for name, value in reference('units').items() if value not in there]


def the_reference_gives_the_digests_of_the_demo():
    there = {name.lower(): value for name, value in
             re.findall(r'#define DEMO_FIRMWARE_(\w+)_DIGEST[\s\\]*"([0-9a-f]{96})"', read(HEADER))}
    want = reference('firmware')
    return [] if there == want else [f'{HEADER} holds {there}', f'the reference gives {want}']


main([
    the_reference_gives_the_values_of_the_unit_tests,
    the_reference_gives_the_digests_of_the_demo,
])
