/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Into the ring: room first, then a number of the order, then the marks. A call that ended takes the next
 * number after its room is taken, and is flagged when another one of the same bucket took a number since it
 * began. So two unflagged records of one file never stand in the ring in another order than that in which
 * their calls changed the file.
 */
#pragma once

struct {
	MAP_UINT(type, BPF_MAP_TYPE_RINGBUF);
	MAP_UINT(max_entries, 64 * 1024 * 1024);
} ring SEC(".maps");

struct {
	MAP_UINT(type, BPF_MAP_TYPE_HASH);
	MAP_UINT(max_entries, 8192);
	MAP_TYPE(key, struct dk_lost_file);
	MAP_TYPE(value, u32);
} lost_files SEC(".maps");

/*
 * The number of the last call that ended on an inode, by a hash of the inode's number. Two inodes that
 * share a bucket cost a needless re-read when they are written at the same instant; nothing is ever
 * evicted, so nothing is ever missed.
 */
#define FILE_BUCKETS 65536
enum { BUCKET_NAMES = FILE_BUCKETS, BUCKET_PATH_TRUNCATE, BUCKET_CHANGED_IN_TRUNCATE, BUCKETS };

struct {
	u64 ended; /* how many calls have ended, on a cache line of its own */
	u64 unused[7];
	u64 last[BUCKETS];
} order SEC(".bss.order");

/*
 * What a call takes with it when it begins. 0: the probe was not there yet, so anything may have happened
 * since.
 */
INLINE u64 order_now(void)
{
#if defined(DK_AARCH64)
	/* A plain load could be done after the call has taken the lock of the inode; this one is a barrier. */
	return __sync_fetch_and_add(&order.ended, 0) + 1;
#else
	return *(volatile u64 *)&order.ended + 1;
#endif
}

INLINE u64 order_end(void)
{
	return __sync_fetch_and_add(&order.ended, 1) + 2;
}

INLINE u32 bucket_of(u64 inode, u32 device)
{
	return (inode ^ (inode >> 16) ^ (device * 40503u)) & (FILE_BUCKETS - 1);
}

/*
 * Note that a call ended; true when another one (not this call's own record with number `own`) ended since
 * it began.
 */
__attribute__((noinline)) u32 dk_ended(u32 bucket, u64 begun, u64 end, u64 own)
{
	u64 *last;

	if (bucket >= BUCKETS)
		return 1;
	last = &order.last[bucket];
	for (int tries = 0; tries < 32; tries++) {
		u64 seen = *(volatile u64 *)last;

		if (seen >= end)
			return 1;
		if (__sync_val_compare_and_swap(last, seen, end) == seen)
			return seen > begun && seen != own;
	}
	/*
	 * Too contended to keep the latest end: from now on every call of this bucket counts as overlapped.
	 */
	__sync_lock_test_and_set(last, ~0ull);
	return 1;
}

INLINE bool ended_since(u32 bucket, u64 begun)
{
	return *(volatile u64 *)&order.last[bucket] > begun;
}

INLINE void count_lost(u32 volume, u64 inode)
{
	struct dk_lost_file key = {.inode = inode, .volume = volume};
	u32 one = 1;

	__sync_fetch_and_add(&state.lost_records, 1);
	if (volume == NO_VOLUME || bpf_map_update_elem(&lost_files, &key, &one, 0))
		state.lost_everywhere = 1;
}

INLINE void fill_head(struct dk_record *record, struct task_struct *task, u32 kind, u32 volume, u64 start_ns)
{
	__builtin_memset(record, 0, sizeof(*record));
	record->kind = kind;
	record->volume = volume;
	record->end_ns = bpf_ktime_get_ns();
	record->start_ns = start_ns;
	record->tgid = task->tgid;
	record->tid = task->pid;
}

INLINE void fill_inode(struct dk_record *record, struct inode *inode)
{
	record->inode = inode->i_ino;
	record->generation = inode->i_generation;
	record->device = inode->i_sb->s_dev;
	record->uid = inode->i_uid.val;
	record->gid = inode->i_gid.val;
	if (!inode->i_nlink)
		record->flags |= FLAG_UNLINKED;
}

/*
 * A record about one inode and without payload, its room taken and its head filled; NULL, and counted,
 * without room.
 */
INLINE struct dk_record *begin_record(u32 kind, u32 volume, struct inode *inode, u64 start_ns)
{
	struct dk_record *record = bpf_ringbuf_reserve(&ring, sizeof(*record), 0);

	if (!record) {
		count_lost(volume, inode->i_ino);
		return NULL;
	}
	fill_head(record, bpf_get_current_task_btf(), kind, volume, start_ns);
	fill_inode(record, inode);
	return record;
}

/*
 * Flag a record whose call changed the content or size of its inode while another one did. `own`: the
 * number of the record before of the same call, 0 for the first; the answer is this one's.
 */
INLINE u64 flag_overlap(struct dk_record *record, u64 begun, u64 own)
{
	u64 end = order_end();

	if (dk_ended(bucket_of(record->inode, record->device), begun, end, own))
		record->flags |= FLAG_OVERLAPPED;
	if (unlikely(*(volatile u64 *)&state.truncates_in_flight))
		dk_ended(BUCKET_CHANGED_IN_TRUNCATE, begun, end, 0);
	if (unlikely(ended_since(BUCKET_PATH_TRUNCATE, begun)))
		record->flags |= FLAG_OVERLAPPED;
	return end;
}

INLINE void flag_name_overlap(struct dk_record *record, u64 begun)
{
	if (dk_ended(BUCKET_NAMES, begun, order_end(), 0))
		record->flags |= FLAG_OVERLAPPED_NAMES;
}
