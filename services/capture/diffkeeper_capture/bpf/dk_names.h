/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Calls that name paths. The kernel side copies the paths as given and says relative to what; the observer
 * resolves them.
 */
#pragma once

#define AT_FDCWD (-100)
#define AT_SYMLINK_NOFOLLOW 0x100
#define AT_REMOVEDIR 0x200
#define AT_EMPTY_PATH 0x1000
#define TEXT_MAX 4097 /* PATH_MAX and one more, so that a cut is seen */

/* A naming call, whichever of its variants it was, and its texts: path NUL [path2 NUL]. */
struct naming {
	u64 path;
	u64 path2; /* a second path, or the name of an attribute, or 0 */
	s32 directory;
	s32 directory2;
	u64 aux;
	u32 op;
	u32 extra;
	u32 uid;
	u32 gid;
	u32 base;      /* path is resolved (a symlink's target is not) */
	u32 base2;     /* path2 is resolved */
	u32 in_parent; /* changes only the directory that holds the last component, which is not followed */
	u32 length;
	u32 length2;
	u32 makes;     /* the kind of inode it makes (S_IFDIR and so on), or 0 */
	u64 times;     /* of OP_UTIMES: where the caller has them, 0 for the present */
	u64 tick;      /* nanoseconds of the smaller of their units; 0: whole seconds alone */
	struct dk_begun begun;
	u8 text[2 * 4352];
};

/* One for each processor: the programs run with preemption off. */
struct {
	MAP_UINT(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	MAP_UINT(max_entries, 1);
	MAP_TYPE(key, u32);
	MAP_TYPE(value, struct naming);
} names SEC(".maps");

INLINE struct naming *scratch(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&names, &zero);
}

INLINE struct dentry *base_of(struct task_struct *task, s32 directory, bool absolute)
{
	if (absolute)
		return task->fs->root.dentry;
	if (directory == AT_FDCWD)
		return task->fs->pwd.dentry;
	return AS(file, file_of(task, (u32)directory))->f_path.dentry;
}

#include "dk_made.h"

/*
 * 1 for a plain name in a directory outside every volume: a call in its directory alone cannot have touched
 * one.
 */
__attribute__((noinline)) u32 dk_surely_outside(u32 from, u32 length, u32 directory)
{
	struct naming *call = scratch();

	if (!call || length < 2 || from > TEXT_MAX)
		return 0;
	for (u32 i = 0; i < 256; i++) {
		if (i >= length - 1)
			return volume_of(base_of(bpf_get_current_task_btf(), directory, false)) == NO_VOLUME;
		if (call->text[from + i] == '/')
			return 0;
	}
	return 0;
}

INLINE u32 read_text(struct naming *call, u32 at, u64 address, u32 *flags)
{
	long n = bpf_probe_read_user_str(call->text + at, TEXT_MAX, (void *)address);

	if (n < 0)
		*flags |= FLAG_UNREADABLE;
	else if (n >= TEXT_MAX)
		*flags |= FLAG_PATH_CUT;
	return n < 0 ? 0 : n > TEXT_MAX ? TEXT_MAX : n;
}

INLINE void fill_bases(struct dk_record *record, struct naming *call)
{
	struct task_struct *task = bpf_get_current_task_btf();

	if (call->base) {
		struct dentry *base = base_of(task, call->directory, call->text[0] == '/');

		record->inode = base->d_inode->i_ino;
		record->generation = base->d_inode->i_generation;
		record->device = base->d_sb->s_dev;
	}
	if (call->base2 && call->length <= TEXT_MAX) {
		struct dentry *base = base_of(task, call->directory2, call->text[call->length] == '/');

		record->inode2 = base->d_inode->i_ino;
		record->generation2 = base->d_inode->i_generation;
		record->device2 = base->d_sb->s_dev;
	}
	record->mount_ns = task->nsproxy->mnt_ns->ns.inum;
}

#define NS_A_SECOND 1000000000ull
#define UTIME_NOW 0x3fffffff
#define UTIME_OMIT 0x3ffffffe

INLINE u64 given_time(s64 seconds, s64 rest, u64 tick)
{
	if (tick == 1 && rest == UTIME_NOW)
		return TIME_NOW;
	if (tick == 1 && rest == UTIME_OMIT)
		return TIME_KEPT;
	return seconds * NS_A_SECOND + rest * tick;
}

/* The times of access and change that the caller gave. */
INLINE void fill_times(struct dk_record *record, struct naming *call)
{
	s64 given[4] = {};
	u32 size = call->tick ? sizeof(given) : sizeof(given) / 2;

	record->aux = record->inode2 = TIME_NOW;
	if (!call->times || bpf_probe_read_user(given, size, (void *)call->times))
		return;
	record->aux = given_time(given[0], call->tick ? given[1] : 0, call->tick);
	record->inode2 = call->tick ? given_time(given[2], given[3], call->tick) : given_time(given[1], 0, 0);
}

INLINE void fill_naming(struct dk_record *record, struct naming *call, u32 flags)
{
	fill_head(record, bpf_get_current_task_btf(), KIND_PATH, NO_VOLUME, call->begun.ns);
	record->flags = flags;
	record->offset = call->op;
	record->length = call->length + call->length2;
	record->aux = call->aux;
	record->extra = call->extra;
	record->uid = call->uid;
	record->gid = call->gid;
	fill_bases(record, call);
	if (call->op == OP_UTIMES)
		fill_times(record, call);
	if (call->makes)
		fill_made(record, call);
	if (call->op == OP_LINK)
		fill_linked(record, call);
	flag_name_overlap(record, call->begun.order);
	if (call->op == OP_TRUNCATE) {
		u32 another = dk_ended(BUCKET_PATH_TRUNCATE, call->begun.order, order_end(), 0);

		if (another || ended_since(BUCKET_CHANGED_IN_TRUNCATE, call->begun.order))
			record->flags |= FLAG_OVERLAPPED;
	}
}

/* Tell the call described in this processor's scratch. Global, so that it is verified by itself. */
__attribute__((noinline)) int dk_emit_naming(void)
{
	struct naming *call = scratch();
	struct dk_record *record;
	struct bpf_dynptr room;
	u32 flags = 0, total;

	if (!call)
		return 0;
	call->length = read_text(call, 0, call->path, &flags);
	call->length2 = 0;
	if (call->path2 && call->length <= TEXT_MAX)
		call->length2 = read_text(call, call->length, call->path2, &flags);
	if (!flags && call->in_parent &&
	    (!call->base || dk_surely_outside(0, call->length, call->directory)) &&
	    (!call->base2 || dk_surely_outside(call->length, call->length2, call->directory2)))
		return 0;
	if (flags & FLAG_UNREADABLE)
		call->length = call->length2 = 0;
	total = call->length + call->length2;
	if (total > sizeof(call->text))
		return 0;
	if (bpf_ringbuf_reserve_dynptr(&ring, sizeof(*record) + total, 0, &room)) {
		bpf_ringbuf_discard_dynptr(&room, 0);
		count_lost(NO_VOLUME, 0);
		return 0;
	}
	record = bpf_dynptr_data(&room, 0, sizeof(*record));
	if (!record) {
		bpf_ringbuf_discard_dynptr(&room, 0);
		return 0;
	}
	fill_naming(record, call, flags);
	if (total)
		bpf_dynptr_write(&room, sizeof(*record), call->text, total, 0);
	bpf_ringbuf_submit_dynptr(&room, 0);
	return 0;
}
