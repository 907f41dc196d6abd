# SPDX-License-Identifier: MIT
# A thin front of meson. `make help` lists the targets.
BUILD ?= build
MESON_ARGS ?=
comma := ,
# Which sanitizer stops at what, and how long a case may take there (see tests/tap.h).
ASAN_ENV = ASAN_OPTIONS=abort_on_error=0:detect_stack_use_after_return=1:verify_asan_link_order=0 \
	UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 GMEM_TEST_TIMEOUT_FACTOR=4
TSAN_ENV = TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1:die_after_fork=0 GMEM_TEST_TIMEOUT_FACTOR=8

ifdef PREFIX
override MESON_ARGS += --prefix=$(PREFIX)
endif

# $(call build,FOLDER,ARGUMENTS OF MESON SETUP): configures the folder, once or with new MESON_ARGS, and builds.
build = { if [ ! -f $(1)/build.ninja ]; then meson setup $(1) $(2) $(MESON_ARGS); \
	elif [ -n "$(strip $(MESON_ARGS))" ]; then meson configure $(1) $(MESON_ARGS); fi; } && ninja -C $(1)

.PHONY: all run test bench asan tsan arm64 test-oracle fuzz-smoke release install clean help
.NOTPARALLEL:

all:
	@scripts/setup build
	@$(call build,$(BUILD))

run:
	@scripts/setup build run
	@$(call build,$(BUILD))
	@demo/run $(BUILD)

test:
	@scripts/setup build run
	@$(call build,$(BUILD))
	@scripts/run-tests $(BUILD) $(TEST_ARGS)

asan:
	@scripts/setup build sanitizers
	@$(call build,build-asan,-Db_sanitize=address$(comma)undefined -Db_lundef=false)
	@$(ASAN_ENV) scripts/run-tests build-asan --suite unit --suite kernel --timeout-multiplier 4 $(TEST_ARGS)

tsan:
	@scripts/setup build sanitizers
	@$(call build,build-tsan,-Db_sanitize=thread -Db_lundef=false)
	@$(TSAN_ENV) scripts/with-fixed-layout scripts/run-tests build-tsan --suite unit --suite kernel \
		--timeout-multiplier 8 $(TEST_ARGS)

arm64:
	@scripts/setup build arm64
	@scripts/test-arm64 build-arm64 $(TEST_ARGS)

# Its kernel is built once, into build-oracle/; TEST_ARGS: names of test programs.
test-oracle:
	@scripts/setup build oracle
	@$(call build,$(BUILD))
	@scripts/test-oracle $(BUILD) $(TEST_ARGS)

fuzz-smoke:
	@scripts/setup build fuzz
	@export CC=clang; $(call build,build-fuzz,-Dfuzz=true -Dtests=false -Db_sanitize=address$(comma)undefined -Db_lundef=false \
		-Dc_args=-fsanitize=fuzzer-no-link)
	@scripts/fuzz-smoke build-fuzz

# What is measured and installed: optimised, without the lock checker.
release:
	@scripts/setup build
	@$(call build,build-release,--buildtype=release -Dtests=false)

bench: release
	@scripts/setup run
	@bench/run build-release

install: release
	@meson install -C build-release --no-rebuild

clean:
	rm -rf build build-asan build-tsan build-arm64 build-fuzz build-release build-oracle

help:
	@echo 'make              build the library and the command into build/'
	@echo 'make run          see it work: numbered parts, from an embedded restore to a Linux guest'
	@echo 'make test         build and run every test (TEST_ARGS="--suite unit", ...; GMEM_REQUIRE=kvm,uffd,linux)'
	@echo 'make bench        measure, each number beside its baseline'
	@echo 'make asan         unit and kernel tests with AddressSanitizer and UBSan'
	@echo 'make tsan         unit and kernel tests with ThreadSanitizer'
	@echo 'make arm64        cross-build for arm64 and run the unit tests under qemu-user'
	@echo 'make test-oracle  run tests in an emulated machine whose kernel has all that this one may lack (first: 5 minutes, 1.2 GB)'
	@echo 'make fuzz-smoke   20 seconds of each fuzz target'
	@echo 'make install      optimised build, installed (PREFIX=/usr/local, DESTDIR=)'
	@echo 'make clean        remove the build folders'

