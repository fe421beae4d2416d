/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Calls about one file that do not change its bytes, and ways of writing that are not followed. */
#pragma once

/* The file of a descriptor if it is in a volume and the process is not ignored. Directories count too. */
INLINE u32 volume_of_fd(struct task_struct *task, struct file *file)
{
	u32 volume = volume_of(file->f_path.dentry);

	return volume >= TOO_DEEP || is_ignored(task) ? NO_VOLUME : volume;
}

/* A file outside every volume, as far as this name goes, that may be known by another one. */
INLINE bool described_elsewhere(struct task_struct *task, struct file *file)
{
	return regular(file) && !is_ignored(task) && may_be_elsewhere(file->f_inode, file->f_path.dentry);
}

static int on_simple(struct task_struct *task, u32 nr, u32 kind, u64 fd)
{
	struct file *file = AS(file, file_of(task, fd));
	u32 volume = volume_of_fd(task, file);
	struct inode *inode = file->f_inode;
	struct dk_record *record;

	if (volume == NO_VOLUME && (kind == KIND_SYNC || !described_elsewhere(task, file)))
		return 0;
	record = begin_record(kind, volume, inode, 0);
	if (!record)
		return 0;
	record->start_ns = record->end_ns;
	record->extra = nr;
	record->aux = kind == KIND_ATTR ? inode->i_mode : inode->i_size;
	if (kind == KIND_ATTR) {
		record->offset = inode->i_atime_sec * NS_A_SECOND + inode->i_atime_nsec;
		record->length = inode->i_mtime_sec * NS_A_SECOND + inode->i_mtime_nsec;
	}
	bpf_ringbuf_submit(record, 0);
	return 0;
}

static int tell_mapped(struct task_struct *task, struct file *file, u64 offset, u64 length, u32 nr)
{
	struct dentry *dentry = file->f_path.dentry, *seen = AS(backing_file, file)->user_path.dentry;
	struct dk_record *record;
	struct inode *inode;
	u32 volume;

	/* What is mapped on an overlay is the file below it, which knows how it was seen. */
	if (seen->d_sb->s_magic == OVERLAY_MAGIC && seen->d_inode)
		dentry = seen;
	inode = dentry->d_inode;
	if ((inode->i_mode & S_IFMT) != S_IFREG || !may_hold_volume(inode->i_sb->s_dev))
		return 0;
	volume = volume_of(dentry);
	if (volume >= TOO_DEEP || is_ignored(task))
		volume = NO_VOLUME;
	if (volume == NO_VOLUME && (is_ignored(task) || !may_be_elsewhere(inode, dentry)))
		return 0;
	record = begin_record(KIND_MAPPED, volume, inode, 0);
	if (!record)
		return 0;
	record->start_ns = record->end_ns;
	record->extra = nr;
	record->aux = inode->i_size;
	record->offset = offset;
	record->length = length;
	record->inode2 = follow_pages(inode);
	bpf_ringbuf_submit(record, 0);
	return 0;
}

#define MAP_KIND 0xf
#define MAP_ANONYMOUS 0x20
#define PROT_WRITE 2
#define VM_SHARED 8

static int on_mapping(struct task_struct *task, struct pt_regs *regs, u32 nr)
{
	u32 sharing = ARG3(regs) & MAP_KIND;

	/* MAP_SHARED or MAP_SHARED_VALIDATE of a file */
	if (!(ARG2(regs) & PROT_WRITE) || (sharing != 1 && sharing != 3) || (ARG3(regs) & MAP_ANONYMOUS))
		return 0;
	return tell_mapped(task, AS(file, file_of(task, ARG4(regs))), ARG5(regs), ARG1(regs), nr);
}

struct shared_part {
	u64 file;
	u64 offset;
};

static long note_shared(struct task_struct *task __attribute__((unused)), struct vm_area_struct *area,
			struct shared_part *found)
{
	if (area->vm_file && (area->vm_flags & VM_SHARED)) {
		found->file = (u64)area->vm_file;
		found->offset = area->vm_pgoff;
	}
	return 0;
}

/* What was mapped to be read becomes writable. */
static int on_protecting(struct task_struct *task, struct pt_regs *regs, u32 nr)
{
	struct shared_part found = {};

	if (!(ARG2(regs) & PROT_WRITE))
		return 0;
	bpf_find_vma(task, ARG0(regs), note_shared, &found, 0);
	if (!found.file)
		return 0;
	return tell_mapped(task, AS(file, found.file), 0, ~0ull >> 1, nr);
}

static int on_extended(struct task_struct *task, u64 fd, u64 name)
{
	struct file *file = AS(file, file_of(task, fd));
	u32 length, volume = volume_of_fd(task, file);
	struct inode *inode = file->f_inode;
	struct naming *texts = scratch();
	struct dk_record *record;
	struct bpf_dynptr room;
	long n;

	if (!texts || (volume == NO_VOLUME && !described_elsewhere(task, file)))
		return 0;
	n = bpf_probe_read_user_str(texts->text, 256, (void *)name);
	length = n < 1 ? 0 : n - 1;
	if (length > 255)
		length = 255;
	if (bpf_ringbuf_reserve_dynptr(&ring, sizeof(*record) + length, 0, &room)) {
		bpf_ringbuf_discard_dynptr(&room, 0);
		count_lost(volume, inode->i_ino);
		return 0;
	}
	record = bpf_dynptr_data(&room, 0, sizeof(*record));
	if (!record) {
		bpf_ringbuf_discard_dynptr(&room, 0);
		return 0;
	}
	fill_head(record, task, KIND_XATTR, volume, 0);
	fill_inode(record, inode);
	record->start_ns = record->end_ns;
	record->flags |= n < 0 ? FLAG_UNREADABLE : 0;
	record->length = length;
	bpf_dynptr_write(&room, sizeof(*record), texts->text, length, 0);
	bpf_ringbuf_submit_dynptr(&room, 0);
	return 0;
}

static int on_unfollowed(struct task_struct *task, u32 nr, u32 volume, u64 inode)
{
	struct dk_record *record;

	if (is_ignored(task))
		return 0;
	record = bpf_ringbuf_reserve(&ring, sizeof(*record), 0);
	if (!record) {
		count_lost(NO_VOLUME, 0);
		return 0;
	}
	fill_head(record, task, KIND_UNSEEN, volume, 0);
	record->start_ns = record->end_ns;
	record->extra = nr;
	record->inode = inode;
	bpf_ringbuf_submit(record, 0);
	return 0;
}

#define COMPAT_NUMBER 0x40000000

/*
 * A 32-bit program: its calls have other numbers and are not followed. That it starts, and that it opens a
 * file of a volume.
 */
static int on_compat(struct task_struct *task, u32 nr, s64 ret)
{
	u32 volume = NO_VOLUME;

	if (ret < 0)
		return 0;
	if (nr == NR_compat_rename || nr == NR_compat_renameat || nr == NR_compat_renameat2)
		__sync_fetch_and_add(&state.moves, 1);
	if (nr == NR_compat_open || nr == NR_compat_creat || nr == NR_compat_openat) {
		volume = volume_of_fd(task, AS(file, file_of(task, ret)));
		if (volume == NO_VOLUME)
			return 0;
	} else if (nr != NR_compat_execve && nr != NR_compat_execveat) {
		return 0;
	}
	return on_unfollowed(task, nr | COMPAT_NUMBER, volume, 0);
}
