/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Calls that change the content or the size of a file. */
#pragma once

/*
 * The descriptor was closed or replaced while a call on it ran (a fault of the program, but its bytes are
 * in a file): the file as it was known at the start has to be read again, in whichever volume it is.
 */
INLINE void emit_vanished(struct task_struct *task, struct dk_task *before, u32 nr)
{
	struct dk_record *record = bpf_ringbuf_reserve(&ring, sizeof(*record), 0);

	if (!record) {
		count_lost(NO_VOLUME, before->inode);
		return;
	}
	fill_head(record, task, KIND_REREAD, NO_VOLUME, before->begun.ns);
	record->inode = before->inode;
	record->device = before->device;
	record->length = ~0ull >> 1;
	record->extra = nr;
	flag_overlap(record, before->begun.order, 0);
	bpf_ringbuf_submit(record, 0);
}

/* The volume of a changed file; NO_VOLUME after having said all that has to be said about it. */
INLINE u32 volume_to_tell(struct task_struct *task, struct dk_task *mine, struct file *file,
			  struct inode *inode, struct dk_begun begun, u32 nr)
{
	u32 volume = volume_of_change(task, mine, file, inode);

	if (likely(volume < IGNORED))
		return volume;
	if (volume == NO_VOLUME && may_be_elsewhere(inode, file->f_path.dentry))
		emit_reread(NO_VOLUME, inode, begun, 0, 0, ~0ull >> 1, nr);
	/* It may be in any volume, under a name nobody was told. */
	if (volume == TOO_DEEP)
		count_lost(NO_VOLUME, 0);
	return NO_VOLUME;
}

INLINE u32 write_flags(struct file *file, u32 rwf)
{
	u32 flags = file->f_flags, result = 0;

	if ((flags & O_DSYNC_FLAG) || (rwf & (RWF_DSYNC | RWF_SYNC)))
		result |= FLAG_SYNCHRONOUS;
	if (flags & O_DIRECT_FLAG)
		result |= FLAG_DIRECT;
	if (((flags & O_APPEND_FLAG) && !(rwf & RWF_NOAPPEND)) || (rwf & RWF_APPEND))
		result |= FLAG_APPEND;
	return result;
}

static int on_write(struct task_struct *task, struct pt_regs *regs, u32 nr, s64 ret)
{
	struct dk_task *mine = kept_of(task), *before = take_started(mine, nr);
	struct file *file = AS(file, file_of(task, ARG0(regs)));
	struct inode *inode = regular(file);
	u32 rwf = nr == NR_pwritev2 ? ARG5(regs) : 0;
	struct written w = {};
	bool by_position, certain;
	s64 from, to;

	if (unlikely(before && (!inode || before->file != (u64)file || before->inode != inode->i_ino))) {
		emit_vanished(task, before, nr);
		before = NULL;
	}
	if (!inode || ret <= 0)
		return 0;
	w.begun = begun_of(before);
	w.volume = volume_to_tell(task, mine, file, inode, w.begun, nr);
	if (w.volume == NO_VOLUME)
		return 0;
	w.flags = write_flags(file, rwf);
	by_position = nr == NR_write || nr == NR_writev || (nr == NR_pwritev2 && (s64)ARG3(regs) == -1);
	certain = place(file, inode, before, w.flags & FLAG_APPEND, by_position, ARG3(regs), ret, &from, &to);
	if (unlikely(!certain)) {
		emit_reread(w.volume, inode, w.begun, w.flags | FLAG_OVERLAPPED, from, to, nr);
		hold_if_gated(task, w.volume, w.flags);
		return 0;
	}
	w.offset = from;
	w.length = ret;
	w.size = inode->i_size;
	w.inode = inode->i_ino;
	w.generation = inode->i_generation;
	w.device = inode->i_sb->s_dev;
	w.uid = inode->i_uid.val;
	w.gid = inode->i_gid.val;
	if (!inode->i_nlink)
		w.flags |= FLAG_UNLINKED;
	w.extra = nr;
	if (nr == NR_write || nr == NR_pwrite64) {
		w.buffer = ARG1(regs);
	} else {
		w.vector = ARG1(regs);
		w.segments = ARG2(regs);
	}
	emit_write(task, &w);
	hold_if_gated(task, w.volume, w.flags);
	return 0;
}

#define EINVAL 22
#define EOPNOTSUPP 95

/* What an allocation does to bytes follows from its mode; the observer knows how. */
INLINE int tell_allocated(struct pt_regs *regs, u32 volume, struct inode *inode, struct dk_begun begun,
			  s64 ret)
{
	struct dk_record *record;

	if (ret < 0) {
		emit_reread(volume, inode, begun, 0, 0, ~0ull >> 1, NR_fallocate);
		return 0;
	}
	record = begin_record(KIND_ALLOCATED, volume, inode, begun.ns);
	if (!record)
		return 0;
	record->offset = ARG2(regs);
	record->length = ARG3(regs);
	record->aux = inode->i_size;
	record->extra = ARG1(regs);
	flag_overlap(record, begun.order, 0);
	bpf_ringbuf_submit(record, 0);
	return 0;
}

static int on_range(struct task_struct *task, struct pt_regs *regs, u32 nr, s64 ret)
{
	struct dk_task *mine, *before;
	struct file *file;
	struct inode *inode;
	s64 from = 0, to;
	struct dk_begun begun;
	u64 place_of_offset = 0;
	u32 volume;

	if (!changes_range(regs, nr))
		return 0;
	mine = kept_of(task);
	before = take_started(mine, nr);
	file = AS(file, file_of(task, changed_fd(regs, nr)));
	inode = regular(file);
	if (unlikely(before && (!inode || before->file != (u64)file || before->inode != inode->i_ino))) {
		emit_vanished(task, before, nr);
		before = NULL;
	}
	/* An allocation that fails may have been done in part. */
	if (!inode || (nr == NR_fallocate ? ret == -EINVAL || ret == -EOPNOTSUPP : ret < 0) ||
	    (!ret && nr != NR_fallocate && nr != NR_ioctl))
		return 0;
	begun = begun_of(before);
	volume = volume_to_tell(task, mine, file, inode, begun, nr);
	if (volume == NO_VOLUME)
		return 0;
	if (nr == NR_fallocate) {
		tell_allocated(regs, volume, inode, begun, ret);
		hold_if_gated(task, volume, write_flags(file, 0));
		return 0;
	}
	to = inode->i_size;
	if (nr != NR_ioctl) {
		if (nr != NR_sendfile)
			place_of_offset = ARG3(regs);
		if (place_of_offset) {
			if (!bpf_probe_read_user(&from, sizeof(from), (void *)place_of_offset)) {
				to = from;
				from -= ret;
			}
		} else {
			bool append = write_flags(file, 0) & FLAG_APPEND;

			place(file, inode, before, append, true, 0, ret, &from, &to);
		}
	}
	emit_reread(volume, inode, begun, write_flags(file, 0), from, to, nr);
	if (nr != NR_ioctl)
		hold_if_gated(task, volume, write_flags(file, 0));
	return 0;
}

static int on_resize(struct task_struct *task, struct pt_regs *regs, u32 nr, s64 ret)
{
	struct dk_task *mine = kept_of(task), *before = take_started(mine, nr);
	struct file *file = AS(file, file_of(task, ARG0(regs)));
	struct inode *inode = regular(file);
	struct dk_record *record;
	struct dk_begun begun;
	u32 volume;

	if (unlikely(before && (!inode || before->file != (u64)file || before->inode != inode->i_ino))) {
		emit_vanished(task, before, nr);
		before = NULL;
	}
	if (!inode || ret < 0)
		return 0;
	begun = begun_of(before);
	volume = volume_to_tell(task, mine, file, inode, begun, nr);
	if (volume == NO_VOLUME)
		return 0;
	record = begin_record(KIND_SIZE, volume, inode, begun.ns);
	if (!record)
		return 0;
	record->aux = ARG1(regs);
	flag_overlap(record, begun.order, 0);
	bpf_ringbuf_submit(record, 0);
	return 0;
}

static int on_open(struct task_struct *task, struct pt_regs *regs, u32 nr, s64 ret)
{
	u32 asked = open_flags(regs, nr), length, what;
	struct dk_task *mine, *before;
	struct naming *texts;
	struct dentry *dentry, *parent;
	struct inode *inode;
	struct file *file;
	struct dk_record *record;
	struct dk_begun begun;
	struct bpf_dynptr room;
	u32 volume;

	if (!(asked & (O_CREAT_FLAG | O_TRUNC_FLAG)))
		return 0;
	mine = kept_of(task);
	before = take_started(mine, nr);
	if (ret < 0)
		return 0;
	file = AS(file, file_of(task, ret));
	inode = regular(file);
	if (!inode)
		return 0;
	if (file->f_mode & FMODE_CREATED)
		what = FLAG_CREATED;
	else if (asked & O_TRUNC_FLAG)
		what = FLAG_TRUNCATED;
	else
		return 0;
	begun = begun_of(before);
	volume = volume_to_tell(task, mine, file, inode, begun, nr);
	texts = scratch();
	if (volume == NO_VOLUME || !texts)
		return 0;
	dentry = file->f_path.dentry;
	parent = dentry->d_parent;
	length = dentry->d_name.len;
	if (length > 255 || bpf_probe_read_kernel(texts->text, length, dentry->d_name.name))
		length = 0;
	if (bpf_ringbuf_reserve_dynptr(&ring, sizeof(*record) + length, 0, &room)) {
		bpf_ringbuf_discard_dynptr(&room, 0);
		count_lost(volume, inode->i_ino);
		/* The observer has never heard of a new file; of its directory it has. */
		count_lost(volume, parent->d_inode->i_ino);
		return 0;
	}
	record = bpf_dynptr_data(&room, 0, sizeof(*record));
	if (!record) {
		bpf_ringbuf_discard_dynptr(&room, 0);
		return 0;
	}
	fill_head(record, task, KIND_OPEN, volume, begun.ns);
	fill_inode(record, inode);
	record->flags |= what;
	record->length = length;
	record->aux = inode->i_mode;
	record->inode2 = parent->d_inode->i_ino;
	record->generation2 = parent->d_inode->i_generation;
	record->device2 = record->device;
	record->extra = nr;
	flag_overlap(record, begun.order, 0);
	if (what == FLAG_CREATED)
		flag_name_overlap(record, begun.order);
	bpf_dynptr_write(&room, sizeof(*record), texts->text, length, 0);
	bpf_ringbuf_submit_dynptr(&room, 0);
	return 0;
}
