/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which calls matter, by class; and which of their arguments say what they change. */
#pragma once

enum class {
	OTHER, COMPAT, ATTRIBUTES, EXTENDED, MAPPING, PROTECTING, SUBMITTING, UNFOLLOWED, SYNCING,
	TIMED = 16, /* from here on sys_enter takes the time */
	WRITING = TIMED, RANGE, RESIZING, OPENING, NAMING,
};

#define CLASSES 512
static const u8 class_of[CLASSES] = {
	[NR_write] = WRITING, [NR_pwrite64] = WRITING, [NR_writev] = WRITING, [NR_pwritev] = WRITING,
	[NR_pwritev2] = WRITING,
	[NR_fallocate] = RANGE, [NR_sendfile] = RANGE, [NR_splice] = RANGE, [NR_copy_file_range] = RANGE,
	[NR_ioctl] = RANGE,
	[NR_ftruncate] = RESIZING,
	[NR_openat] = OPENING, [NR_openat2] = OPENING, [NR_open_by_handle_at] = OPENING,
	[NR_mmap] = MAPPING, [NR_mprotect] = PROTECTING, [NR_io_submit] = SUBMITTING,
	[NR_fsync] = SYNCING, [NR_fdatasync] = SYNCING, [NR_sync_file_range] = SYNCING,
	[NR_fchmod] = ATTRIBUTES, [NR_fchown] = ATTRIBUTES,
	[NR_fsetxattr] = EXTENDED, [NR_fremovexattr] = EXTENDED,
	[NR_io_setup] = UNFOLLOWED, [NR_io_uring_setup] = UNFOLLOWED,
	[NR_truncate] = NAMING, [NR_renameat] = NAMING, [NR_renameat2] = NAMING, [NR_mkdirat] = NAMING,
	[NR_unlinkat] = NAMING, [NR_linkat] = NAMING, [NR_symlinkat] = NAMING, [NR_mknodat] = NAMING,
	[NR_fchmodat] = NAMING, [NR_fchmodat2] = NAMING, [NR_fchownat] = NAMING, [NR_utimensat] = NAMING,
	[NR_setxattr] = NAMING, [NR_lsetxattr] = NAMING, [NR_setxattrat] = NAMING,
	[NR_removexattr] = NAMING, [NR_lremovexattr] = NAMING, [NR_removexattrat] = NAMING,
#if defined(DK_X86_64)
	[NR_open] = OPENING, [NR_creat] = OPENING,
	[NR_rename] = NAMING, [NR_mkdir] = NAMING, [NR_rmdir] = NAMING, [NR_unlink] = NAMING,
	[NR_link] = NAMING, [NR_symlink] = NAMING, [NR_mknod] = NAMING, [NR_chmod] = NAMING,
	[NR_chown] = NAMING, [NR_lchown] = NAMING, [NR_utime] = NAMING, [NR_utimes] = NAMING,
	[NR_futimesat] = NAMING,
	[NR_compat_open] = COMPAT, [NR_compat_creat] = COMPAT, [NR_compat_openat] = COMPAT,
	[NR_compat_execve] = COMPAT, [NR_compat_execveat] = COMPAT, [NR_compat_rename] = COMPAT,
	[NR_compat_renameat] = COMPAT, [NR_compat_renameat2] = COMPAT,
#else
	/* open and rename of the 32-bit table have numbers that stand above. */
	[NR_compat_creat] = COMPAT, [NR_compat_openat] = COMPAT, [NR_compat_execve] = COMPAT,
	[NR_compat_execveat] = COMPAT, [NR_compat_renameat] = COMPAT, [NR_compat_renameat2] = COMPAT,
#endif
};

#define O_CREAT_FLAG 0100
#define O_TRUNC_FLAG 01000
#define FMODE_CREATED 0x100000

/* The flags that an open was asked with. */
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
