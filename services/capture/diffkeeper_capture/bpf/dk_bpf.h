/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What capture.bpf.c needs of the kernel, without any header of the distribution: helpers by their stable
 * number, kernel functions by name, and of each kernel structure only the fields that are read. The offsets
 * written here mean nothing: libbpf relocates every access (CO-RE) against the BTF of the kernel that loads
 * the program.
 */
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed int s32;
typedef signed long long s64;
typedef _Bool bool;
#define true 1
#define false 0
#define NULL ((void *)0)

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#define CORE __attribute__((preserve_access_index))
#define KSYM extern __attribute__((section(".ksyms")))
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* The compiler must take a bound as it stands: the verifier follows no other way to it. */
#define OPAQUE(value) __asm__ volatile("" : "+r"(value))

/* Maps, in the notation libbpf reads from BTF. */
#define MAP_UINT(name, value) int(*name)[value]
#define MAP_TYPE(name, type) typeof(type) *name
enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_RINGBUF = 27,
	BPF_MAP_TYPE_TASK_STORAGE = 29,
};
enum { BPF_F_NO_PREALLOC = 1, BPF_LOCAL_STORAGE_GET_F_CREATE = 1 };

/* ---------------------------------------------------- structures of the kernel, as far as they are read */

struct vfsmount;

typedef struct {
	u32 val;
} kid_t_;

struct list_head {
	struct list_head *next;
} CORE;

struct hlist_node {
	struct hlist_node *next;
} CORE;

struct hlist_head {
	struct hlist_node *first;
} CORE;

struct super_block {
	u32 s_dev;
	unsigned long s_magic;
	struct list_head s_inodes;
} CORE;

struct xarray {
	u32 xa_flags;
} CORE;

typedef struct {
	s32 counter;
} CORE atomic_t;

struct address_space {
	struct inode *host;
	atomic_t i_mmap_writable;
	struct xarray i_pages;
} CORE;

struct inode {
	u16 i_mode;
	kid_t_ i_uid;
	kid_t_ i_gid;
	struct super_block *i_sb;
	struct address_space *i_mapping;
	unsigned long i_ino;
	u32 i_nlink;
	s64 i_size;
	s64 i_atime_sec;
	s64 i_mtime_sec;
	u32 i_atime_nsec;
	u32 i_mtime_nsec;
	u32 i_generation;
	struct list_head i_sb_list;
	struct hlist_head i_dentry;
} CORE;

struct qstr {
	u32 len;
	const u8 *name;
} CORE;

struct hlist_bl_node {
	struct hlist_bl_node *next, **pprev;
} CORE;

struct dentry {
	struct hlist_bl_node d_hash;
	struct dentry *d_parent;
	struct qstr d_name;
	struct inode *d_inode;
	struct super_block *d_sb;
	union {
		struct hlist_node d_alias;
	} d_u;
} CORE;

struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
} CORE;

struct file {
	u32 f_mode;
	struct inode *f_inode;
	u32 f_flags;
	struct path f_path;
	s64 f_pos;
} CORE;

/* The file below an overlay, and where its opener saw it. */
struct backing_file {
	struct file file;
	struct path user_path;
} CORE;

struct fdtable {
	u32 max_fds;
	struct file **fd;
} CORE;

struct files_struct {
	struct fdtable *fdt;
} CORE;

struct fs_struct {
	struct path root;
	struct path pwd;
} CORE;

struct ns_common {
	u32 inum;
} CORE;

struct mnt_namespace {
	struct ns_common ns;
} CORE;

struct nsproxy {
	struct mnt_namespace *mnt_ns;
} CORE;

struct cred {
	kid_t_ fsuid;
	kid_t_ fsgid;
} CORE;

struct thread_info {
	unsigned long flags;
	u32 status;
} CORE;

struct task_struct {
	struct thread_info thread_info;
	u32 flags;
	s32 pid;
	s32 tgid;
	const struct cred *cred;
	struct fs_struct *fs;
	struct files_struct *files;
	struct nsproxy *nsproxy;
} CORE;

struct vm_area_struct {
	unsigned long vm_flags;
	unsigned long vm_pgoff;
	struct file *vm_file;
} CORE;

struct page {
	u32 unused;
} CORE;

struct folio {
	unsigned long index;
} CORE;

enum pageflags {
	PG_head = 6,
};

struct kiocb {
	struct file *ki_filp;
	s64 ki_pos;
	s32 ki_flags;
} CORE;

struct io_uring_cqe {
	s32 res;
} CORE;

struct io_cqe {
	s32 fd;
} CORE;

struct io_kiocb {
	struct file *file;
	u8 opcode;
	u64 flags;
	struct io_cqe cqe;
} CORE;

struct io_rw {
	struct kiocb kiocb;
} CORE;

#if defined(DK_X86_64)
struct pt_regs {
	unsigned long r9, r8, r10, dx, si, di, orig_ax;
} CORE;
#define CALL_NR(regs) ((regs)->orig_ax)
#define ARG0(regs) ((regs)->di)
#define ARG1(regs) ((regs)->si)
#define ARG2(regs) ((regs)->dx)
#define ARG3(regs) ((regs)->r10)
#define ARG4(regs) ((regs)->r8)
#define ARG5(regs) ((regs)->r9)
/* TS_COMPAT: the call came by the 32-bit entry, so its number is of another table. */
#define IS_COMPAT(task) ((task)->thread_info.status & 2)
#define O_DIRECT_FLAG 0x4000
#elif defined(DK_AARCH64)
struct pt_regs {
	u64 regs[31];
	u64 orig_x0;
	s32 syscallno;
} CORE;
#define CALL_NR(regs) ((regs)->syscallno)
#define ARG0(regs) ((regs)->orig_x0)
#define ARG1(regs) ((regs)->regs[1])
#define ARG2(regs) ((regs)->regs[2])
#define ARG3(regs) ((regs)->regs[3])
#define ARG4(regs) ((regs)->regs[4])
#define ARG5(regs) ((regs)->regs[5])
/* TIF_32BIT: a program of 32-bit arm, whose calls have numbers of another table. */
#define IS_COMPAT(task) ((task)->thread_info.flags & (1ul << 22))
#define O_DIRECT_FLAG 0x10000
#else
#error "compile with -DDK_X86_64 or -DDK_AARCH64"
#endif

/* ----------------------------------------------------------------------- helpers, by their stable number */

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*bpf_map_update_elem)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static u64 (*bpf_ktime_get_ns)(void) = (void *)5;
static long (*bpf_probe_read_user)(void *to, u32 size, const void *from) = (void *)112;
static long (*bpf_probe_read_kernel)(void *to, u32 size, const void *from) = (void *)113;
static long (*bpf_probe_read_user_str)(void *to, u32 size, const void *from) = (void *)114;
static void *(*bpf_ringbuf_reserve)(void *ring, u64 size, u64 flags) = (void *)131;
static void (*bpf_ringbuf_submit)(void *data, u64 flags) = (void *)132;
static void (*bpf_ringbuf_discard)(void *data, u64 flags) = (void *)133;
static void *(*bpf_task_storage_get)(void *map, struct task_struct *task, void *value,
				     u64 flags) = (void *)156;
static struct task_struct *(*bpf_get_current_task_btf)(void) = (void *)158;
static struct pt_regs *(*bpf_task_pt_regs)(struct task_struct *task) = (void *)175;
static long (*bpf_find_vma)(struct task_struct *task, u64 address, void *callback, void *context,
			    u64 flags) = (void *)180;
struct bpf_dynptr {
	u64 opaque[2];
} __attribute__((aligned(8)));
static long (*bpf_ringbuf_reserve_dynptr)(void *ring, u32 size, u64 flags,
					  struct bpf_dynptr *out) = (void *)198;
static void (*bpf_ringbuf_submit_dynptr)(struct bpf_dynptr *ptr, u64 flags) = (void *)199;
static void (*bpf_ringbuf_discard_dynptr)(struct bpf_dynptr *ptr, u64 flags) = (void *)200;
static long (*bpf_dynptr_write)(const struct bpf_dynptr *to, u32 offset, void *from, u32 size,
				u64 flags) = (void *)202;
static void *(*bpf_dynptr_data)(const struct bpf_dynptr *ptr, u32 offset, u32 size) = (void *)203;

/* Kernel functions, bound by name. The newest of them, bpf_probe_read_user_dynptr, is in Linux since 6.16. */
struct bpf_iter_num {
	u64 opaque[1];
} __attribute__((aligned(8)));
KSYM void *bpf_rdonly_cast(const void *object, u32 btf_id);
KSYM int bpf_probe_read_user_dynptr(struct bpf_dynptr *to, u32 offset, u32 size, const void *from);
KSYM int bpf_iter_num_new(struct bpf_iter_num *it, int start, int end);
KSYM int *bpf_iter_num_next(struct bpf_iter_num *it);
KSYM void bpf_iter_num_destroy(struct bpf_iter_num *it);

/*
 * The address as a pointer to the kernel's structure: its fields are then read by plain loads that give 0
 * on a fault.
 */
#define AS(type, address) \
	((struct type *)bpf_rdonly_cast((const void *)(u64)(address), \
					__builtin_btf_type_id(*(struct type *)0, 1)))

/* Where a field stands in its structure, on the kernel that loads the program. */
#define OFFSET_OF(type, field) __builtin_preserve_field_info(((struct type *)0)->field, 0)
#define SIZE_OF(type) __builtin_preserve_type_info(*(struct type *)0, 1)

/* A loop whose bound the verifier takes from the iterator, so that it does not walk each round. */
#define FOR_UP_TO(rounds) \
	for (struct bpf_iter_num it_ __attribute__((aligned(8), cleanup(bpf_iter_num_destroy))), \
	     *once_ __attribute__((unused)) = \
		     (bpf_iter_num_new(&it_, 0, (rounds)), (void)bpf_iter_num_destroy, (void *)0); \
	     bpf_iter_num_next(&it_);)
