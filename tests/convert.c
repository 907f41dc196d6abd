/* SPDX-License-Identifier: MIT */
/* Conversion in place, with whatever this machine has to keep the host out: markers, or empty files. */
#include "tap.h"

#include "convert_cases.h"
