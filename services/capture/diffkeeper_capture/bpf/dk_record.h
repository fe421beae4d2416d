/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What crosses between kernel and agent: the record (twin of HEAD in records.py), the shared state (twin of
 * STATE in bpf_probe.py) and the keys of the maps. A test compares the twins.
 */
#pragma once

struct dk_record {
	u16 kind;
	u16 flags;
	u32 volume;
	u64 end_ns;
	u64 start_ns;
	u32 tgid;
	u32 tid;
	u64 inode;
	u32 generation;
	u32 device;
	u64 offset;
	u64 length;
	u64 aux;
	u64 inode2;
	u32 generation2;
	u32 device2;
	u32 uid;
	u32 gid;
	u32 extra;
	u32 mount_ns;
};
#define HEAD_BYTES sizeof(struct dk_record)
_Static_assert(HEAD_BYTES == 104, "HEAD in records.py has 104 bytes");

enum dk_kind {
	KIND_WRITE = 1, KIND_REREAD, KIND_OPEN, KIND_SIZE, KIND_PATH, KIND_ATTR, KIND_XATTR, KIND_MAPPED,
	KIND_UNSEEN, KIND_SYNC, KIND_DIRTIED, KIND_ALLOCATED, KIND_HELD,
};

enum dk_flag {
	FLAG_UNREADABLE = 1, FLAG_OVERLAPPED = 2, FLAG_APPEND = 4, FLAG_CREATED = 8, FLAG_TRUNCATED = 16,
	FLAG_UNLINKED = 32, FLAG_SYNCHRONOUS = 64, FLAG_PARTIAL = 128, FLAG_PATH_CUT = 256,
	FLAG_OVERLAPPED_NAMES = 512, FLAG_DIRECT = 1024, FLAG_FOUND = 2048,
};

enum dk_path_op {
	OP_UNLINK = 1, OP_RMDIR, OP_RENAME, OP_MKDIR, OP_LINK, OP_SYMLINK, OP_MKNOD, OP_CHMOD, OP_CHOWN,
	OP_UTIMES, OP_TRUNCATE, OP_SETXATTR, OP_REMOVEXATTR,
};

/* The volume of a record whose volume the kernel cannot tell. */
#define NO_VOLUME 0xffffffffu
/* Other answers to "in which volume?": deeper than we can climb; the process is not to be recorded. */
#define TOO_DEEP 0xfffffffeu
#define IGNORED 0xfffffffdu

/* Payload of one record. A larger write becomes several. */
#define PAYLOAD_MAX (256u * 1024)
/* A call that wrote more is recorded as a range to read again: copying happens with preemption off. */
#define COPY_MAX (16u * 1024 * 1024)
#define COPY_RECORDS (COPY_MAX / PAYLOAD_MAX)
#define SEGMENTS_MAX 1024 /* UIO_MAXIOV */
#define CLIMB_MAX 1024 /* directories between a file and its root */

/* A set of small numbers that answers "surely not" in one load. */
#define INODE_BITS 1024

struct dk_state {
	u64 volumes;                     /* roots that are watched; 0 makes both programs return at once */
	u64 device_bits;                 /* of the devices of all roots */
	u64 inode_bits[INODE_BITS / 64]; /* of the inode numbers of all roots */
	u64 lost_records;
	u64 lost_everywhere;
	u64 truncates_in_flight;         /* truncate(2) by path: its inode is not known until it is over */
	u64 moves;                       /* renames of the whole machine: known places are void after one */
	u64 settings;                    /* raised by the agent when roots or ignored processes change */
	/*
	 * The agent asks who a descriptor is to the kernel by ftruncate(fd, asked_length), an invalid
	 * length nobody else knows.
	 */
	u64 asked_length;
	u64 answer_inode;
	u32 answer_generation;
	u32 answer_device;
	u32 answer_tgid;
	u32 answer_count;
	u64 followed;                    /* FOLLOWS_*: set by the agent when it has attached the program */
	u64 mapped;                      /* how many files were ever mapped writable: 0 makes dk_dirty_folio short */
};

/* Programs beside the two of system calls, that a kernel may lack. Twin of Follows in bpf_probe.py. */
enum dk_follows {
	FOLLOWS_PAGES = 1, FOLLOWS_URING = 2, FOLLOWS_DIRECT = 4,
};

/* What the agent is told of a time that the call did not give: the present one, or none. */
#define TIME_NOW (~0ull)
#define TIME_KEPT (~0ull - 1)

/* Of a MAPPED record, in inode2. */
#define MAPPED_FOLLOWED 1 /* each page that turns dirty from now on is told */
#define MAPPED_DIRTY 2    /* some page was dirty already, and may be stored to untold */

/* Set in the number of an UNSEEN record: an operation of io_uring, not a system call. */
#define URING_NUMBER 0x20000000


struct dk_root {
	u64 inode;
	u32 generation;
	u32 device;
};

struct dk_lost_file {
	u64 inode;
	u32 volume;
	u32 unused;
};

/* Where a file was last found, for the next call of the same task on it. */
struct dk_found {
	u64 file;
	u64 inode;
	u64 dentry;
	u64 parent;
	u64 moves;
	u64 settings;
	u64 volume;
};
#define FOUND_SLOTS 4

/*
 * When a call began: by the clock, and by the count of calls that had ended. All 0 when the probe was not
 * there yet.
 */
struct dk_begun {
	u64 ns;
	u64 order;
};

/* What is kept of a task: the call it was seen to begin (number + 1, or 0), and the files it last wrote. */
struct dk_task {
	struct dk_begun begun;
	u64 file;
	u64 inode;
	s64 position;
	s64 size;
	u32 device;
	u32 call;
	struct dk_found found[FOUND_SLOTS];
};
