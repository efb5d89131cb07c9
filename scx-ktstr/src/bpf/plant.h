/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Facts planted by `scx-ktstr --plant` for whoever reads guest memory from outside: one of every
 * kind of map and of value that a monitor has to understand, with values that a test knows.
 *
 * The values are those of plant.bpf.c; a test spells them out a second time on purpose.
 */
#ifndef SCX_KTSTR_PLANT_H
#define SCX_KTSTR_PLANT_H

#define PLANT_NODES 5
#define PLANT_SLOTS 8
#define PLANT_CPUS 64
#define PLANT_KEYS 7
#define PLANT_MIXED_NUMBER 0x1234567ULL

/* What user space tells the program. */
struct plant_args {
	u32 nr_cpus;
	u32 reserved;
	/* Filled in: what only the program knows. */
	u64 task;
	u64 first_node;
};

enum plant_colour {
	PLANT_RED = 1,
	PLANT_GREEN = 2,
	PLANT_BLUE = -3,
};

enum plant_wide {
	PLANT_WIDE = 0x123456789abcdef0ULL,
};

struct plant_bits {
	u32 three : 3;
	u32 thirteen : 13;
	s32 minus : 5;
	u64 forty : 40;
	u8 last : 1;
};

union plant_either {
	u64 number;
	struct {
		u16 low;
		u16 high;
	};
	u8 bytes[8];
};

struct plant_point {
	s32 x;
	s32 y;
};

struct plant_scalars {
	u8 u8v;
	s8 s8v;
	u16 u16v;
	s16 s16v;
	u32 u32v;
	s32 s32v;
	u64 u64v;
	s64 s64v;
	bool yes;
	char letter;
	enum plant_colour colour;
	enum plant_colour unknown;
	enum plant_wide wide;
	struct plant_bits bits;
	union plant_either either;
	struct plant_point points[3];
	u16 grid[2][4];
	char text[24];
	u64 zeroes[100];
};

struct plant_key {
	u32 group;
	u16 member;
	u16 padding;
};

struct plant_value {
	u64 square;
	struct plant_point at;
	char tag[8];
};

#define __arena __attribute__((address_space(1)))

/* A list in the arena. */
struct plant_node {
	u64 id;
	struct plant_node __arena *next;
	u32 payload[3];
	u32 sum;
};

/* Pointers that the types call numbers. */
struct plant_casts {
	u64 cookie;
	/* A struct plant_node in the arena. */
	u64 node;
	/* The loader's struct task_struct. */
	u64 task;
	/* A number. */
	u64 plain;
	/* A number or a node: nobody may call it a pointer. */
	u64 mixed;
	/*
	 * A struct plant_leaf, which only local variables point at: its type is not in the BTF, and
	 * struct plant_args, which is, has scalars at the same places. Nobody may fall for it.
	 */
	u64 leaf;
	/* A struct plant_node, read before a branch and used where its arms have met again. */
	u64 joined;
	/* A struct plant_node: it is stored where only such pointers go. */
	u64 second;
};

struct plant_leaf {
	u32 depth;
	u32 width;
	u64 colour;
	u64 back;
	struct plant_node __arena *owner;
};

struct plant_task {
	u64 cookie;
	s32 pid;
	enum plant_colour colour;
	/* A struct plant_leaf. */
	u64 leaf;
};

struct plant_record {
	u32 serial;
	u32 kind;
	u64 body[2];
};

#endif
