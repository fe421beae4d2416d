/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Pages that turn dirty by other means than the calls that are told: stores through a mapping, io_uring,
 * an overlay above the volume, a loop device or a server of the kernel that writes to its files. Of a file
 * that is mapped writable every page is told, whoever made it dirty: stores to a dirty page are told by
 * nobody.
 */
#pragma once

struct dk_file_key {
	u64 inode;
	u32 device;
	u32 unused;
};

struct {
	MAP_UINT(type, BPF_MAP_TYPE_HASH);
	MAP_UINT(max_entries, 65536);
	MAP_UINT(map_flags, BPF_F_NO_PREALLOC);
	MAP_TYPE(key, struct dk_file_key);
	MAP_TYPE(value, u32);
} mapped SEC(".maps");

INLINE bool is_mapped(struct inode *inode)
{
	struct dk_file_key key = {.inode = inode->i_ino, .device = inode->i_sb->s_dev};

	return state.mapped && inode->i_mapping->i_mmap_writable.counter > 0 && bpf_map_lookup_elem(&mapped, &key);
}

/* From now on the pages of this file are told; and was one dirty before? */
INLINE u32 follow_pages(struct inode *inode)
{
	struct dk_file_key key = {.inode = inode->i_ino, .device = inode->i_sb->s_dev};
	u32 one = 1;

	if (!(state.followed & FOLLOWS_PAGES) || bpf_map_update_elem(&mapped, &key, &one, 0))
		return 0;
	__sync_fetch_and_add(&state.mapped, 1);
	/* The marks of the page cache (dirty, under writeback) stand above the flags of its array. */
	return MAPPED_FOLLOWED | (inode->i_mapping->i_pages.xa_flags >> 20 ? MAPPED_DIRTY : 0);
}

/* Whether the call that runs tells by itself what it does to this file. */
INLINE bool is_told(struct task_struct *task, struct inode *inode)
{
	struct pt_regs *regs;
	u64 nr;

	if (task->flags & PF_KTHREAD || IS_COMPAT(task))
		return false;
	regs = bpf_task_pt_regs(task);
	nr = (s64)CALL_NR(regs);
	if (nr >= CLASSES)
		return false;
	switch (class_of[nr]) {
	case WRITING:
	case RANGE:
	case RESIZING:
		return AS(file, file_of(task, changed_fd(regs, nr)))->f_inode == inode;
	case NAMING:
		return nr == NR_truncate;
	}
	return false;
}

INLINE u32 pages_of(u64 folio)
{
	u64 head = __builtin_preserve_enum_value(*(typeof(enum pageflags) *)PG_head, 1);

	/* Flags are the first word of a page; of a large folio the second page has its order there. */
	if (!(word_at(folio) & (1ull << (head & 63))))
		return 1;
	return 1u << (word_at(folio + SIZE_OF(page)) & 31);
}

static int on_dirtied(u64 folio, struct inode *inode)
{
	u64 alias = (u64)inode->i_dentry.first;
	struct dk_record *record;
	u32 volume = NO_VOLUME;

	if (alias) {
		struct dentry *dentry = AS(dentry, alias - OFFSET_OF(dentry, d_u.d_alias));

		volume = volume_of(dentry);
		if (volume == NO_VOLUME && !may_be_elsewhere(inode, dentry))
			return 0;
	}
	if (volume == TOO_DEEP) {
		count_lost(NO_VOLUME, 0);
		return 0;
	}
	record = begin_record(KIND_DIRTIED, volume, inode, 0);
	if (!record)
		return 0;
	record->start_ns = record->end_ns;
	record->offset = AS(folio, folio)->index;
	record->length = pages_of(folio);
	record->aux = inode->i_size;
	bpf_ringbuf_submit(record, 0);
	return 0;
}
