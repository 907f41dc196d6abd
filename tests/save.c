/* SPDX-License-Identifier: MIT */
/* gmem run and gmem save on a real QEMU: round trips, refusals, failures. */
#include "tap.h"
#include "vm_util.h"

#define MEMFD "-object memory-backend-memfd,id=mem,size=64M,share=on -machine pc,memory-backend=mem -m 64 "

static void check_image_is(const struct vm *vm, const char *name, const char *text)
{
	char buf[64];
	int fd = open(vm_path(vm, name), O_RDONLY | O_CLOEXEC);
	ssize_t n = read(fd, buf, sizeof(buf));

	close(fd);
	CHECK_EQ(n, (ssize_t)strlen(text));
	CHECK_MEM(buf, text, strlen(text));
}

/* Nothing is left beside the files the case made. */
static void check_no_temporaries(const struct vm *vm)
{
	char line[160];

	snprintf(line, sizeof(line),
		 "ls -A '%s' | grep -vxE 'boot.img|out|qemu.out|qmp|serial|vm.gmem|disk.img|private'", vm->dir);
	CHECK(system(line) != 0);
}

static void round_trip(bool by_gmem, const char *machine, const char *options)
{
	char out[4096], line[512], *before = malloc(1 << 20), *after = malloc(1 << 20);
	struct gmem_qmp *qmp;
	size_t n, m;
	struct vm vm;

	vm_folder(&vm);
	vm_start(&vm, by_gmem, machine);
	vm_counts(&vm, 0, 200);
	snprintf(line, sizeof(line), "save --qmp @/qmp --quit %s @/vm.gmem", options);
	CHECK_EQ(vm_run_gmem(&vm, out, line, 0), 0);
	CHECK_EQ(waitpid(vm.pid, NULL, WNOHANG), vm.pid);
	n = vm_read(&vm, "serial", before, 1 << 20);
	qmp = vm_restore(&vm, vm_path(&vm, "vm.gmem"), NULL);
	vm_check_status(qmp, "paused");
	CHECK_OK(gmem_device_state_cont(qmp));
	vm_counts(&vm, 0, 200);
	m = vm_read(&vm, "serial", after, 1 << 20);
	/* The guest goes on with the letter after the last one, and counts without a gap. */
	vm_check_letters(before, n);
	vm_check_letters(after, m);
	CHECK_EQ(after[0], 'A' + (before[n - 1] - 'A' + 1) % 16);
	/* What came back is saved like any other, by either monitor; and once more. */
	gmem_qmp_close(qmp);
	CHECK_EQ(vm_run_gmem(&vm, out, "save --qmp @/private @/vm.gmem", 0), 0);
	CHECK_EQ(vm_run_gmem(&vm, out, "save --qmp @/qmp --quit @/vm.gmem", 0), 0);
	CHECK_EQ(waitpid(vm.pid, NULL, 0), vm.pid);
	n = vm_read(&vm, "serial", before, 1 << 20);
	qmp = vm_restore(&vm, vm_path(&vm, "vm.gmem"), NULL);
	CHECK_OK(gmem_device_state_cont(qmp));
	vm_counts(&vm, 0, 200);
	m = vm_read(&vm, "serial", after, 1 << 20);
	vm_check_letters(before, n);
	vm_check_letters(after, m);
	CHECK_EQ(after[0], 'A' + (before[n - 1] - 'A' + 1) % 16);
	gmem_qmp_close(qmp);
	vm_folder_remove(&vm);
	free(before);
	free(after);
}

TEST_TIMEOUT(a_pc_comes_back, 60)
{
	round_trip(true, "-machine pc -m 64", "");
}

TEST_TIMEOUT(a_q35_of_4_gib_comes_back_from_an_uncompressed_image, 120)
{
	round_trip(true, "-M q35 -m 4G", "--compress none");
}

TEST_TIMEOUT(two_memfds_come_back, 60)
{
	round_trip(false,
		   "-m 128 -object memory-backend-memfd,id=m1,size=64M,share=on "
		   "-object {\"qom-type\":\"memory-backend-memfd\",\"id\":\"m0\",\"size\":67108864,\"share\":true} "
		   "-numa node,memdev=m0 -numa node,memdev=m1",
		   "--chunk 16K --level 3");
}

TEST_TIMEOUT(a_shared_file_comes_back, 60)
{
	round_trip(false,
		   "-m 64 -object memory-backend-file,id=pc.ram,size=64M,share=on,mem-path=@/ram -machine "
		   "q35,memory-backend=pc.ram",
		   "");
}

TEST_TIMEOUT(a_machine_goes_on_after_its_save, 60)
{
	char out[4096];
	struct gmem_qmp *qmp;
	json_t *caps, *item;
	struct stat st;
	struct vm vm;
	size_t i;

	vm_folder(&vm);
	vm_start(&vm, false, MEMFD);
	vm_counts(&vm, 0, 100);
	CHECK_EQ(vm_run_gmem(&vm, out, "save --qmp @/qmp @/vm.gmem", 0), 0);
	CHECK_HAS(out, "machine stopped");
	CHECK_EQ(stat(vm_path(&vm, "vm.gmem"), &st), 0);
	CHECK_EQ(st.st_mode & 0777, 0600);
	CHECK_EQ(stat(vm_path(&vm, "serial"), &st), 0);
	vm_counts(&vm, (size_t)st.st_size, 100);
	qmp = vm_qmp(&vm);
	vm_check_status(qmp, "running");
	CHECK_OK(gmem_qmp_exec(qmp, "query-migrate-capabilities", NULL, &caps));
	json_array_foreach(caps, i, item)
		if (!strcmp(json_string_value(json_object_get(item, "capability")), "x-ignore-shared"))
			CHECK(json_is_false(json_object_get(item, "state")));
	json_decref(caps);
	gmem_qmp_close(qmp);
	/* And once more: the state after a save is an ordinary one. */
	CHECK_EQ(vm_run_gmem(&vm, out, "save --qmp @/qmp @/vm.gmem", 0), 0);
	check_no_temporaries(&vm);
	vm_folder_remove(&vm);
}

TEST_TIMEOUT(a_paused_machine_stays_paused, 60)
{
	char out[4096];
	struct gmem_qmp *qmp;
	struct vm vm;

	vm_folder(&vm);
	vm_start(&vm, false, MEMFD "-S");
	CHECK_EQ(vm_run_gmem(&vm, out, "save --qmp @/qmp @/vm.gmem", 0), 0);
	CHECK_HAS(out, "was paused");
	qmp = vm_qmp(&vm);
	vm_check_status(qmp, "postmigrate");
	CHECK_EQ(access(vm_path(&vm, "serial"), F_OK), 0);
	gmem_qmp_close(qmp);
	CHECK_EQ(vm_run_gmem(&vm, out, "save --qmp @/qmp @/vm.gmem", 0), 1);
	CHECK_HAS(out, "let it go on first");
	vm_folder_remove(&vm);
}

TEST_TIMEOUT(two_memories_of_one_size_are_not_confused, 60)
{
	static const char *const ids[] = { "m1", "m0" };
	struct gmem_ram *ram;
	struct gmem_qmp *qmp;
	char line[64], path[64], *text, want[32];
	struct vm vm;
	size_t i, k;
	int fd;

	vm_folder(&vm);
	vm_start(&vm, false,
		 "-m 128 -object memory-backend-memfd,id=m1,size=64M,share=on -object "
		 "memory-backend-memfd,id=m0,size=64M,share=on "
		 "-numa node,memdev=m0 -numa node,memdev=m1 -S");
	qmp = vm_qmp(&vm);
	CHECK_OK(gmem_ram_find(qmp, vm.pid, &ram));
	CHECK_EQ(ram->n, 2);
	for (i = 0; i < 2; i++) {
		for (k = 0; k < 2 && strcmp(ram->backends[k].id, ids[i]); k++)
			;
		CHECK(k < 2);
		CHECK_EQ(ram->backends[k].size, 64 << 20);
		CHECK_EQ(ram->backends[k].gpa, i ? 0 : 64 << 20);
		/* A word written to the file of this id is where QEMU has this id. */
		snprintf(path, sizeof(path), "/proc/self/fd/%d", ram->backends[k].fd);
		fd = open(path, O_RDWR | O_CLOEXEC);
		CHECK(fd >= 0);
		CHECK_EQ(pwrite(fd, i ? "zero" : "one!", 4, 0x200000), 4);
		close(fd);
		snprintf(line, sizeof(line), "xp /4cb 0x%llx", (unsigned long long)ram->backends[k].gpa + 0x200000);
		CHECK_OK(gmem_qmp_hmp(qmp, line, &text));
		snprintf(want, sizeof(want), i ? "'z' 'e' 'r' 'o'" : "'o' 'n' 'e' '!'");
		CHECK_HAS(text, want);
		free(text);
	}
	gmem_ram_free(ram);
	gmem_qmp_close(qmp);
	vm_folder_remove(&vm);
}

static void refused(const char *options, const char *why)
{
	char out[4096];
	struct gmem_qmp *qmp;
	struct vm vm;

	vm_folder(&vm);
	vm_file(&vm, "vm.gmem", "older", 5, 5);
	vm_file(&vm, "disk.img", "disk", 4, 1 << 20);
	vm_start(&vm, false, options);
	CHECK_EQ(vm_run_gmem(&vm, out, "save --qmp @/qmp @/vm.gmem", 0), 1);
	CHECK_HAS(out, why);
	CHECK_EQ(strcspn(out, "\n") + 1, strlen(out)); /* one line */
	check_image_is(&vm, "vm.gmem", "older");
	check_no_temporaries(&vm);
	qmp = vm_qmp(&vm);
	vm_check_status(qmp, "running");
	gmem_qmp_close(qmp);
	vm_folder_remove(&vm);
}

TEST_TIMEOUT(ram_that_cannot_be_read_is_refused_by_name, 120)
{
	refused("-m 64", "RAM 'pc.ram' is anonymous memory");
	refused("-m 64 -object memory-backend-memfd,id=mem,size=64M,share=off -machine memory-backend=mem",
		"RAM 'mem' was started with share=off");
	refused("-m 64 -object memory-backend-ram,id=mem,size=64M,share=on -machine memory-backend=mem",
		"RAM 'mem' is anonymous memory");
	refused(MEMFD "-object memory-backend-memfd,id=idle,size=16M,share=on",
		"'idle' is not part of the guest's memory");
}

TEST_TIMEOUT(a_device_that_shares_memory_is_refused_by_name, 60)
{
	refused(MEMFD "-object memory-backend-memfd,id=sh,size=16M,share=on -device ivshmem-plain,memdev=sh,id=shm0",
		"device 'shm0' (ivshmem-plain)");
}

TEST_TIMEOUT(disks_that_cannot_be_kept_still_are_refused_by_name, 120)
{
	refused(MEMFD "-hda disk.img", "disk.img' is written by the guest");
	refused(MEMFD "-blockdev driver=file,node-name=f,filename=disk.img -device virtio-blk-pci,drive=f",
		"disk.img' is written by the guest");
	refused(MEMFD "-drive file=disk.img,format=raw,if=virtio -snapshot", "-snapshot");
	refused(MEMFD "-drive file=disk.img,format=raw,if=virtio,snapshot=on", "has snapshot=on");
}

/* qemu-io prints to QEMU's standard output, not to the monitor. */
static void disk_io(const struct vm *vm, struct gmem_qmp *qmp, const char *device, const char *io, int value)
{
	char line[96], *text, *said = calloc(1, 1 << 16);

	CHECK_EQ(truncate(vm_path(vm, "qemu.out"), 0), 0);
	snprintf(line, sizeof(line), "qemu-io %s \"%s -P %d 0 4096\"", device, io, value);
	CHECK_OK(gmem_qmp_hmp(qmp, line, &text));
	free(text);
	for (int i = 0; i < 200 && !strstr(said, "ops"); i++) {
		vm_read(vm, "qemu.out", said, 1 << 16);
		vm_sleep_ms(10);
	}
	CHECK_HAS(said, "4096/4096 bytes");
	if (strstr(said, "failed"))
		FAIL("%s of %d: %s", io, value, said);
	free(said);
}

/* Writes to a disk as the guest would: through QEMU's own block layer. */
static void write_disk(const struct vm *vm, struct gmem_qmp *qmp, const char *device, int value)
{
	disk_io(vm, qmp, device, "write", value);
}

static void check_disk(const struct vm *vm, struct gmem_qmp *qmp, const char *device, int value)
{
	disk_io(vm, qmp, device, "read", value);
}

TEST_TIMEOUT(a_disk_that_moves_on_is_snapshotted, 120)
{
	struct gmem_saved *saved;
	struct gmem_qmp *qmp;
	char out[4096];
	struct vm vm;

	vm_folder(&vm);
	if (!vm_in_path("qemu-img"))
		SKIP("qemu", "no qemu-img; to run it: apt-get install qemu-utils");
	vm_file(&vm, "disk.img", "disk", 4, 1 << 20);
	vm_start(&vm, true, "-m 64 -drive file=disk.img,format=raw,if=virtio,id=dd");
	vm_counts(&vm, 0, 50);
	qmp = vm_qmp(&vm);
	write_disk(&vm, qmp, "dd", 1);
	gmem_qmp_close(qmp);
	CHECK_EQ(vm_run_gmem(&vm, out, "save --qmp @/qmp @/vm.gmem", 0), 0);
	CHECK_HAS(out, "disk.img is frozen: the machine now writes to ");
	qmp = vm_qmp(&vm);
	vm_check_status(qmp, "running");
	check_disk(&vm, qmp, "dd", 1);
	write_disk(&vm, qmp, "dd", 2);
	gmem_qmp_close(qmp);
	/* A second save freezes the overlay. */
	CHECK_EQ(vm_run_gmem(&vm, out, "save --qmp @/qmp @/vm2.gmem", 0), 0);
	qmp = vm_qmp(&vm);
	write_disk(&vm, qmp, "dd", 3);
	gmem_qmp_close(qmp);
	vm_kill(&vm);
	for (int i = 0; i < 2; i++) {
		qmp = vm_restore(&vm, vm_path(&vm, "vm.gmem"), &saved);
		CHECK_OK(gmem_device_state_cont(qmp));
		check_disk(&vm, qmp, "dd", 1);
		write_disk(&vm, qmp, "dd", 9);
		vm_counts(&vm, 0, 50);
		gmem_qmp_close(qmp);
		gmem_saved_free(saved);
		vm_kill(&vm);
	}
	qmp = vm_restore(&vm, vm_path(&vm, "vm2.gmem"), NULL);
	CHECK_OK(gmem_device_state_cont(qmp));
	check_disk(&vm, qmp, "dd", 2);
	gmem_qmp_close(qmp);
	vm_folder_remove(&vm);
}

TEST_TIMEOUT(a_disk_that_changed_is_noticed, 60)
{
	struct gmem_image *image;
	struct gmem_saved *saved;
	struct gmem_qmp *qmp;
	char out[4096];
	struct vm vm;
	size_t len;
	void *data;

	vm_folder(&vm);
	vm_file(&vm, "disk.img", "disk", 4, 1 << 20);
	vm_start(&vm, true, "-m 64 -hda disk.img");
	vm_counts(&vm, 0, 50);
	CHECK_EQ(vm_run_gmem(&vm, out, "save --qmp @/qmp --quit @/vm.gmem", 0), 0);
	waitpid(vm.pid, NULL, 0);
	qmp = vm_restore(&vm, vm_path(&vm, "vm.gmem"), NULL);
	CHECK_OK(gmem_device_state_cont(qmp));
	write_disk(&vm, qmp, "ide0-hd0", 7);
	gmem_qmp_close(qmp);
	vm_kill(&vm);
	CHECK_OK(gmem_image_open(vm_path(&vm, "vm.gmem"), &image));
	CHECK_OK(gmem_image_section(image, GMEM_SECTION_QEMU, &data, &len));
	gmem_image_close(image);
	CHECK_OK(gmem_saved_parse(data, len, &saved));
	free(data);
	CHECK_ERR(gmem_disks_check(saved), -ESTALE);
	CHECK_HAS(gmem_last_error(), "disk.img' changed since the save");
	gmem_saved_free(saved);
	vm_folder_remove(&vm);
}

/* A disk that is full: the machine goes on, the image that was there stays. */
TEST_TIMEOUT(a_failing_save_changes_nothing, 60)
{
	static const char *const ends[] = { "", "--quit " };
	struct gmem_qmp *qmp;
	char out[4096], line[128];
	struct stat st;
	struct vm vm;

	vm_folder(&vm);
	vm_file(&vm, "vm.gmem", "older", 5, 5);
	vm_start(&vm, true, "-m 64");
	vm_counts(&vm, 0, 50);
	for (size_t i = 0; i < 2; i++) {
		snprintf(line, sizeof(line), "save --qmp @/qmp %s@/vm.gmem", ends[i]);
		CHECK_EQ(vm_run_gmem(&vm, out, line, 100000), 1);
		check_image_is(&vm, "vm.gmem", "older");
		check_no_temporaries(&vm);
		qmp = vm_qmp(&vm);
		vm_check_status(qmp, "running");
		gmem_qmp_close(qmp);
		CHECK_EQ(stat(vm_path(&vm, "serial"), &st), 0);
		vm_counts(&vm, (size_t)st.st_size, 50);
	}
	CHECK_EQ(vm_run_gmem(&vm, out, "save --qmp @/qmp @/none/vm.gmem", 0), 1);
	CHECK_EQ(vm_run_gmem(&vm, out, "save --qmp @/qmp @/vm.gmem", 0), 0);
	vm_folder_remove(&vm);
}

/* A machine with 512 MiB of data, and a save of it that has begun to write. */
static pid_t save_under_way(struct vm *vm)
{
	struct gmem_ram *ram;
	struct gmem_qmp *qmp;
	char path[64], line[8192], *data = malloc(1 << 20);
	uint64_t seed = tap_seed();
	pid_t pid;
	int fd;

	vm_folder(vm);
	vm_start(vm, true, "-m 1G");
	vm_counts(vm, 0, 50);
	qmp = vm_qmp(vm);
	CHECK_OK(gmem_ram_find(qmp, vm->pid, &ram));
	gmem_qmp_close(qmp);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", ram->backends[0].fd);
	fd = open(path, O_RDWR | O_CLOEXEC);
	for (size_t i = 0; i < 1 << 20; i += 8) {
		uint64_t word = tap_rand(&seed);

		memcpy(data + i, &word, 8);
	}
	for (int i = 0; i < 512; i++)
		CHECK_EQ(pwrite(fd, data, 1 << 20, (off_t)(i + 64) << 20), 1 << 20);
	close(fd);
	free(data);
	gmem_ram_free(ram);
	snprintf(line, sizeof(line), "%s save --qmp @/qmp --level 9 @/vm.gmem", vm_gmem());
	pid = vm_spawn(vm, "out", line, 0);
	snprintf(line, sizeof(line),
		 "for i in $(seq 500); do find '%s' -size +1000k -name '.vm.gmem*' | grep -q . && exit 0; "
		 "sleep 0.01; done; exit 1",
		 vm->dir);
	CHECK_EQ(system(line), 0);
	CHECK(access(vm_path(vm, "vm.gmem"), F_OK) < 0);
	return pid;
}

static void check_failed(const struct vm *vm, pid_t pid, const char *why)
{
	char out[4096], *last;
	int status;

	CHECK_EQ(waitpid(pid, &status, 0), pid);
	vm_read(vm, "out", out, sizeof(out));
	printf("%s", out);
	CHECK(WIFEXITED(status));
	CHECK_EQ(WEXITSTATUS(status), 1);
	last = strstr(out, "gmem: ");
	CHECK_HAS(last, why);
	CHECK_EQ(strcspn(last, "\n") + 1, strlen(last)); /* one line */
	CHECK(access(vm_path(vm, "vm.gmem"), F_OK) < 0);
	check_no_temporaries(vm);
}

TEST_TIMEOUT(a_qemu_that_dies_under_a_save_leaves_nothing, 120)
{
	struct vm vm;
	pid_t pid = save_under_way(&vm);

	vm_kill(&vm);
	check_failed(&vm, pid, "closed the connection during 'cont'");
	vm_folder_remove(&vm);
}

TEST_TIMEOUT(an_interrupted_save_lets_the_machine_go_on, 120)
{
	struct gmem_qmp *qmp;
	struct stat st;
	struct vm vm;
	pid_t pid = save_under_way(&vm);

	CHECK_EQ(kill(pid, SIGTERM), 0);
	check_failed(&vm, pid, "interrupted by signal 15");
	qmp = vm_qmp(&vm);
	vm_check_status(qmp, "running");
	gmem_qmp_close(qmp);
	CHECK_EQ(stat(vm_path(&vm, "serial"), &st), 0);
	vm_counts(&vm, (size_t)st.st_size, 50);
	vm_folder_remove(&vm);
}

TEST_TIMEOUT(wrong_arguments_are_named, 60)
{
	static const struct {
		const char *args, *text;
		int status;
	} cases[] = {
		{ "save", "--qmp SOCKET is needed", 2 },
		{ "save --qmp", "missing value", 2 },
		{ "save --qmp x", "no image FILE", 2 },
		{ "save --qmp x a b", "more than one FILE", 2 },
		{ "save --qmp x --compress lz4 a", "zstd or none", 2 },
		{ "save --qmp x --level 20 a", "1 to 19", 2 },
		{ "save --qmp x --chunk 3000 a", "power of two", 2 },
		{ "save --qmp x --pid me a", "not a process id", 2 },
		{ "save --qmp x --what a", "--what", 2 },
		{ "save --qmp @/nothing a", "no such socket", 1 },
		{ "save --qmp @/boot.img a", "boot.img", 1 },
		{ "run", "no program given", 2 },
		{ "run --what -- x", "--what", 2 },
		{ "run -- no-such-qemu -m 64", "no-such-qemu: not found", 1 },
		{ "run -- qemu-system-x86_64 -m 64 -mem-path /dev/shm", "-mem-path", 1 },
		{ "run -- qemu-system-x86_64 -m 6x4", "-m: '6x4' is not a size", 1 },
		{ "run -- qemu-system-x86_64 -nonsense", "unknown option '-nonsense'", 1 },
		{ "run -- qemu-system-x86_64 -object memory-backend-ram,id=a,size=1M",
		  "a memory backend is given already", 1 },
		{ "run -- qemu-system-x86_64 -M pc,memory-backend=q", "memory-backend=q", 1 },
		{ "run -- qemu-system-x86_64 -numa node,memdev=q", "memdev=q", 1 },
	};
	char out[4096];
	struct vm vm;

	vm_folder(&vm);
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		CHECK_EQ(vm_run_gmem(&vm, out, cases[i].args, 0), cases[i].status);
		CHECK_HAS(out, cases[i].text);
	}
	vm_folder_remove(&vm);
}
