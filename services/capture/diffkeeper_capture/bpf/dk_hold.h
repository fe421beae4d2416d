/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Writes that are durable by flag (O_SYNC, O_DSYNC, RWF_SYNC, RWF_DSYNC) must not return before their receipt,
 * and no filter can stop a call after it was done. So a process behind a gate is stopped here, before it goes
 * back to user space; the agent lets it go on (SIGCONT) when the receipt is there.
 *
 * The same stops programs that change files faster than the ring is emptied, where that is asked for: a stop at
 * the call itself is the only one that is never late.
 */
#pragma once

#define SIGSTOP 19
#define FILTERS_MAX 16

/* Volumes whose gate holds programs, by slot. */
struct {
	MAP_UINT(type, BPF_MAP_TYPE_HASH);
	MAP_UINT(max_entries, 4096);
	MAP_TYPE(key, u32);
	MAP_TYPE(value, u32);
} gated SEC(".maps");

/* Processes that were stopped here, by tgid, with the slot of the volume; the agent removes them. */
struct {
	MAP_UINT(type, BPF_MAP_TYPE_HASH);
	MAP_UINT(max_entries, 8192);
	MAP_TYPE(key, u32);
	MAP_TYPE(value, u32);
} held SEC(".maps");

struct notification;
struct seccomp_filter {
	struct seccomp_filter *prev;
	struct notification *notif;
} CORE;

struct seccomp {
	struct seccomp_filter *filter;
} CORE;

struct task_struct___behind_gate {
	struct seccomp seccomp;
} CORE;

/* In the map `held` instead of a slot: until there is room in the ring. In the map `gated`: whether to do that. */
#define PRESSED 0xfffffffeu
enum { BPF_NOEXIST = 1, BPF_RB_AVAIL_DATA = 0, BPF_RB_RING_SIZE = 1 };

/* How often a process was stopped for want of room; the agent looks at it. */
u64 presses SEC(".bss.hold");

static u64 (*bpf_ringbuf_query)(void *ring, u64 flags) = (void *)134;
/*
 * To this thread, which stops the whole process. Sent to the process (bpf_send_signal), a second one is dropped while the
 * first is on its way to another thread, and this thread would go on until it got there.
 */
static long (*bpf_send_signal_thread)(u32 signal) = (void *)117;

/* Whether the process has a listener for system calls: the run wrapper's, or another supervisor's. */
INLINE bool is_behind_gate(struct task_struct *task)
{
	struct seccomp_filter *filter = AS(task_struct___behind_gate, task)->seccomp.filter;

	FOR_UP_TO (FILTERS_MAX) {
		if (!filter)
			return false;
		if (filter->notif)
			return true;
		filter = filter->prev;
	}
	return false;
}

/* After all is told of a call with these flags. */
INLINE void hold_if_gated(struct task_struct *task, u32 volume, u32 flags)
{
	struct dk_record *record;
	u32 tgid;

	if (likely(!(flags & FLAG_SYNCHRONOUS)))
		return;
	if (!bpf_map_lookup_elem(&gated, &volume) || !is_behind_gate(task))
		return;
	tgid = task->tgid;
	bpf_map_update_elem(&held, &tgid, &volume, 0);
	record = bpf_ringbuf_reserve(&ring, sizeof(*record), 0);
	/* Without room the agent finds the process in the map. */
	if (record) {
		fill_head(record, task, KIND_HELD, volume, 0);
		record->start_ns = record->end_ns;
		bpf_ringbuf_submit(record, 0);
	}
	bpf_send_signal_thread(SIGSTOP);
}

/* After any call that changes something: the ring is half full, and the rest is for what is under way. */
INLINE void hold_if_pressed(struct task_struct *task)
{
	u32 key = PRESSED, tgid = task->tgid;

	if (likely(bpf_ringbuf_query(&ring, BPF_RB_AVAIL_DATA) <
		   bpf_ringbuf_query(&ring, BPF_RB_RING_SIZE) >> 1))
		return;
	if (!bpf_map_lookup_elem(&gated, &key) || !is_behind_gate(task))
		return;
	/* One that waits for a receipt already stays noted as that. */
	bpf_map_update_elem(&held, &tgid, &key, BPF_NOEXIST);
	__sync_fetch_and_add(&presses, 1);
	bpf_send_signal_thread(SIGSTOP);
}
