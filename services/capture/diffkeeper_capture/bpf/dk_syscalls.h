/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Numbers of the system calls that change files, for the two architectures. */
#pragma once

#if defined(DK_X86_64)
enum {
	NR_write = 1, NR_pwrite64 = 18, NR_writev = 20, NR_pwritev = 296, NR_pwritev2 = 328,
	NR_open = 2, NR_creat = 85, NR_openat = 257, NR_open_by_handle_at = 304, NR_openat2 = 437,
	NR_truncate = 76, NR_ftruncate = 77, NR_fallocate = 285,
	NR_sendfile = 40, NR_splice = 275, NR_copy_file_range = 326, NR_ioctl = 16, NR_mmap = 9,
	NR_fsync = 74, NR_fdatasync = 75, NR_sync_file_range = 277,
	NR_rename = 82, NR_renameat = 264, NR_renameat2 = 316,
	NR_mkdir = 83, NR_mkdirat = 258, NR_rmdir = 84, NR_unlink = 87, NR_unlinkat = 263,
	NR_link = 86, NR_linkat = 265, NR_symlink = 88, NR_symlinkat = 266, NR_mknod = 133, NR_mknodat = 259,
	NR_chmod = 90, NR_fchmod = 91, NR_fchmodat = 268, NR_fchmodat2 = 452,
	NR_chown = 92, NR_fchown = 93, NR_lchown = 94, NR_fchownat = 260,
	NR_utime = 132, NR_utimes = 235, NR_futimesat = 261, NR_utimensat = 280,
	NR_setxattr = 188, NR_lsetxattr = 189, NR_fsetxattr = 190, NR_setxattrat = 463,
	NR_removexattr = 197, NR_lremovexattr = 198, NR_fremovexattr = 199, NR_removexattrat = 466,
	NR_io_setup = 206, NR_io_submit = 209, NR_io_uring_setup = 425, NR_mprotect = 10,
	/* Of the 32-bit table. */
	NR_compat_open = 5, NR_compat_creat = 8, NR_compat_execve = 11, NR_compat_openat = 295,
	NR_compat_execveat = 358,
	NR_compat_rename = 38, NR_compat_renameat = 302, NR_compat_renameat2 = 353,
};
#elif defined(DK_AARCH64)
enum {
	NR_write = 64, NR_pwrite64 = 68, NR_writev = 66, NR_pwritev = 70, NR_pwritev2 = 287,
	NR_openat = 56, NR_open_by_handle_at = 265, NR_openat2 = 437,
	NR_truncate = 45, NR_ftruncate = 46, NR_fallocate = 47,
	NR_sendfile = 71, NR_splice = 76, NR_copy_file_range = 285, NR_ioctl = 29, NR_mmap = 222,
	NR_fsync = 82, NR_fdatasync = 83, NR_sync_file_range = 84,
	NR_renameat = 38, NR_renameat2 = 276,
	NR_mkdirat = 34, NR_unlinkat = 35, NR_linkat = 37, NR_symlinkat = 36, NR_mknodat = 33,
	NR_fchmod = 52, NR_fchmodat = 53, NR_fchmodat2 = 452, NR_fchown = 55, NR_fchownat = 54,
	NR_utimensat = 88,
	NR_setxattr = 5, NR_lsetxattr = 6, NR_fsetxattr = 7, NR_setxattrat = 463,
	NR_removexattr = 14, NR_lremovexattr = 15, NR_fremovexattr = 16, NR_removexattrat = 466,
	NR_io_setup = 0, NR_io_submit = 2, NR_io_uring_setup = 425, NR_mprotect = 226,
	/* Of the 32-bit table, except that a 64-bit execve of a 32-bit program keeps its own number. */
	NR_compat_open = 5, NR_compat_creat = 8, NR_compat_openat = 322, NR_compat_execve = 221,
	NR_compat_execveat = 281, NR_compat_rename = 38, NR_compat_renameat = 329, NR_compat_renameat2 = 382,
};
#endif
