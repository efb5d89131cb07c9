/*
 * Preloaded into the emulator under `det`: of its event loop and its vCPU thread only one runs at a time,
 * and it changes over at places that the guest alone decides.
 *
 * Left alone, the event loop runs when the host gets to it. It then looks at all vCPUs, without the vCPU
 * thread being at rest: finds them all halted a moment before the last one's instructions are accounted,
 * and advances virtual time too far; or runs a timer that the vCPU thread was about to run, which ends
 * the time slices of other vCPUs (accel/tcg/icount-common.c icount_start_warp_timer, util/qemu-timer.c
 * qemu_timer_notify_cb, accel/tcg/tcg-accel-ops-rr.c). Both reach the guest.
 *
 * The turn goes to the event loop when the vCPU thread waits with nothing to do, or gives back the big
 * lock (BQL) after it has woken the event loop; it goes back when the event loop polls again.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Highest descriptor, plus one, that can wake the event loop. */
#define DESCRIPTORS 1024

static int (*real_ppoll)(struct pollfd *, nfds_t, const struct timespec *, const sigset_t *);
static int (*real_cond_wait)(pthread_cond_t *, pthread_mutex_t *);
static int (*real_broadcast)(pthread_cond_t *);
static int (*real_lock)(pthread_mutex_t *);
static int (*real_unlock)(pthread_mutex_t *);
static ssize_t (*real_write)(int, const void *, size_t);

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
/* Guarded by `mutex`. The event loop polls with no one's leave; what it does after needs its turn. */
static enum { LOOP, VCPU } turn = LOOP;
static bool polling;
/* The event loop waits for the vCPU thread to do something: it has no turn to take. */
static bool waiting;
/* What the vCPU thread waits for, until that is announced. */
static pthread_cond_t *resting;

static pthread_t loop_thread, vcpu_thread;
static bool vcpu_known;
/* The emulator's big lock: what the event loop waits with until the vCPU thread has started. */
static pthread_mutex_t *bql;
/* The event loop's alone. */
static bool loop_holds_bql;
/* What the event loop polls: written in its turn, read in the other's. */
static bool polled[DESCRIPTORS];
/* The vCPU thread's alone: it has woken the event loop. */
static bool woke_loop;

static void *next(const char *name, const char *version)
{
	void *found = version ? dlvsym(RTLD_NEXT, name, version) : NULL;

	return found ? found : dlsym(RTLD_NEXT, name);
}

/* Also called by whoever locks before the constructor has run. */
static void resolve(void)
{
	real_ppoll = next("ppoll", NULL);
	/* Without a version the loader gives the one of before 2003 on x86_64. */
	real_cond_wait = next("pthread_cond_wait", "GLIBC_2.3.2");
	real_broadcast = next("pthread_cond_broadcast", "GLIBC_2.3.2");
	real_unlock = next("pthread_mutex_unlock", NULL);
	real_write = next("write", NULL);
	real_lock = next("pthread_mutex_lock", NULL);
}

/* Says to whoever started the emulator that this is in force. */
__attribute__((constructor)) static void begin(void)
{
	const char *report = getenv("KTSTR_LOCKSTEP");

	resolve();
	loop_thread = pthread_self();
	if (report && real_ppoll && real_cond_wait && real_broadcast && real_lock && real_unlock && real_write) {
		int fd = atoi(report);

		if (real_write(fd, "l", 1) == 1)
			close(fd);
	}
}

static bool is_loop(void)
{
	return pthread_equal(pthread_self(), loop_thread);
}

static bool is_vcpu(void)
{
	return vcpu_known && pthread_equal(pthread_self(), vcpu_thread);
}

/* With `mutex` held. */
static void give(int to)
{
	turn = to;
	real_broadcast(&changed);
}

/* To a vCPU thread that has something to do. */
static void loop_gives(void)
{
	real_lock(&mutex);
	polling = true;
	if (resting)
		real_broadcast(&changed);
	else
		give(VCPU);
	real_unlock(&mutex);
}

int ppoll(struct pollfd *fds, nfds_t count, const struct timespec *limit, const sigset_t *mask)
{
	int ready;

	/* Polls within the lock are the emulator's own waits, as at its end. */
	if (!is_loop() || loop_holds_bql)
		return real_ppoll(fds, count, limit, mask);
	memset(polled, 0, sizeof(polled));
	for (nfds_t i = 0; i < count; i++)
		if (fds[i].fd >= 0 && fds[i].fd < DESCRIPTORS)
			polled[fds[i].fd] = true;
	loop_gives();
	ready = real_ppoll(fds, count, limit, mask);
	real_lock(&mutex);
	polling = false;
	while (vcpu_known && turn != LOOP)
		real_cond_wait(&changed, &mutex);
	real_unlock(&mutex);
	return ready;
}

static int loop_waits(pthread_cond_t *cond, pthread_mutex_t *held)
{
	int result;

	bql = held;
	waiting = true;
	loop_gives();
	result = real_cond_wait(cond, held);
	real_lock(&mutex);
	polling = false;
	waiting = false;
	give(LOOP);
	real_unlock(&mutex);
	return result;
}

int pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *held)
{
	int result;

	if (is_loop())
		return loop_waits(cond, held);
	if (!bql || held != bql)
		return real_cond_wait(cond, held);
	if (!vcpu_known) {
		vcpu_thread = pthread_self();
		vcpu_known = true;
	}
	if (!is_vcpu())
		return real_cond_wait(cond, held);
	real_lock(&mutex);
	woke_loop = false;
	resting = cond;
	give(LOOP);
	real_unlock(&mutex);
	result = real_cond_wait(cond, held);
	real_lock(&mutex);
	resting = NULL;
	if (turn != VCPU && !polling) {
		/* The event loop needs the big lock to come to its end. */
		real_unlock(&mutex);
		real_unlock(held);
		real_lock(&mutex);
		while (turn != VCPU && !polling)
			real_cond_wait(&changed, &mutex);
		turn = VCPU;
		real_unlock(&mutex);
		real_lock(held);
		return result;
	}
	turn = VCPU;
	real_unlock(&mutex);
	return result;
}

int pthread_cond_broadcast(pthread_cond_t *cond)
{
	if (!real_broadcast)
		resolve();
	if (vcpu_known) {
		real_lock(&mutex);
		if (resting == cond)
			resting = NULL;
		real_unlock(&mutex);
	}
	return real_broadcast(cond);
}

int pthread_mutex_lock(pthread_mutex_t *taken)
{
	int result;

	if (!real_lock)
		resolve();
	result = real_lock(taken);
	if (bql && taken == bql && is_loop())
		loop_holds_bql = true;
	return result;
}

int pthread_mutex_unlock(pthread_mutex_t *given)
{
	int result;

	if (!real_unlock)
		resolve();
	if (bql && given == bql && is_loop())
		loop_holds_bql = false;
	result = real_unlock(given);
	if (woke_loop && given == bql && is_vcpu()) {
		real_lock(&mutex);
		woke_loop = false;
		if (!waiting)
			give(LOOP);
		while (turn != VCPU)
			real_cond_wait(&changed, &mutex);
		real_unlock(&mutex);
	}
	return result;
}

/* An event (eventfd(2)) is eight bytes. */
ssize_t write(int fd, const void *data, size_t size)
{
	if (!real_write)
		resolve();
	if (size == sizeof(uint64_t) && fd >= 0 && fd < DESCRIPTORS && is_vcpu() && polled[fd])
		woke_loop = true;
	return real_write(fd, data, size);
}
