/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* All variants of the calls that name paths, as one description that dk_names.h tells. */
#pragma once

/* An empty path with AT_EMPTY_PATH, or none at all, means the descriptor itself. */
INLINE bool names_descriptor(u64 path, u32 flags)
{
	u8 first = 0;

	if (!path)
		return true;
	return (flags & AT_EMPTY_PATH) && !bpf_probe_read_user(&first, 1, (void *)path) && !first;
}

/* mknod(2) without a kind makes a file. */
INLINE u32 kind_made(u64 mode)
{
	return mode & S_IFMT ? mode & S_IFMT : S_IFREG;
}

/*
 * Fill `call` from the registers. False: not a call about a path after all (`fd_kind` says what it was
 * instead).
 */
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
		c->makes = S_IFDIR;
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
		c->makes = S_IFLNK;
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
		c->makes = kind_made(c->aux);
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
		c->times = ARG1(regs);
		c->tick = nr == NR_utime ? 0 : 1000;
		return true;
	case NR_futimesat:
		c->op = OP_UTIMES;
		c->directory = ARG0(regs);
		c->path = ARG1(regs);
		c->times = ARG2(regs);
		c->tick = 1000;
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
		c->makes = nr == NR_mkdirat ? S_IFDIR : kind_made(c->aux);
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
		c->makes = S_IFLNK;
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
		c->times = ARG2(regs);
		c->tick = 1;
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
			on_simple(task, nr, KIND_ATTR, (u32)call->directory);
		else if (fd_kind == KIND_XATTR)
			on_extended(task, (u32)call->directory, call->path2);
	}
	if (nr == NR_truncate && before)
		__sync_fetch_and_add(&state.truncates_in_flight, -1ull);
	return 0;
}
