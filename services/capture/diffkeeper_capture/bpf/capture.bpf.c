// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The exact probe. Two programs on the stable tracepoints of system calls:
 *
 *   sys_enter  remembers, for calls that change content, size or names, when they began and where the
 *              file stood;
 *   sys_exit   finds the file, climbs to the root of a volume, and puts head and bytes into one ring.
 *
 * Promised: a record for each successful call below a root, in the order in which the calls returned, except
 * what the record itself says is uncertain (flags OVERLAPPED, UNREADABLE, kind REREAD) and what the lost
 * counters say had no room. Every other call of the machine pays a few loads.
 *
 * Files, from the ground up: dk_bpf.h (helpers, kernel structures), dk_record.h (what crosses to the agent),
 * dk_syscalls.h and dk_calls.h (numbers, classes), dk_find.h (file and volume), dk_tasks.h (between enter and
 * exit), dk_emit.h (ring and order), dk_hold.h (who waits after a call), dk_write.h, dk_names.h (the two rich
 * records), then the handlers: dk_content.h, dk_pages.h, dk_others.h, dk_paths.h, dk_async.h.
 */
#include "dk_bpf.h"
#include "dk_record.h"
#include "dk_syscalls.h"

struct dk_state state SEC(".bss.state");

#include "dk_calls.h"
#include "dk_find.h"
#include "dk_tasks.h"
#include "dk_emit.h"
#include "dk_hold.h"
#include "dk_write.h"
#include "dk_names.h"
#include "dk_content.h"
#include "dk_pages.h"
#include "dk_others.h"
#include "dk_paths.h"
#include "dk_async.h"

SEC("tp_btf/sys_enter")
int dk_sys_enter(u64 *ctx)
{
	struct pt_regs *regs = (struct pt_regs *)ctx[0];
	u64 nr = ctx[1];
	struct task_struct *task;
	struct dk_task *before;
	struct inode *inode = NULL;
	struct file *file = NULL;
	u32 class;

	if (nr >= CLASSES)
		return 0;
	class = class_of[nr];
	if (class < TIMED || !state.volumes)
		return 0;
	task = bpf_get_current_task_btf();
	if (IS_COMPAT(task))
		return 0;
	if (class == OPENING) {
		if (!(open_flags(regs, nr) & (O_CREAT_FLAG | O_TRUNC_FLAG)))
			return 0;
	} else if (class != NAMING) {
		if (class == RANGE && !changes_range(regs, nr))
			return 0;
		file = AS(file, file_of(task, changed_fd(regs, nr)));
		inode = regular(file);
		if (!inode)
			return 0;
	}
	before = bpf_task_storage_get(&tasks, task, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!before)
		return 0;
	before->call = nr + 1;
	before->file = (u64)file;
	if (inode) {
		before->inode = inode->i_ino;
		before->device = inode->i_sb->s_dev;
		before->position = file->f_pos;
		before->size = inode->i_size;
	}
	if (nr == NR_truncate)
		__sync_fetch_and_add(&state.truncates_in_flight, 1);
	before->begun.ns = bpf_ktime_get_ns();
	before->begun.order = order_now();
	return 0;
}

/* The agent asks by a length that only it knows: who is this descriptor, who am I? */
INLINE void answer(struct task_struct *task, struct file *file)
{
	struct inode *inode = file->f_inode;

	note_place(inode);
	state.answer_inode = inode->i_ino;
	state.answer_generation = inode->i_generation;
	state.answer_device = inode->i_sb->s_dev;
	state.answer_tgid = task->tgid;
	__sync_fetch_and_add(&state.answer_count, 1);
}

SEC("tp_btf/sys_exit")
int dk_sys_exit(u64 *ctx)
{
	struct pt_regs *regs = (struct pt_regs *)ctx[0];
	s64 ret = ctx[1];
	u64 nr = (s64)CALL_NR(regs);
	struct task_struct *task;
	u32 class;

	if (nr >= CLASSES)
		return 0;
	class = class_of[nr];
	if (class == OTHER)
		return 0;
	if (unlikely(nr == NR_ftruncate && state.asked_length && ARG1(regs) == state.asked_length)) {
		task = bpf_get_current_task_btf();
		answer(task, AS(file, file_of(task, ARG0(regs))));
		return 0;
	}
	if (!state.volumes)
		return 0;
	task = bpf_get_current_task_btf();
	if (IS_COMPAT(task))
		return on_compat(task, nr, ret);
	/* Classes below TIMED have nothing to clean up after a failed call. */
	if (class < TIMED && ret < 0 && ret > -4096)
		return 0;
	if (class >= TIMED)
		hold_if_pressed(task);
	switch (class) {
	case WRITING:
		return on_write(task, regs, nr, ret);
	case RANGE:
		return on_range(task, regs, nr, ret);
	case RESIZING:
		return on_resize(task, regs, nr, ret);
	case OPENING:
		return on_open(task, regs, nr, ret);
	case NAMING:
		return on_naming(task, regs, nr, ret);
	case ATTRIBUTES:
		return on_simple(task, nr, KIND_ATTR, ARG0(regs));
	case SYNCING:
		return on_simple(task, nr, KIND_SYNC, ARG0(regs));
	case EXTENDED:
		return on_extended(task, ARG0(regs), ARG1(regs));
	case MAPPING:
		return on_mapping(task, regs, nr);
	case PROTECTING:
		return on_protecting(task, regs, nr);
	case SUBMITTING:
		return on_submit(task, regs, ret);
	case UNFOLLOWED:
		if (state.followed & (nr == NR_io_setup ? FOLLOWS_DIRECT : FOLLOWS_URING))
			return 0;
		return on_unfollowed(task, nr, NO_VOLUME, 0);
	}
	return 0;
}

SEC("tp_btf/writeback_dirty_folio")
int dk_dirty_folio(u64 *ctx)
{
	u64 folio = ctx[0];
	struct address_space *mapping = (struct address_space *)ctx[1];
	struct task_struct *task;
	struct inode *inode;

	if (!state.volumes || !mapping)
		return 0;
	inode = mapping->host;
	if ((inode->i_mode & S_IFMT) != S_IFREG || !may_hold_volume(inode->i_sb->s_dev))
		return 0;
	task = bpf_get_current_task_btf();
	if (!is_mapped(inode) && is_told(task, inode))
		return 0;
	return is_ignored(task) ? 0 : on_dirtied(folio, inode);
}

SEC("tp_btf/io_uring_complete")
int dk_uring_done(u64 *ctx)
{
	s64 result;

	if (!state.volumes || !ctx[1])
		return 0;
	result = AS(io_uring_cqe, ctx[2])->res;
	return result < 0 ? 0 : on_uring_done(AS(io_kiocb, ctx[1]), result);
}

SEC("tp_btf/io_uring_submit_req")
int dk_uring_silent(u64 *ctx)
{
	struct io_kiocb *request = AS(io_kiocb, ctx[0]);

	return state.volumes && request->flags & URING_CQE_SKIP ? on_uring_silent(request) : 0;
}

SEC("tp_btf/iomap_dio_complete")
int dk_direct_done(u64 *ctx)
{
	struct kiocb *done = AS(kiocb, ctx[0]);
	u32 wanted = IOCB_WRITE | IOCB_AIO_RW;

	if (!state.volumes || (done->ki_flags & wanted) != wanted)
		return 0;
	return on_direct_done(done, ctx[2]);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
