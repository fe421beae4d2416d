// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The exact probe. Two programs on the stable tracepoints of system calls:
 *
 *   sys_enter  remembers, for calls that change content, size or names, when they began and where the file stood;
 *   sys_exit   finds the file, climbs to the root of a volume, and puts head and bytes into one ring.
 *
 * Promised: a record for each successful call below a root, in the order in which the calls returned, except what the record
 * itself says is uncertain (flags OVERLAPPED, UNREADABLE, kind REREAD) and what the lost counters say had no room. Every other
 * call of the machine pays a few loads. Files: dk_bpf.h (kernel structures), dk_syscalls.h (numbers), dk_record.h (what
 * crosses to the agent), dk_find.h (file and volume), dk_emit.h (ring and order), dk_write.h, dk_names.h.
 */
#include "dk_bpf.h"
#include "dk_record.h"
#include "dk_syscalls.h"

struct dk_state state SEC(".bss.state");

#include "dk_find.h"
#include "dk_emit.h"
#include "dk_write.h"
#include "dk_names.h"

struct {
	MAP_UINT(type, BPF_MAP_TYPE_TASK_STORAGE);
	MAP_UINT(map_flags, BPF_F_NO_PREALLOC);
	MAP_TYPE(key, s32);
	MAP_TYPE(value, struct dk_task);
} tasks SEC(".maps");

/* --------------------------------------------------------------------------------------------------- which calls matter */

enum class {
	OTHER, COMPAT, ATTRIBUTES, EXTENDED, MAPPING, UNFOLLOWED, SYNCING,
	TIMED = 16, /* from here on sys_enter takes the time */
	WRITING = TIMED, RANGE, RESIZING, OPENING, NAMING,
};

#define CLASSES 512
static const u8 class_of[CLASSES] = {
	[NR_write] = WRITING, [NR_pwrite64] = WRITING, [NR_writev] = WRITING, [NR_pwritev] = WRITING, [NR_pwritev2] = WRITING,
	[NR_fallocate] = RANGE, [NR_sendfile] = RANGE, [NR_splice] = RANGE, [NR_copy_file_range] = RANGE, [NR_ioctl] = RANGE,
	[NR_ftruncate] = RESIZING,
	[NR_openat] = OPENING, [NR_openat2] = OPENING, [NR_open_by_handle_at] = OPENING,
	[NR_mmap] = MAPPING,
	[NR_fsync] = SYNCING, [NR_fdatasync] = SYNCING, [NR_sync_file_range] = SYNCING,
	[NR_fchmod] = ATTRIBUTES, [NR_fchown] = ATTRIBUTES,
	[NR_fsetxattr] = EXTENDED, [NR_fremovexattr] = EXTENDED,
	[NR_io_setup] = UNFOLLOWED, [NR_io_uring_setup] = UNFOLLOWED,
	[NR_truncate] = NAMING, [NR_renameat] = NAMING, [NR_renameat2] = NAMING, [NR_mkdirat] = NAMING, [NR_unlinkat] = NAMING,
	[NR_linkat] = NAMING, [NR_symlinkat] = NAMING, [NR_mknodat] = NAMING, [NR_fchmodat] = NAMING, [NR_fchmodat2] = NAMING,
	[NR_fchownat] = NAMING, [NR_utimensat] = NAMING, [NR_setxattr] = NAMING, [NR_lsetxattr] = NAMING,
	[NR_setxattrat] = NAMING, [NR_removexattr] = NAMING, [NR_lremovexattr] = NAMING, [NR_removexattrat] = NAMING,
#if defined(DK_X86_64)
	[NR_open] = OPENING, [NR_creat] = OPENING,
	[NR_rename] = NAMING, [NR_mkdir] = NAMING, [NR_rmdir] = NAMING, [NR_unlink] = NAMING, [NR_link] = NAMING,
	[NR_symlink] = NAMING, [NR_mknod] = NAMING, [NR_chmod] = NAMING, [NR_chown] = NAMING, [NR_lchown] = NAMING,
	[NR_utime] = NAMING, [NR_utimes] = NAMING, [NR_futimesat] = NAMING,
	[NR_compat_open] = COMPAT, [NR_compat_creat] = COMPAT, [NR_compat_openat] = COMPAT, [NR_compat_execve] = COMPAT,
	[NR_compat_execveat] = COMPAT, [NR_compat_rename] = COMPAT, [NR_compat_renameat] = COMPAT, [NR_compat_renameat2] = COMPAT,
#endif
};

#define O_CREAT_FLAG 0100
#define O_TRUNC_FLAG 01000
#define FMODE_CREATED 0x100000

/* Flags of an open, or what stands for "cannot tell yet". */
INLINE u32 open_flags(struct pt_regs *regs, u32 nr)
{
	switch (nr) {
#if defined(DK_X86_64)
	case NR_open:
		return ARG1(regs);
	case NR_creat:
		return O_CREAT_FLAG | O_TRUNC_FLAG;
#endif
	case NR_openat2: {
		u64 how = 0;

		bpf_probe_read_user(&how, sizeof(how), (void *)ARG2(regs));
		return how;
	}
	default:
		return ARG2(regs);
	}
}

#define FICLONE 0x40049409
#define FICLONERANGE 0x4020940d

/* The descriptor that a call of these classes changes. */
INLINE u64 changed_fd(struct pt_regs *regs, u32 nr)
{
	return nr == NR_splice || nr == NR_copy_file_range ? ARG2(regs) : ARG0(regs);
}

INLINE bool changes_range(struct pt_regs *regs, u32 nr)
{
	u32 command = ARG1(regs);

	return nr != NR_ioctl || command == FICLONE || command == FICLONERANGE;
}

/* ---------------------------------------------------------------------------------------------------------- sys_enter */

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

/* ------------------------------------------------------------------------------------------- sys_exit, class by class */

INLINE struct dk_task *kept_of(struct task_struct *task)
{
	return bpf_task_storage_get(&tasks, task, NULL, 0);
}

/* What sys_enter saw of this call, taken once; NULL when the probe was not there yet. */
INLINE struct dk_task *take_started(struct dk_task *mine, u32 nr)
{
	if (!mine || mine->call != nr + 1)
		return NULL;
	mine->call = 0;
	return mine;
}

INLINE struct dk_begun begun_of(struct dk_task *before)
{
	struct dk_begun unknown = {};

	return before ? before->begun : unknown;
}

/*
 * The descriptor was closed or replaced while a call on it ran (a fault of the program, but its bytes are in a file): the file
 * as it was known at the start has to be read again, in whichever volume it is.
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
INLINE u32 volume_to_tell(struct task_struct *task, struct dk_task *mine, struct file *file, struct inode *inode, struct dk_begun begun, u32 nr)
{
	u32 volume = volume_of_change(task, mine, file, inode);

	if (likely(volume < IGNORED))
		return volume;
	/* Another name of the file may be in a volume. The observer knows inodes. */
	if (volume == NO_VOLUME && inode->i_nlink > 1)
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
	if (!inode || ret < 0 || (!ret && nr != NR_fallocate && nr != NR_ioctl))
		return 0;
	begun = begun_of(before);
	volume = volume_to_tell(task, mine, file, inode, begun, nr);
	if (volume == NO_VOLUME)
		return 0;
	to = inode->i_size;
	if (nr == NR_fallocate) {
		from = ARG2(regs);
		to = from + (s64)ARG3(regs);
		/* Collapsing and inserting move everything behind the range. */
		if (ARG1(regs) & (0x08 | 0x20))
			to = ~0ull >> 1;
	} else if (nr != NR_ioctl) {
		if (nr != NR_sendfile)
			place_of_offset = ARG3(regs);
		if (place_of_offset) {
			if (!bpf_probe_read_user(&from, sizeof(from), (void *)place_of_offset)) {
				to = from;
				from -= ret;
			}
		} else {
			place(file, inode, before, write_flags(file, 0) & FLAG_APPEND, true, 0, ret, &from, &to);
		}
	}
	emit_reread(volume, inode, begun, write_flags(file, 0), from, to, nr);
	return 0;
}

/* The agent asks by a length that only it knows: who is this descriptor, who am I? */
INLINE void answer(struct task_struct *task, struct file *file)
{
	struct inode *inode = file->f_inode;

	state.answer_inode = inode->i_ino;
	state.answer_generation = inode->i_generation;
	state.answer_device = inode->i_sb->s_dev;
	state.answer_tgid = task->tgid;
	__sync_fetch_and_add(&state.answer_count, 1);
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

/* ------------------------------------------------------------------- calls about one file that do not change its bytes */

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

/* A 32-bit program: its calls have other numbers and are not followed. That it starts, and that it opens a file of a volume. */
#if defined(DK_X86_64)
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
#else
#define on_compat(task, nr, ret) 0
#endif

/* -------------------------------------------------------------------------------------------------- calls that name paths */

/* An empty path with AT_EMPTY_PATH, or none at all, means the descriptor itself. */
INLINE bool names_descriptor(u64 path, u32 flags)
{
	u8 first = 0;

	if (!path)
		return true;
	return (flags & AT_EMPTY_PATH) && !bpf_probe_read_user(&first, 1, (void *)path) && !first;
}

/* Fill `call` from the registers. False: not a call about a path after all (`fd_kind` says what it was instead). */
INLINE bool describe(struct pt_regs *regs, u32 nr, struct naming *c, u32 *fd_kind)
{
	c->directory = c->directory2 = AT_FDCWD;
	c->base = true;
	switch (nr) {
#if defined(DK_X86_64)
	case NR_unlink:
	case NR_rmdir:
		c->op = nr == NR_rmdir ? OP_RMDIR : OP_UNLINK;
		c->in_parent = nr == NR_unlink;
		c->path = ARG0(regs);
		return true;
	case NR_rename:
		c->op = OP_RENAME;
		c->path = ARG0(regs);
		c->path2 = ARG1(regs);
		c->base2 = true;
		return true;
	case NR_mkdir:
		c->op = OP_MKDIR;
		c->in_parent = true;
		c->path = ARG0(regs);
		c->aux = ARG1(regs);
		return true;
	case NR_link:
		c->op = OP_LINK;
		c->in_parent = c->base2 = true;
		c->path = ARG0(regs);
		c->path2 = ARG1(regs);
		return true;
	case NR_symlink:
		c->op = OP_SYMLINK;
		c->in_parent = c->base2 = true;
		c->base = false;
		c->path = ARG0(regs);
		c->path2 = ARG1(regs);
		return true;
	case NR_mknod:
		c->op = OP_MKNOD;
		c->in_parent = true;
		c->path = ARG0(regs);
		c->aux = ARG1(regs);
		return true;
	case NR_chmod:
		c->op = OP_CHMOD;
		c->path = ARG0(regs);
		c->aux = ARG1(regs);
		return true;
	case NR_chown:
	case NR_lchown:
		c->op = OP_CHOWN;
		c->path = ARG0(regs);
		c->uid = ARG1(regs);
		c->gid = ARG2(regs);
		c->extra = nr == NR_lchown ? AT_SYMLINK_NOFOLLOW : 0;
		return true;
	case NR_utime:
	case NR_utimes:
		c->op = OP_UTIMES;
		c->path = ARG0(regs);
		return true;
	case NR_futimesat:
		c->op = OP_UTIMES;
		c->directory = ARG0(regs);
		c->path = ARG1(regs);
		*fd_kind = KIND_ATTR;
		return c->path;
#endif
	case NR_unlinkat:
		c->op = ARG2(regs) & AT_REMOVEDIR ? OP_RMDIR : OP_UNLINK;
		c->in_parent = c->op == OP_UNLINK;
		c->directory = ARG0(regs);
		c->path = ARG1(regs);
		return true;
	case NR_renameat:
	case NR_renameat2:
		c->op = OP_RENAME;
		c->directory = ARG0(regs);
		c->path = ARG1(regs);
		c->directory2 = ARG2(regs);
		c->path2 = ARG3(regs);
		c->base2 = true;
		c->extra = nr == NR_renameat2 ? ARG4(regs) : 0;
		return true;
	case NR_mkdirat:
	case NR_mknodat:
		c->op = nr == NR_mkdirat ? OP_MKDIR : OP_MKNOD;
		c->in_parent = true;
		c->directory = ARG0(regs);
		c->path = ARG1(regs);
		c->aux = ARG2(regs);
		return true;
	case NR_linkat:
		c->op = OP_LINK;
		c->directory = ARG0(regs);
		c->path = ARG1(regs);
		c->directory2 = ARG2(regs);
		c->path2 = ARG3(regs);
		c->base2 = true;
		c->extra = ARG4(regs);
		return true;
	case NR_symlinkat:
		c->op = OP_SYMLINK;
		c->in_parent = c->base2 = true;
		c->base = false;
		c->path = ARG0(regs);
		c->directory2 = ARG1(regs);
		c->path2 = ARG2(regs);
		return true;
	case NR_fchmodat:
	case NR_fchmodat2:
		c->op = OP_CHMOD;
		c->directory = ARG0(regs);
		c->path = ARG1(regs);
		c->aux = ARG2(regs);
		c->extra = nr == NR_fchmodat2 ? ARG3(regs) : 0;
		*fd_kind = KIND_ATTR;
		return !names_descriptor(c->path, c->extra);
	case NR_fchownat:
		c->op = OP_CHOWN;
		c->directory = ARG0(regs);
		c->path = ARG1(regs);
		c->uid = ARG2(regs);
		c->gid = ARG3(regs);
		c->extra = ARG4(regs);
		*fd_kind = KIND_ATTR;
		return !names_descriptor(c->path, c->extra);
	case NR_utimensat:
		c->op = OP_UTIMES;
		c->directory = ARG0(regs);
		c->path = ARG1(regs);
		c->extra = ARG3(regs);
		*fd_kind = KIND_ATTR;
		return !names_descriptor(c->path, c->extra);
	case NR_truncate:
		c->op = OP_TRUNCATE;
		c->path = ARG0(regs);
		c->aux = ARG1(regs);
		return true;
	case NR_setxattr:
	case NR_lsetxattr:
	case NR_removexattr:
	case NR_lremovexattr:
		c->op = nr == NR_setxattr || nr == NR_lsetxattr ? OP_SETXATTR : OP_REMOVEXATTR;
		c->path = ARG0(regs);
		c->path2 = ARG1(regs);
		c->extra = nr == NR_lsetxattr || nr == NR_lremovexattr;
		return true;
	case NR_setxattrat:
	case NR_removexattrat:
		c->op = nr == NR_setxattrat ? OP_SETXATTR : OP_REMOVEXATTR;
		c->directory = ARG0(regs);
		c->path = ARG1(regs);
		c->path2 = ARG3(regs);
		c->extra = !!(ARG2(regs) & AT_SYMLINK_NOFOLLOW);
		*fd_kind = KIND_XATTR;
		return !names_descriptor(c->path, ARG2(regs));
	}
	return false;
}

INLINE bool is_rename(u32 nr)
{
#if defined(DK_X86_64)
	if (nr == NR_rename)
		return true;
#endif
	return nr == NR_renameat || nr == NR_renameat2;
}

static int on_naming(struct task_struct *task, struct pt_regs *regs, u32 nr, s64 ret)
{
	struct dk_task *mine = kept_of(task), *before = take_started(mine, nr);
	struct naming *call = scratch();
	u32 fd_kind = 0;

	if (ret >= 0 && is_rename(nr))
		__sync_fetch_and_add(&state.moves, 1);
	if (ret >= 0 && call && !is_ignored(task)) {
		__builtin_memset(call, 0, __builtin_offsetof(struct naming, text));
		call->begun = begun_of(before);
		/* Who made the new name; the calls that change an owner say their own. */
		call->uid = task->cred->fsuid.val;
		call->gid = task->cred->fsgid.val;
		if (describe(regs, nr, call, &fd_kind))
			dk_emit_naming();
		else if (fd_kind == KIND_ATTR)
			on_simple(task, regs, nr, KIND_ATTR, (u32)call->directory);
		else if (fd_kind == KIND_XATTR)
			on_extended(task, (u32)call->directory, call->path2);
	}
	if (nr == NR_truncate && before)
		__sync_fetch_and_add(&state.truncates_in_flight, -1ull);
	return 0;
}

/* ------------------------------------------------------------------------------------------------------------ sys_exit */

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
		return on_simple(task, regs, nr, KIND_ATTR, ARG0(regs));
	case SYNCING:
		return on_simple(task, regs, nr, KIND_SYNC, ARG0(regs));
	case EXTENDED:
		return on_extended(task, ARG0(regs), ARG1(regs));
	case MAPPING:
		return on_mapping(task, regs, nr);
	case UNFOLLOWED:
		return on_unfollowed(task, nr, NO_VOLUME);
	}
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
