/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the program, its loader and an observer from outside agree on.
 *
 * The names below are planted facts: a monitor that reads guest memory must find them by name and
 * report these values. Renaming one is a change of interface.
 *
 *   name                 section  type      meaning
 *   ktstr_magic          .data    u64       KTSTR_MAGIC, never written
 *   ktstr_abi            .data    u32       KTSTR_ABI, counts changes of this table
 *   nr_selected          .bss     u64       calls of select_cpu
 *   nr_local             .bss     u64       tasks put straight into a CPU's local DSQ
 *   nr_enqueued          .bss     u64       tasks put into the shared queue
 *   nr_dispatched        .bss     u64       tasks moved from the shared queue to a local DSQ
 *   nr_stalled           .bss     u64       tasks enqueued while the stall was on
 *   nr_not_looked        .bss     u64       with --race, times the shared queue was taken for empty unseen
 *   unfair_pid           .bss     s32       with --unfair, who is starved; 0 while nobody is
 *   nr_running           .bss     u64       times a task was given a CPU
 *   vtime_now            .bss     u64       largest virtual time of a running task
 *   shared_queue         .bss     u32       enum ktstr_shared_queue, decided at init
 *   queue_hint           .bss     u32       with --race, whether the shared queue is worth a look
 *   phase                .bss     u32       enum ktstr_phase
 *   stall                .bss     u32       1 from the moment the stall is on; writable
 *   crash                .bss     u32       written non-zero: error at the next callback
 *   attached_at_ns       .bss     u64       CLOCK_MONOTONIC at init
 *   exit_record          .bss     struct    struct ktstr_exit_record
 *   exit_dump            .bss.dump char[]   the kernel's debug dump, zero-terminated
 *   stall_after_ns, crash_after_ns, slow_ns, fail_verify, fail_init, race, unfair, wrong_cpu,
 *   nr_cpus, loader_tgid, slice_ns
 *                        .rodata            the command line
 *
 * Maps: task_vtime (task storage, struct ktstr_task). DSQ: KTSTR_DSQ_ID, ordered by virtual time;
 * with --unfair KTSTR_LATE_DSQ_ID, which is served last.
 */
#ifndef SCX_KTSTR_INTF_H
#define SCX_KTSTR_INTF_H

#define KTSTR_MAGIC 0x6b747374725f3031ULL
#define KTSTR_ABI 1

#define KTSTR_DSQ_ID 0x6b74ULL
#define KTSTR_LATE_DSQ_ID 0x6b75ULL

#define KTSTR_REASON_LEN 128
#define KTSTR_MSG_LEN 1024
#define KTSTR_DUMP_LEN (256 * 1024)

enum ktstr_phase {
	KTSTR_LOADED = 0,
	KTSTR_ATTACHED = 1,
	KTSTR_STALLING = 2,
	KTSTR_CRASHED = 3,
	KTSTR_EXITED = 4,
};

enum ktstr_shared_queue {
	/* KTSTR_DSQ_ID, ordered by virtual time. */
	KTSTR_QUEUE_VTIME = 0,
	/* SCX_DSQ_GLOBAL, first in first out, slices by weight: the kernel offers no other. */
	KTSTR_QUEUE_GLOBAL = 1,
};

struct ktstr_exit_record {
	/* enum scx_exit_kind, written last: zero means that the rest is not there yet. */
	unsigned int kind;
	unsigned int reserved;
	long long exit_code;
	char reason[KTSTR_REASON_LEN];
	char msg[KTSTR_MSG_LEN];
};

struct ktstr_task {
	unsigned long long vtime;
	/* Slices used up without a pause. */
	unsigned int full_slices;
	unsigned int reserved;
};

#endif
