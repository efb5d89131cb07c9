/*
 * Preloaded into the emulator by the test of `coherence.c`: makes the gap in which the emulator may translate
 * what is about to be overwritten (accel/tcg/cputlb.c notdirty_write()) long enough to be met each time.
 *
 * The one call that opens the gap, of an exported function by an inlined one, is found in the emulator's
 * code and led here. Says on standard error if it is not found.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define GAP_US 300
#define PAGE 4096ul
#define OPCODE_CALL 0xe8

typedef void invalidate(uint64_t ram_address, unsigned size, uintptr_t host_pc);

static invalidate *real_invalidate;

static void invalidate_and_wait(uint64_t ram_address, unsigned size, uintptr_t host_pc)
{
	real_invalidate(ram_address, size, host_pc);
	/* INT3s, and what they are replaced by in the end, are written as single bytes. */
	if (size == 1)
		usleep(GAP_US);
}

/* The executable mapping that holds `address`. */
static bool text_around(uintptr_t address, uintptr_t *start, uintptr_t *end)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	char line[512];
	bool found = false;

	while (maps && !found && fgets(line, sizeof(line), maps))
		found = sscanf(line, "%lx-%lx r-xp", start, end) == 2 && *start <= address && address < *end;
	if (maps)
		fclose(maps);
	return found;
}

/* A place that a call in the text can reach, with a jump to `target`. */
static uint8_t *bridge(uintptr_t text, invalidate *target)
{
	for (uintptr_t below = text & ~(PAGE - 1); below > text - (1ul << 30); below -= 1ul << 20) {
		uint8_t *code = mmap((void *)below, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC,
				     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

		if (code == MAP_FAILED)
			continue;
		memcpy(code, "\x48\xb8", 2); /* mov $target, %rax */
		memcpy(code + 2, &target, sizeof(target));
		memcpy(code + 10, "\xff\xe0", 2); /* jmp *%rax */
		return code;
	}
	return NULL;
}

__attribute__((constructor)) static void begin(void)
{
	uintptr_t start, end;
	uint8_t *over;
	unsigned led = 0;

	real_invalidate = (invalidate *)dlsym(RTLD_DEFAULT, "tb_invalidate_phys_range_fast");
	if (!real_invalidate || !text_around((uintptr_t)real_invalidate, &start, &end) ||
	    !(over = bridge(start, invalidate_and_wait)) ||
	    mprotect((void *)start, end - start, PROT_READ | PROT_WRITE | PROT_EXEC)) {
		fprintf(stderr, "the gap cannot be widened\n");
		return;
	}
	for (uint8_t *at = (uint8_t *)start; at < (uint8_t *)end - 5; at++) {
		int32_t distance;

		memcpy(&distance, at + 1, sizeof(distance));
		if (*at != OPCODE_CALL || at + 5 + distance != (uint8_t *)real_invalidate)
			continue;
		distance = (int32_t)(over - (at + 5));
		memcpy(at + 1, &distance, sizeof(distance));
		led++;
	}
	mprotect((void *)start, end - start, PROT_READ | PROT_EXEC);
	if (!led)
		fprintf(stderr, "the gap cannot be widened: nothing calls %p\n", (void *)real_invalidate);
}
