/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A small correct scheduler, and the ways in which it can be told to misbehave.
 *
 * One queue for all CPUs, ordered by virtual time weighted with the task's weight. A task that
 * wakes while a CPU is idle skips it. Kernel threads bound to one CPU go straight to that CPU:
 * waiting behind everybody else for the only CPU that may run them helps no one. Tasks with
 * migration disabled never reach enqueue(): the kernel keeps them on their CPU by itself unless
 * SCX_OPS_ENQ_MIGRATION_DISABLED is set, and it is not.
 *
 * Where the kernel's BTF makes scx_bpf_create_dsq() uncallable, the shared queue is the kernel's
 * global DSQ; it has no order by virtual time, so the weight goes into the length of the slice.
 */
#include "kernel.bpf.h"
#include "intf.h"

char _license[] SEC("license") = "GPL";

const volatile u64 stall_after_ns = 0;
const volatile u64 crash_after_ns = 0;
const volatile u64 slow_ns = 0;
const volatile u64 slice_ns = SCX_SLICE_DFL;
const volatile u32 fail_verify = 0;
const volatile u32 fail_init = 0;
const volatile u32 race = 0;
const volatile u64 unfair_ns = 0;
const volatile u32 wrong_cpu = 0;
const volatile u32 nr_cpus = 1;
const volatile s32 loader_tgid = 0;

u64 ktstr_magic SEC(".data") = KTSTR_MAGIC;
u32 ktstr_abi SEC(".data") = KTSTR_ABI;

u64 nr_selected = 0;
u64 nr_local = 0;
u64 nr_enqueued = 0;
u64 nr_dispatched = 0;
u64 nr_stalled = 0;
u64 nr_not_looked = 0;
s32 unfair_pid = 0;
u64 late_since_ns = 0;
u64 nr_running = 0;
u64 vtime_now = 0;
u64 attached_at_ns = 0;
u32 shared_queue = KTSTR_QUEUE_VTIME;
u32 queue_hint = 0;
u32 phase = KTSTR_LOADED;
u32 stall = 0;
u32 crash = 0;
struct ktstr_exit_record exit_record = {};
char exit_dump[KTSTR_DUMP_LEN] SEC(".bss.dump") = {};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct ktstr_task);
} task_vtime SEC(".maps");

#define COUNT(counter) __sync_fetch_and_add(&(counter), 1)

/* Never created: its use is an error that the kernel raises by itself. */
#define NO_SUCH_DSQ 0x6b746372617368ULL

static bool vtime_before(u64 a, u64 b)
{
	return (s64)(a - b) < 0;
}

/*
 * --unfair: who used up so many slices in a row is the one to starve, behind everybody else, until it
 * has waited for unfair_ns.
 */
#define FULL_SLICES 10
/* What it gets when it runs before that, for lack of others: so small a part of a slice. */
#define LATE_SLICE_DIVISOR 20

/* Ends the scheduler with an error of its own, where the kernel's BTF shows the kfunc for that. */
static void fail(void)
{
	static char fmt[] = "scx-ktstr: crash requested";
	unsigned long long none[1] = {};

	phase = KTSTR_CRASHED;
	if (bpf_ksym_exists(scx_bpf_error_bstr))
		scx_bpf_error_bstr(fmt, none, 0);
	/* Elsewhere enqueue() and dispatch() name a DSQ that does not exist. */
}

/* Turns the command line's delays and the writable switches into state. */
static void check_switches(void)
{
	u64 age;

	if (crash) {
		fail();
		return;
	}
	if (!stall_after_ns && !crash_after_ns)
		return;
	age = bpf_ktime_get_ns() - attached_at_ns;
	if (crash_after_ns && age >= crash_after_ns) {
		crash = 1;
		fail();
	}
	if (stall_after_ns && age >= stall_after_ns && !stall) {
		stall = 1;
		phase = KTSTR_STALLING;
	}
}

/* Who keeps running through a stall: the kernel's own threads, and the loader so it can leave. */
static bool exempt_from_stall(struct task_struct *p)
{
	return (p->flags & PF_KTHREAD) || p->tgid == loader_tgid;
}

static bool bound_kthread(struct task_struct *p)
{
	return (p->flags & PF_KTHREAD) && p->nr_cpus_allowed == 1;
}

static bool is_starved(struct task_struct *p)
{
	return unfair_ns && p->pid == unfair_pid;
}

/* What init started itself, a test among them: starving that would hold up the test, not a worker. */
static bool is_service(struct task_struct *p)
{
	return p->pid == p->tgid && p->real_parent->tgid == 1;
}

/* The first task that never pauses is the one, until it exits. */
static void look_for_victim(struct task_struct *p, struct ktstr_task *task, bool runnable)
{
	bool used_up = runnable && !p->scx.slice;

	task->full_slices = used_up ? task->full_slices + 1 : 0;
	if (!unfair_pid && task->full_slices >= FULL_SLICES && !exempt_from_stall(p) &&
	    !is_service(p))
		unfair_pid = p->pid;
}

static void insert(struct task_struct *p, u64 dsq_id, u64 slice, u64 enq_flags)
{
	if (bpf_ksym_exists(scx_bpf_dsq_insert___v2___bool))
		scx_bpf_dsq_insert___v2___bool(p, dsq_id, slice, enq_flags);
	else
		scx_bpf_dsq_insert(p, dsq_id, slice, enq_flags);
}

static void insert_vtime(struct task_struct *p, u64 vtime, u64 enq_flags)
{
	if (bpf_ksym_exists(__scx_bpf_dsq_insert_vtime)) {
		struct scx_bpf_dsq_insert_vtime_args args = {
			.dsq_id = KTSTR_DSQ_ID,
			.slice = slice_ns,
			.vtime = vtime,
			.enq_flags = enq_flags,
		};

		__scx_bpf_dsq_insert_vtime(p, &args);
	} else {
		scx_bpf_dsq_insert_vtime(p, KTSTR_DSQ_ID, slice_ns, vtime, enq_flags);
	}
}

static bool move_to_local(u64 dsq_id)
{
	if (bpf_ksym_exists(scx_bpf_dsq_move_to_local___v2___flags))
		return scx_bpf_dsq_move_to_local___v2___flags(dsq_id, 0);
	return scx_bpf_dsq_move_to_local(dsq_id);
}

static u32 weight_of(struct task_struct *p)
{
	u32 weight = p->scx.weight;

	return weight ? weight : 1;
}

SEC("struct_ops/ktstr_select_cpu")
s32 BPF_PROG(ktstr_select_cpu, struct task_struct *p, s32 prev_cpu, u64 wake_flags)
{
	bool is_idle = false;
	s32 cpu;

	COUNT(nr_selected);
	cpu = scx_bpf_select_cpu_dfl(p, prev_cpu, wake_flags, &is_idle);
	if (is_idle && (!stall || exempt_from_stall(p))) {
		COUNT(nr_local);
		insert(p, SCX_DSQ_LOCAL, slice_ns, 0);
	}
	return cpu;
}

SEC("struct_ops/ktstr_enqueue")
void BPF_PROG(ktstr_enqueue, struct task_struct *p, u64 enq_flags)
{
	struct ktstr_task *task;
	u64 vtime = vtime_now;

	check_switches();
	if (crash && !bpf_ksym_exists(scx_bpf_error_bstr)) {
		insert(p, NO_SUCH_DSQ, slice_ns, enq_flags);
		return;
	}
	if (bound_kthread(p)) {
		COUNT(nr_local);
		insert(p, SCX_DSQ_LOCAL, slice_ns, enq_flags);
		return;
	}
	if (stall) {
		if (exempt_from_stall(p)) {
			insert(p, SCX_DSQ_GLOBAL, slice_ns, enq_flags);
			return;
		}
		COUNT(nr_stalled);
		/* The global DSQ is served by the kernel: there the task is kept back instead. */
		if (shared_queue == KTSTR_QUEUE_GLOBAL)
			return;
	}
	/*
	 * The mistake of --wrong-cpu: tasks that may not run everywhere are dealt out in turn to all CPUs,
	 * whatever their mask says. The kernel notices and ends the scheduler.
	 */
	if (wrong_cpu && p->nr_cpus_allowed < nr_cpus && !exempt_from_stall(p)) {
		COUNT(nr_local);
		insert(p, SCX_DSQ_LOCAL_ON | (nr_local % nr_cpus), slice_ns, enq_flags);
		return;
	}
	COUNT(nr_enqueued);
	if (shared_queue == KTSTR_QUEUE_GLOBAL) {
		u64 slice = slice_ns * weight_of(p) / 100;

		insert(p, SCX_DSQ_GLOBAL, is_starved(p) ? slice / LATE_SLICE_DIVISOR : slice, enq_flags);
		return;
	}
	if (is_starved(p)) {
		late_since_ns = bpf_ktime_get_ns();
		insert(p, KTSTR_LATE_DSQ_ID, slice_ns / LATE_SLICE_DIVISOR, enq_flags);
		return;
	}
	task = bpf_task_storage_get(&task_vtime, p, 0, 0);
	if (task) {
		/* A long sleep is worth one slice of credit, no more. */
		if (vtime_before(task->vtime, vtime - slice_ns))
			task->vtime = vtime - slice_ns;
		vtime = task->vtime;
	}
	insert_vtime(p, vtime, enq_flags);
	if (race)
		queue_hint = 1;
}

/*
 * The planted race of --race. The hint spares a CPU the look into an empty queue; it is cleared after
 * the look that found nothing, instead of before it. A task that another CPU queues between the two
 * has its hint cleared with the old one: nobody looks for it until the next one is queued.
 */
static void dispatch_by_hint(void)
{
	if (!queue_hint)
		COUNT(nr_not_looked);
	else if (move_to_local(KTSTR_DSQ_ID))
		COUNT(nr_dispatched);
	else
		queue_hint = 0;
}

/* The mistake of --unfair: whoever runs goes on, however long the one in the late queue has waited. */
static void dispatch_late(struct task_struct *prev)
{
	bool goes_on = prev && (prev->scx.flags & SCX_TASK_QUEUED);

	if (goes_on && bpf_ktime_get_ns() - late_since_ns < unfair_ns) {
		/* The kernel would give the one to starve a whole slice more: the others are on their way. */
		if (is_starved(prev))
			prev->scx.slice = slice_ns / LATE_SLICE_DIVISOR;
		return;
	}
	if (move_to_local(KTSTR_LATE_DSQ_ID))
		COUNT(nr_dispatched);
}

static long spin_until(u64 index, void *until)
{
	return bpf_ktime_get_ns() >= *(u64 *)until;
}

SEC("struct_ops/ktstr_dispatch")
void BPF_PROG(ktstr_dispatch, s32 cpu, struct task_struct *prev)
{
	check_switches();
	if (fail_verify) {
		/* Beyond the end of the record by as much as the CPU's number says. */
		COUNT(*(u64 *)(exit_record.msg + ((u64)(u32)cpu << 20)));
	}
	if (slow_ns) {
		u64 until = bpf_ktime_get_ns() + slow_ns;

		bpf_loop(1 << 20, spin_until, &until, 0);
	}
	if (crash && !bpf_ksym_exists(scx_bpf_error_bstr))
		move_to_local(NO_SUCH_DSQ);
	else if (stall || shared_queue != KTSTR_QUEUE_VTIME)
		return;
	else if (race)
		dispatch_by_hint();
	else if (move_to_local(KTSTR_DSQ_ID))
		COUNT(nr_dispatched);
	else if (unfair_ns)
		dispatch_late(prev);
}

SEC("struct_ops/ktstr_tick")
void BPF_PROG(ktstr_tick, struct task_struct *p)
{
	check_switches();
}

SEC("struct_ops/ktstr_running")
void BPF_PROG(ktstr_running, struct task_struct *p)
{
	struct ktstr_task *task = bpf_task_storage_get(&task_vtime, p, 0, 0);

	COUNT(nr_running);
	/* Two CPUs may race here; the loser's value is caught up with at the next switch. */
	if (task && vtime_before(vtime_now, task->vtime))
		vtime_now = task->vtime;
}

SEC("struct_ops/ktstr_stopping")
void BPF_PROG(ktstr_stopping, struct task_struct *p, bool runnable)
{
	struct ktstr_task *task = bpf_task_storage_get(&task_vtime, p, 0, 0);
	u64 left = p->scx.slice;

	if (task && unfair_ns)
		look_for_victim(p, task, runnable);
	/* The slice may have been extended behind our back: then nothing is charged. */
	if (task && left < slice_ns)
		task->vtime += (slice_ns - left) * 100 / weight_of(p);
}

SEC("struct_ops/ktstr_enable")
void BPF_PROG(ktstr_enable, struct task_struct *p)
{
	struct ktstr_task *task = bpf_task_storage_get(&task_vtime, p, 0, 0);

	if (task)
		task->vtime = vtime_now;
}

/*
 * Nothing here depends on which CPUs there are. Without these two the kernel would end the
 * scheduler at every CPU hotplug.
 */
SEC("struct_ops.s/ktstr_cpu_online")
void BPF_PROG(ktstr_cpu_online, s32 cpu)
{
}

SEC("struct_ops.s/ktstr_cpu_offline")
void BPF_PROG(ktstr_cpu_offline, s32 cpu)
{
}

SEC("struct_ops.s/ktstr_init_task")
s32 BPF_PROG(ktstr_init_task, struct task_struct *p, struct scx_init_task_args *args)
{
	if (!bpf_task_storage_get(&task_vtime, p, 0, BPF_LOCAL_STORAGE_GET_F_CREATE))
		return -12; /* ENOMEM */
	return 0;
}

SEC("struct_ops/ktstr_exit_task")
void BPF_PROG(ktstr_exit_task, struct task_struct *p, struct scx_exit_task_args *args)
{
	if (is_starved(p))
		unfair_pid = 0;
}

SEC("struct_ops.s/ktstr_init")
s32 BPF_PROG(ktstr_init)
{
	if (fail_init)
		return -95; /* EOPNOTSUPP */
	attached_at_ns = bpf_ktime_get_ns();
	phase = KTSTR_ATTACHED;
	if (bpf_ksym_exists(scx_bpf_create_dsq)) {
		s32 err = unfair_ns ? scx_bpf_create_dsq(KTSTR_LATE_DSQ_ID, -1) : 0;

		return err ? err : scx_bpf_create_dsq(KTSTR_DSQ_ID, -1);
	}
	shared_queue = KTSTR_QUEUE_GLOBAL;
	return 0;
}

SEC("struct_ops/ktstr_exit")
void BPF_PROG(ktstr_exit, struct scx_exit_info *info)
{
	bpf_probe_read_kernel_str(exit_record.reason, sizeof(exit_record.reason), info->reason);
	bpf_probe_read_kernel_str(exit_record.msg, sizeof(exit_record.msg), info->msg);
	bpf_probe_read_kernel_str(exit_dump, sizeof(exit_dump), info->dump);
	exit_record.exit_code = info->exit_code;
	phase = KTSTR_EXITED;
	*(volatile u32 *)&exit_record.kind = info->kind;
}

SEC(".struct_ops.link")
struct sched_ext_ops ktstr_ops = {
	.select_cpu = (void *)ktstr_select_cpu,
	.enqueue = (void *)ktstr_enqueue,
	.dispatch = (void *)ktstr_dispatch,
	.tick = (void *)ktstr_tick,
	.running = (void *)ktstr_running,
	.stopping = (void *)ktstr_stopping,
	.cpu_online = (void *)ktstr_cpu_online,
	.cpu_offline = (void *)ktstr_cpu_offline,
	.init_task = (void *)ktstr_init_task,
	.exit_task = (void *)ktstr_exit_task,
	.enable = (void *)ktstr_enable,
	.init = (void *)ktstr_init,
	.exit = (void *)ktstr_exit,
	.timeout_ms = 5000,
	.name = "ktstr",
};
