/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Plants the facts of plant.h, once, when user space runs it. It schedules nothing and is loaded
 * only with --plant, so that the scheduler stays what it is.
 */
#include "kernel.bpf.h"
#include "plant.h"

char _license[] SEC("license") = "GPL";

#define MAP_TYPE_HASH 1
#define MAP_TYPE_ARRAY 2
#define MAP_TYPE_PERCPU_HASH 5
#define MAP_TYPE_PERCPU_ARRAY 6
#define MAP_TYPE_LRU_HASH 9
#define MAP_TYPE_RINGBUF 27
#define MAP_TYPE_CGRP_STORAGE 32
#define MAP_TYPE_ARENA 33
#define MAP_F_MMAPABLE (1 << 10)
#define ARENA_PAGES 64

extern void __arena *bpf_arena_alloc_pages(void *map, void __arena *addr, u32 page_cnt, int node_id,
					   u64 flags) __ksym __weak;

struct cgroup;

struct css_set {
	struct cgroup *dfl_cgrp;
} CORE;

/* The kernel's, as far as the cgroup is concerned. */
struct task_struct___cgroups {
	struct css_set *cgroups;
} CORE;

struct {
	__uint(type, MAP_TYPE_ARENA);
	__uint(map_flags, MAP_F_MMAPABLE);
	__uint(max_entries, ARENA_PAGES);
	__ulong(map_extra, 0x1ull << 44);
} plant_arena SEC(".maps");

struct {
	__uint(type, MAP_TYPE_ARRAY);
	__uint(max_entries, PLANT_SLOTS);
	__type(key, u32);
	__type(value, struct plant_casts);
} plant_casts SEC(".maps");

struct {
	__uint(type, MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 3);
	__type(key, u32);
	__type(value, struct plant_point);
} plant_percpu SEC(".maps");

struct {
	__uint(type, MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, struct plant_key);
	__type(value, struct plant_value);
} plant_hash SEC(".maps");

struct {
	__uint(type, MAP_TYPE_LRU_HASH);
	__uint(max_entries, 64);
	__type(key, u32);
	__type(value, u64);
} plant_lru SEC(".maps");

struct {
	__uint(type, MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 16);
	__type(key, u64);
	__type(value, u32);
} plant_pcpu_hash SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct plant_task);
} plant_tasks SEC(".maps");

struct {
	__uint(type, MAP_TYPE_CGRP_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct plant_point);
} plant_cgroups SEC(".maps");

struct {
	__uint(type, MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} plant_ring SEC(".maps");

const volatile u32 plant_constant = 0xc0ffee;
const char plant_greeting[] = "planted by scx-ktstr";

struct plant_scalars plant_scalars SEC(".data") = {
	.u8v = 200,
	.s8v = -100,
	.u16v = 60000,
	.s16v = -30000,
	.u32v = 4000000000u,
	.s32v = -2000000000,
	.u64v = 0xfedcba9876543210ULL,
	.s64v = -0x123456789abcdefLL,
	.yes = true,
	.letter = 'k',
	.colour = PLANT_BLUE,
	.unknown = (enum plant_colour)77,
	.wide = PLANT_WIDE,
	.bits = { .three = 5, .thirteen = 4242, .minus = -7, .forty = 0x89abcdef01ULL, .last = 1 },
	.either = { .number = 0x0000000000420017ULL },
	.points = { { 1, -1 }, { 20, -20 }, { 300, -300 } },
	.grid = { { 1, 2, 3, 4 }, { 5, 6, 7, 8 } },
	.text = "forty-two",
};

/* The first node of the list, as the program sees it. */
struct plant_node __arena *plant_list = 0;
/* The same address, as a number. */
u64 plant_list_number = 0;
struct plant_node __arena *plant_second = 0;
/* What was the second node's number, and numbers of other kinds: none of them is a pointer. */
u64 plant_count = 0;
u64 plant_hashed = 0;
struct plant_node __arena *plant_ring_of_nodes = 0;
u32 plant_done = 0;
u64 plant_sum = 0;

static struct plant_node __arena *build_list(void __arena *page)
{
	struct plant_node __arena *nodes = page;
	struct plant_node __arena *next = 0;
	int i;

	/* Unrolled, adjacent zeroes become one store, and clang forgets which address space it is in. */
#pragma clang loop unroll(disable)
	for (i = PLANT_NODES - 1; i >= 0; i--) {
		struct plant_node __arena *node = &nodes[i];

		barrier_var(i);
		node->id = 100 + i;
		node->next = next;
		node->payload[0] = i;
		node->payload[1] = i * i;
		node->payload[2] = i * i * i;
		node->sum = i + i * i + i * i * i;
		next = node;
	}
	return next;
}

/* What a scheduler does when it comes back to a pointer that it kept as a number. */
static __noinline u64 follow(u32 slot)
{
	struct plant_casts *casts = bpf_map_lookup_elem(&plant_casts, &slot);
	struct plant_node __arena *node;
	struct plant_node __arena *joined;
	struct plant_leaf __arena *leaf;

	if (!casts)
		return 0;
	plant_sum += casts->plain * 3;
	node = (struct plant_node __arena *)casts->node;
	if (node) {
		plant_sum += node->id;
		plant_sum += node->sum;
		if (node->next)
			plant_sum += node->next->payload[2];
	}
	plant_second = (struct plant_node __arena *)casts->second;
	plant_list_number = (u64)plant_list;
	if (plant_list)
		plant_sum += plant_list->sum;
	plant_count += 1;
	plant_hashed = (casts->cookie * 0x9e3779b97f4a7c15ULL) >> 7;
	leaf = (struct plant_leaf __arena *)casts->leaf;
	joined = (struct plant_node __arena *)casts->joined;
	if (casts->cookie & 1) {
		plant_sum += 17;
	} else {
		plant_sum += 19;
		bpf_get_smp_processor_id();
	}
	if (joined) {
		plant_sum += joined->id;
		plant_sum += joined->payload[1];
		plant_sum += joined->sum;
	}
	if (leaf) {
		plant_sum += leaf->depth;
		plant_sum += leaf->width;
		plant_sum += leaf->colour;
		plant_sum += leaf->back;
	}
	return casts->mixed;
}

static void plant_percpu_values(u32 nr_cpus)
{
	u64 pcpu_key = 0x1122334455667788ULL;
	u32 cpu, key, zero = 0;

	bpf_map_update_elem(&plant_pcpu_hash, &pcpu_key, &zero, 0);
	for (cpu = 0; cpu < PLANT_CPUS && cpu < nr_cpus; cpu++) {
		u32 *counter = bpf_map_lookup_percpu_elem(&plant_pcpu_hash, &pcpu_key, cpu);

		if (counter)
			*counter = 5000 + cpu;
		for (key = 0; key < 3; key++) {
			u32 index = key;
			struct plant_point *point;

			point = bpf_map_lookup_percpu_elem(&plant_percpu, &index, cpu);
			if (!point)
				continue;
			point->x = 1000 * (key + 1) + cpu;
			point->y = -(s32)cpu;
		}
	}
}

static void plant_hashes(void)
{
	u32 i;

	for (i = 0; i < PLANT_KEYS; i++) {
		struct plant_key key = { .group = i, .member = 10 * i };
		struct plant_value value = { .square = (u64)i * i, .at = { (s32)i, -(s32)i }, .tag = "tag" };
		u32 small = 1000 + i;
		u64 cube = (u64)i * i * i;

		value.tag[3] = '0' + i;
		bpf_map_update_elem(&plant_hash, &key, &value, 0);
		bpf_map_update_elem(&plant_lru, &small, &cube, 0);
	}
}

static void plant_storage(struct plant_leaf __arena *leaf)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct plant_task *mine;

	mine = bpf_task_storage_get(&plant_tasks, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!mine)
		return;
	mine->cookie = 0x7461736bULL;
	mine->pid = task->pid;
	mine->colour = PLANT_GREEN;
	mine->leaf = (u64)leaf;
}

static void plant_records(void)
{
	struct plant_record record = { .serial = 1, .kind = 11, .body = { 111, 1111 } };
	struct plant_record *dropped;

	bpf_ringbuf_output(&plant_ring, &record, sizeof(record), 0);
	dropped = bpf_ringbuf_reserve(&plant_ring, 40, 0);
	if (dropped)
		bpf_ringbuf_discard(dropped, 0);
	record.serial = 2;
	record.kind = 22;
	bpf_ringbuf_output(&plant_ring, &record, sizeof(record), 0);
}

SEC("syscall")
int plant(struct plant_args *args)
{
	struct plant_node __arena *node;
	struct plant_leaf __arena *leaf;
	struct plant_casts *casts;
	void __arena *pages;
	u32 slot = 2;

	pages = bpf_arena_alloc_pages(&plant_arena, 0, 2, -1, 0);
	if (!pages)
		return 1;
	node = build_list(pages);
	plant_list = node;
	/* Two nodes that point at each other. */
	plant_ring_of_nodes = (struct plant_node __arena *)(pages + 2048);
	plant_ring_of_nodes->id = 500;
	plant_ring_of_nodes->next = plant_ring_of_nodes + 1;
	(plant_ring_of_nodes + 1)->id = 501;
	(plant_ring_of_nodes + 1)->next = plant_ring_of_nodes;

	leaf = (struct plant_leaf __arena *)(pages + 4096);
	leaf->depth = 3;
	leaf->width = 4;
	leaf->colour = 0xabcdef;
	leaf->back = 99;
	leaf->owner = node;

	casts = bpf_map_lookup_elem(&plant_casts, &slot);
	if (!casts)
		return 2;
	casts->cookie = 0xc00c1e;
	casts->node = (u64)node;
	casts->task = (u64)bpf_get_current_task_btf();
	casts->plain = 123456789;
	if (args->reserved)
		casts->mixed = (u64)node;
	else
		casts->mixed = PLANT_MIXED_NUMBER;
	casts->leaf = (u64)leaf;
	casts->joined = (u64)node->next;
	casts->second = (u64)node->next;
	args->task = casts->task;
	args->first_node = (u64)node;

	plant_percpu_values(args->nr_cpus);
	plant_hashes();
	plant_storage(leaf);
	plant_records();
	follow(slot);
	plant_done = 1;
	return 0;
}

/* Apart from the rest: only what cannot sleep may walk from a task to its cgroup without kfuncs. */
SEC("raw_tp")
int plant_in_cgroup(void *ctx)
{
	struct task_struct___cgroups *task = (void *)bpf_get_current_task_btf();
	struct plant_point *point;

	point = bpf_cgrp_storage_get(&plant_cgroups, task->cgroups->dfl_cgrp, 0,
				     BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!point)
		return 1;
	point->x = 77;
	point->y = -78;
	return 0;
}
