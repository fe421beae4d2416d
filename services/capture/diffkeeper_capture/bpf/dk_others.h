/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Calls about one file that do not change its bytes, and ways of writing that are not followed. */
#pragma once

/* The file of a descriptor if it is in a volume and the process is not ignored. Directories count too. */
INLINE u32 volume_of_fd(struct task_struct *task, struct file *file)
{
	u32 volume = volume_of(file->f_path.dentry);

	return volume >= TOO_DEEP || is_ignored(task) ? NO_VOLUME : volume;
}

static int on_simple(struct task_struct *task, struct pt_regs *regs, u32 nr, u32 kind, u64 fd)
{
	struct file *file = AS(file, file_of(task, fd));
	u32 volume = volume_of_fd(task, file);
	struct inode *inode = file->f_inode;
	struct dk_record *record;

	if (volume == NO_VOLUME)
		return 0;
	record = begin_record(kind, volume, inode, 0);
	if (!record)
		return 0;
	record->start_ns = record->end_ns;
	record->extra = nr;
	record->aux = kind == KIND_ATTR ? inode->i_mode : inode->i_size;
	if (kind == KIND_MAPPED) {
		record->offset = ARG5(regs);
		record->length = ARG1(regs);
	}
	bpf_ringbuf_submit(record, 0);
	return 0;
}

static int on_mapping(struct task_struct *task, struct pt_regs *regs, u32 nr)
{
	u32 sharing = ARG3(regs) & 0xf;

	/* PROT_WRITE, and MAP_SHARED or MAP_SHARED_VALIDATE of a file */
	if (!(ARG2(regs) & 2) || (sharing != 1 && sharing != 3) || (ARG3(regs) & 0x20))
		return 0;
	return on_simple(task, regs, nr, KIND_MAPPED, ARG4(regs));
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

	if (volume == NO_VOLUME || !texts)
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

static int on_unfollowed(struct task_struct *task, u32 nr, u32 volume)
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
	return on_unfollowed(task, nr | COMPAT_NUMBER, volume);
}
