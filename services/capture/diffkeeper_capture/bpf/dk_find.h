/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From a descriptor to its file, and from a file to its volume: loads only, except where a root is likely. */
#pragma once

#define S_IFMT 0170000
#define S_IFREG 0100000
#define S_IFDIR 0040000
#define S_IFLNK 0120000
#define FMODE_WRITE 2
#define OVERLAY_MAGIC 0x794c7630
#define PF_KTHREAD 0x200000

struct {
	MAP_UINT(type, BPF_MAP_TYPE_HASH);
	MAP_UINT(max_entries, 4096);
	MAP_TYPE(key, struct dk_root);
	MAP_TYPE(value, u32);
} roots SEC(".maps");

/* Processes that are never recorded, by tgid. */
struct {
	MAP_UINT(type, BPF_MAP_TYPE_HASH);
	MAP_UINT(max_entries, 4096);
	MAP_TYPE(key, u32);
	MAP_TYPE(value, u32);
} ignored SEC(".maps");

/* A word of the kernel's memory, as a number: functions verified by themselves take numbers only. */
INLINE u64 word_at(u64 address)
{
	u64 found = 0;

	bpf_probe_read_kernel(&found, sizeof(found), (void *)address);
	return found;
}

INLINE u64 device_bit(u32 device)
{
	return 1ull << ((device ^ (device >> 20)) & 63);
}

INLINE bool may_hold_volume(u32 device)
{
	return state.device_bits & device_bit(device);
}

INLINE bool is_ignored(struct task_struct *task)
{
	u32 tgid = task->tgid;
	return bpf_map_lookup_elem(&ignored, &tgid);
}

INLINE u64 file_of(struct task_struct *task, u64 fd)
{
	struct fdtable *table = task->files->fdt;
	u32 index = fd;

	if (index >= table->max_fds)
		return 0;
	/*
	 * An element of an array of pointers has no structure of its own: it is read as one whose first
	 * field is a pointer.
	 */
	return (u64)AS(path, (u64)table->fd + 8ull * index)->mnt;
}

INLINE struct inode *regular(struct file *file)
{
	struct inode *inode = file->f_inode;

	if ((inode->i_mode & S_IFMT) != S_IFREG || !may_hold_volume(inode->i_sb->s_dev))
		return NULL;
	return inode;
}

/*
 * Where the climb below starts: a function verified by itself takes numbers only, so the pointer goes
 * through here. What may run in an interrupt, amid a climb, has a lane of its own.
 */
enum { LANE_TASK, LANE_INTERRUPT, LANES };

struct {
	MAP_UINT(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	MAP_UINT(max_entries, LANES);
	MAP_TYPE(key, u32);
	MAP_TYPE(value, u64);
} climbing SEC(".maps");

__attribute__((noinline)) u32 dk_climb(u32 device, u32 lane)
{
	u64 *start = bpf_map_lookup_elem(&climbing, &lane);
	struct dentry *dentry;

	if (!start)
		return NO_VOLUME;
	dentry = AS(dentry, *start);
	FOR_UP_TO (CLIMB_MAX) {
		struct inode *inode = dentry->d_inode;
		struct dentry *up = dentry->d_parent;
		u64 number = inode->i_ino;

		if (state.inode_bits[(number & (INODE_BITS - 1)) >> 6] & (1ull << (number & 63))) {
			struct dk_root key = {
				.inode = number,
				.generation = inode->i_generation,
				.device = device,
			};
			u32 *slot = bpf_map_lookup_elem(&roots, &key);

			if (slot)
				return *slot;
		}
		if (up == dentry)
			return NO_VOLUME;
		dentry = up;
	}
	return TOO_DEEP;
}

/* The slot of the volume that holds this dentry, or NO_VOLUME, or TOO_DEEP. */
INLINE u32 volume_by_lane(struct dentry *dentry, u32 lane)
{
	u32 device = dentry->d_sb->s_dev;
	u64 *start = bpf_map_lookup_elem(&climbing, &lane);

	if (!may_hold_volume(device) || !start)
		return NO_VOLUME;
	*start = (u64)dentry;
	return dk_climb(device, lane);
}

INLINE u32 volume_of(struct dentry *dentry)
{
	return volume_by_lane(dentry, LANE_TASK);
}

/*
 * Whether a file that is not below a root by this name may be so by another one: it has several, or this one
 * was taken away (and then its directory moved) while the file stayed open. The observer knows inodes.
 */
INLINE bool may_be_elsewhere(struct inode *inode, struct dentry *dentry)
{
	return inode->i_nlink > 1 || (inode->i_nlink == 1 && !dentry->d_hash.pprev);
}

/*
 * The file systems that hold volumes, noted when the agent asks who a root is; it keeps the root open, so
 * they stay.
 */
#define SUPERBLOCKS 4

struct {
	u64 superblock[SUPERBLOCKS];
	u64 noted;
} places SEC(".bss.places");

INLINE void note_place(struct inode *inode)
{
	u64 superblock = (u64)inode->i_sb;

	for (int i = 0; i < SUPERBLOCKS; i++) {
		if (places.superblock[i] == superblock)
			return;
	}
	places.superblock[places.noted++ & (SUPERBLOCKS - 1)] = superblock;
}

/*
 * The same for a file that is changed by a process: IGNORED too, and remembered in `mine` for as long as
 * nothing moves.
 */
INLINE u32 volume_of_change(struct task_struct *task, struct dk_task *mine, struct file *file,
			    struct inode *inode)
{
	struct dentry *dentry = file->f_path.dentry;
	u64 address = (u64)file, parent = (u64)dentry->d_parent;
	struct dk_found *found;
	u32 volume;

	if (!mine)
		return is_ignored(task) ? IGNORED : volume_of(dentry);
	found = &mine->found[inode->i_ino & (FOUND_SLOTS - 1)];
	if (likely(found->file == address && found->inode == (u64)inode && found->dentry == (u64)dentry &&
		   found->parent == parent && found->moves == state.moves &&
		   found->settings == state.settings))
		return found->volume;
	found->moves = state.moves;
	found->settings = state.settings;
	volume = is_ignored(task) ? IGNORED : volume_of(dentry);
	found->file = address;
	found->inode = (u64)inode;
	found->dentry = (u64)dentry;
	found->parent = parent;
	found->volume = volume;
	return volume;
}
