/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Writes that are asked for by one call and done by none: Linux AIO and io_uring. Their bytes may have changed
 * by the time they are done, so only where they went is told, and that is read again.
 */
#pragma once

#define SUBMITTED_MAX 256
#define AIO_PWRITE 1
#define AIO_PWRITEV 8

struct aio_block {
	u64 data;
	u32 key, rw_flags;
	u16 operation;
	u16 priority;
	u32 fd;
	u64 buffer;
	u64 size;
	s64 offset;
};

/* One request of io_submit: buffered, it is done; direct, dk_direct_done tells when it is. */
static __attribute__((noinline)) int tell_submitted(struct task_struct *task, u64 address)
{
	struct aio_block block;
	struct dk_begun unknown = {};
	struct inode *inode;
	struct file *file;
	s64 from, to;
	u32 volume, flags;

	if (bpf_probe_read_user(&block, sizeof(block), (void *)address))
		return 0;
	if (block.operation != AIO_PWRITE && block.operation != AIO_PWRITEV)
		return 0;
	file = AS(file, file_of(task, block.fd));
	inode = regular(file);
	if (!inode)
		return 0;
	volume = volume_to_tell(task, NULL, file, inode, unknown, NR_io_submit);
	if (volume == NO_VOLUME)
		return 0;
	flags = write_flags(file, block.rw_flags);
	from = flags & FLAG_APPEND ? 0 : block.offset;
	to = block.operation == AIO_PWRITE && !(flags & FLAG_APPEND) ? from + (s64)block.size : ~0ull >> 1;
	emit_reread(volume, inode, unknown, flags, from, to, NR_io_submit);
	return 0;
}

static int on_submit(struct task_struct *task, struct pt_regs *regs, s64 ret)
{
	u64 i = 0, address;

	FOR_UP_TO (SUBMITTED_MAX) {
		if ((s64)i >= ret)
			return 0;
		if (!bpf_probe_read_user(&address, sizeof(address), (void *)(ARG2(regs) + 8 * i)))
			tell_submitted(task, address);
		i++;
	}
	if (ret > SUBMITTED_MAX)
		return on_unfollowed(task, NR_io_submit, NO_VOLUME, 0);
	return 0;
}

#define IOCB_WRITE (1 << 18)
#define IOCB_AIO_RW (1 << 23)

/* A direct write of AIO is on disk. In an interrupt, or in a worker of the kernel. */
static int on_direct_done(struct kiocb *done, s64 written)
{
	struct file *file = AS(file, done->ki_filp);
	struct inode *inode = regular(file);
	struct dk_begun unknown = {};
	u32 volume;

	if (!inode || written <= 0)
		return 0;
	volume = volume_by_lane(file->f_path.dentry, LANE_INTERRUPT);
	if (volume == NO_VOLUME && !may_be_elsewhere(inode, file->f_path.dentry))
		return 0;
	if (volume == TOO_DEEP) {
		count_lost(NO_VOLUME, 0);
		return 0;
	}
	emit_reread(volume, inode, unknown, FLAG_DIRECT, done->ki_pos - written, done->ki_pos, NR_io_submit);
	return 0;
}

enum uring_operation {
	URING_WRITEV = 2, URING_WRITE_FIXED = 5, URING_FALLOCATE = 17, URING_OPENAT = 18, URING_WRITE = 23,
	URING_OPENAT2 = 28, URING_SPLICE = 30, URING_RENAMEAT = 35, URING_UNLINKAT, URING_MKDIRAT,
	URING_SYMLINKAT, URING_LINKAT, URING_FSETXATTR = 41, URING_SETXATTR, URING_FTRUNCATE = 55,
	URING_WRITEV_FIXED = 61,
};

INLINE bool writes_at_position(u32 operation)
{
	return operation == URING_WRITE || operation == URING_WRITEV || operation == URING_WRITE_FIXED ||
	       operation == URING_WRITEV_FIXED;
}

/* Operations on a descriptor that change content, all of it as far as we know. */
INLINE bool changes_somewhere(u32 operation)
{
	return operation == URING_FALLOCATE || operation == URING_SPLICE || operation == URING_FTRUNCATE;
}

INLINE bool changes_names(u32 operation)
{
	return (operation >= URING_RENAMEAT && operation <= URING_LINKAT) || operation == URING_SETXATTR;
}

/* Somehow this file changed, or will: all of it is to be looked at. */
INLINE int tell_silent(struct task_struct *task, struct file *file, u32 number)
{
	struct inode *inode = file->f_inode;
	u32 volume = volume_of_fd(task, file);

	return volume == NO_VOLUME ? 0 : on_unfollowed(task, number, volume, inode->i_ino);
}

static int on_uring_done(struct io_kiocb *request, s64 result)
{
	struct task_struct *task = bpf_get_current_task_btf();
	u32 operation = request->opcode, number = URING_NUMBER | operation, volume;
	struct dk_begun unknown = {};
	s64 from = 0, to = ~0ull >> 1;
	struct inode *inode;
	struct file *file;

	if (changes_names(operation))
		return on_unfollowed(task, number, NO_VOLUME, 0);
	if (operation == URING_FSETXATTR)
		return tell_silent(task, AS(file, request->file), number);
	if (operation == URING_OPENAT || operation == URING_OPENAT2) {
		/* A descriptor of the ring alone, or one that is closed again, has a file that was not seen. */
		file = AS(file, file_of(task, result));
		return file->f_mode & FMODE_WRITE ? tell_silent(task, file, number) : 0;
	}
	if (!writes_at_position(operation) && !changes_somewhere(operation))
		return 0;
	file = AS(file, request->file);
	inode = regular(file);
	if (!inode)
		return 0;
	if (writes_at_position(operation)) {
		to = AS(io_rw, request)->kiocb.ki_pos;
		from = to - result;
	}
	volume = volume_to_tell(task, NULL, file, inode, unknown, number);
	if (volume != NO_VOLUME)
		emit_reread(volume, inode, unknown, write_flags(file, 0), from, to, number);
	return 0;
}

#define URING_CQE_SKIP (1 << 6)
#define URING_FIXED_FILE 1

/* A request that will not be told to be done, because its program does not want to hear of it. */
static int on_uring_silent(struct io_kiocb *request)
{
	struct task_struct *task = bpf_get_current_task_btf();
	u32 operation = request->opcode, number = URING_NUMBER | operation;

	if (changes_names(operation))
		return on_unfollowed(task, number, NO_VOLUME, 0);
	if (operation != URING_FSETXATTR && !writes_at_position(operation) && !changes_somewhere(operation))
		return 0;
	if (request->flags & URING_FIXED_FILE)
		return on_unfollowed(task, number, NO_VOLUME, 0);
	return tell_silent(task, AS(file, file_of(task, request->cqe.fd)), number);
}
