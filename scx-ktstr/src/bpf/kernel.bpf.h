/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the program needs of the kernel, and nothing else.
 *
 * Structures hold only the fields that are read; preserve_access_index makes the compiler record
 * each access, and libbpf puts in the offsets of the kernel it runs on. A vmlinux.h of one kernel
 * would be 100,000 lines and no more portable.
 *
 * Every kfunc is weak. A name that a series lacks, or declares with another prototype, resolves to
 * zero, and the branch behind bpf_ksym_exists() is pruned by the verifier. libbpf drops what
 * follows the last "___" before it looks a name up: that part only tells our declarations apart.
 */
#ifndef SCX_KTSTR_KERNEL_BPF_H
#define SCX_KTSTR_KERNEL_BPF_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char s8;
typedef short s16;
typedef int s32;
typedef long long s64;
typedef u8 __u8;
typedef u16 __u16;
typedef u32 __u32;
typedef u64 __u64;
typedef s8 __s8;
typedef s16 __s16;
typedef s32 __s32;
typedef s64 __s64;
typedef u16 __be16;
typedef u32 __be32;
typedef u64 __be64;
typedef u32 __wsum;
typedef _Bool bool;

enum {
	false = 0,
	true = 1,
};

/* uapi/linux/bpf.h */
enum bpf_map_type {
	BPF_MAP_TYPE_TASK_STORAGE = 29,
};

enum {
	BPF_F_NO_PREALLOC = 1,
	BPF_LOCAL_STORAGE_GET_F_CREATE = 1,
};

/* linux/sched.h */
#define PF_KTHREAD 0x00200000

/* linux/sched/ext.h; unlike the enqueue flags these never moved between series. */
#define SCX_SLICE_DFL 20000000ULL
#define SCX_DSQ_GLOBAL 0x8000000000000001ULL
#define SCX_DSQ_LOCAL 0x8000000000000002ULL
#define SCX_DSQ_LOCAL_ON 0xc000000000000000ULL

#define CORE __attribute__((preserve_access_index))

/* linux/sched/ext.h: a bit of sched_ext_entity.flags. */
#define SCX_TASK_QUEUED 1

struct sched_ext_entity {
	u32 flags;
	u32 weight;
	u64 slice;
} CORE;

struct task_struct {
	u32 flags;
	s32 pid;
	s32 tgid;
	s32 nr_cpus_allowed;
	struct task_struct *real_parent;
	struct sched_ext_entity scx;
} CORE;

/* Only the type's kind matters to CO-RE: an integer would not match the kernel's enum. */
enum scx_exit_kind {
	SCX_EXIT_NONE = 0,
};

struct scx_exit_info {
	enum scx_exit_kind kind;
	s64 exit_code;
	const char *reason;
	char *msg;
	char *dump;
} CORE;

struct scx_init_task_args;
struct scx_exit_task_args;

/* libbpf matches the fields by name with the kernel's, so a subset is enough. */
struct sched_ext_ops {
	s32 (*select_cpu)(struct task_struct *p, s32 prev_cpu, u64 wake_flags);
	void (*enqueue)(struct task_struct *p, u64 enq_flags);
	void (*dispatch)(s32 cpu, struct task_struct *prev);
	void (*tick)(struct task_struct *p);
	void (*running)(struct task_struct *p);
	void (*stopping)(struct task_struct *p, bool runnable);
	void (*cpu_online)(s32 cpu);
	void (*cpu_offline)(s32 cpu);
	s32 (*init_task)(struct task_struct *p, struct scx_init_task_args *args);
	void (*exit_task)(struct task_struct *p, struct scx_exit_task_args *args);
	void (*enable)(struct task_struct *p);
	s32 (*init)(void);
	void (*exit)(struct scx_exit_info *info);
	u64 flags;
	u32 timeout_ms;
	u32 exit_dump_len;
	char name[128];
};

/* The helpers' header wants the types above. */
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

extern s32 scx_bpf_create_dsq(u64 dsq_id, s32 node) __ksym __weak;
extern s32 scx_bpf_select_cpu_dfl(struct task_struct *p, s32 prev_cpu, u64 wake_flags,
				  bool *is_idle) __ksym __weak;

/* 6.13 to 6.18; from 6.19 a name kept for old programs. */
extern void scx_bpf_dsq_insert(struct task_struct *p, u64 dsq_id, u64 slice, u64 enq_flags)
	__ksym __weak;
extern void scx_bpf_dsq_insert_vtime(struct task_struct *p, u64 dsq_id, u64 slice, u64 vtime,
				     u64 enq_flags) __ksym __weak;

/* From 6.19: the insertion says whether it took place. */
extern bool scx_bpf_dsq_insert___v2___bool(struct task_struct *p, u64 dsq_id, u64 slice,
					   u64 enq_flags) __ksym __weak;

/* From 6.19: more arguments than a call may have travel in a structure. */
struct scx_bpf_dsq_insert_vtime_args {
	u64 dsq_id;
	u64 slice;
	u64 vtime;
	u64 enq_flags;
} CORE;
extern bool __scx_bpf_dsq_insert_vtime(struct task_struct *p,
				       struct scx_bpf_dsq_insert_vtime_args *args) __ksym __weak;

extern bool scx_bpf_dsq_move_to_local(u64 dsq_id) __ksym __weak;
/* From 7.1: with flags for the insertion into the local queue. */
extern bool scx_bpf_dsq_move_to_local___v2___flags(u64 dsq_id, u64 enq_flags) __ksym __weak;

extern void scx_bpf_error_bstr(char *fmt, unsigned long long *data, u32 data__sz) __ksym __weak;

#endif
