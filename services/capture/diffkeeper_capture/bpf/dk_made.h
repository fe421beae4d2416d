/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which inode a call has just made or given a name. A path cannot be walked here, but the inode stands among
 * the youngest of its file system, and its dentry knows its name: looked for there, and believed only when
 * exactly one fits. The observer looks on disk for what was not found.
 */
#pragma once

#define YOUNGEST_MAX 64
#define NAME_MAX 255
#define COMPONENTS 4

/* What is looked for, and what was found, of this processor's call. */
struct making {
	u64 inode; /* address */
	u64 base;  /* directory of a plain name, address of its dentry; else 0 */
	u32 kind;
	u32 fits;
	u32 at[COMPONENTS]; /* of the path, the last one first: where they stand in the text, and how long */
	u32 length[COMPONENTS];
	u8 name[NAME_MAX + 1];
};

struct {
	MAP_UINT(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	MAP_UINT(max_entries, 1);
	MAP_TYPE(key, u32);
	MAP_TYPE(value, struct making);
} makings SEC(".maps");

INLINE struct making *sought(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&makings, &zero);
}

/* The last components of a text of this processor's scratch. */
__attribute__((noinline)) int dk_last_components(u32 from, u32 length)
{
	struct naming *call = scratch();
	struct making *m = sought();
	u64 at = from, begin = from, end = (u64)from + length;

	if (!call || !m)
		return 0;
	for (int i = 0; i < COMPONENTS; i++)
		m->length[i] = 0;
	FOR_UP_TO (TEXT_MAX) {
		bool ends;

		OPAQUE(at);
		if (at >= end || at >= sizeof(call->text))
			break;
		ends = !call->text[at] || call->text[at] == '/';
		if (ends && at > begin) {
			for (int i = COMPONENTS - 1; i > 0; i--) {
				m->at[i] = m->at[i - 1];
				m->length[i] = m->length[i - 1];
			}
			m->at[0] = begin;
			m->length[0] = at - begin;
		}
		at++;
		if (ends)
			begin = at;
	}
	return 0;
}

/* Whether a dentry has the name that stands in the scratch. */
__attribute__((noinline)) int dk_has_name(u64 address, u32 at, u32 length)
{
	struct dentry *dentry = AS(dentry, address);
	struct naming *call = scratch();
	struct making *m = sought();
	u64 i = 0;

	if (!call || !m || !length || length > NAME_MAX || dentry->d_name.len != length)
		return 0;
	if (bpf_probe_read_kernel(m->name, length, dentry->d_name.name))
		return 0;
	FOR_UP_TO (NAME_MAX) {
		u64 there = at + i;

		if (i >= length)
			return 1;
		OPAQUE(i);
		OPAQUE(there);
		if (i > NAME_MAX || there >= sizeof(call->text) || m->name[i] != call->text[there])
			return 0;
		i++;
	}
	return i >= length;
}

/* Whether the directories above a dentry may be those of the path. */
INLINE bool stands_there(struct making *m, u64 dentry)
{
	struct naming *call = scratch();

	if (!call || m->base)
		return word_at(dentry + OFFSET_OF(dentry, d_parent)) == m->base;
	for (int i = 1; i < COMPONENTS; i++) {
		u64 above = word_at(dentry + OFFSET_OF(dentry, d_parent)), first = m->at[i];

		OPAQUE(first);
		/* The path begins here, or goes up; or a file system does, whose root has another name. */
		if (!m->length[i] || first >= sizeof(call->text) || call->text[first] == '.' ||
		    word_at(above + OFFSET_OF(dentry, d_parent)) == above)
			return true;
		if (!dk_has_name(above, first, m->length[i]))
			return false;
		dentry = above;
	}
	return true;
}

__attribute__((noinline)) int dk_fits(u64 address)
{
	struct inode *inode = AS(inode, address);
	struct making *m = sought();
	u64 alias = word_at(address + OFFSET_OF(inode, i_dentry));
	u64 dentry = alias - OFFSET_OF(dentry, d_u.d_alias);

	if (!m || !alias || (inode->i_mode & S_IFMT) != m->kind)
		return 0;
	if (!dk_has_name(dentry, m->at[0], m->length[0]) || !stands_there(m, dentry))
		return 0;
	m->fits++;
	m->inode = address;
	return 1;
}

/* Look at the youngest inodes of one of the file systems that hold volumes. */
__attribute__((noinline)) int dk_look_among(u32 place)
{
	u64 head, at;

	if (place >= SUPERBLOCKS || !places.superblock[place])
		return 0;
	head = places.superblock[place] + OFFSET_OF(super_block, s_inodes);
	at = word_at(head);
	FOR_UP_TO (YOUNGEST_MAX) {
		if (!at || at == head)
			return 0;
		dk_fits(at - OFFSET_OF(inode, i_sb_list));
		at = word_at(at);
	}
	return 0;
}

/* FOUND: which inode the call made, in the place of the second directory, which such calls do not have. */
INLINE void fill_made(struct dk_record *record, struct naming *call)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct making *m = sought();
	u32 from = call->op == OP_SYMLINK ? call->length : 0;
	u32 length = call->op == OP_SYMLINK ? call->length2 : call->length;
	struct inode *inode;

	if (!m || from > TEXT_MAX || length > TEXT_MAX)
		return;
	dk_last_components(from, length);
	m->kind = call->makes;
	m->fits = 0;
	m->base = 0;
	if (m->at[0] == from)
		m->base = (u64)base_of(task, call->op == OP_SYMLINK ? call->directory2 : call->directory, false);
	for (u32 place = 0; place < SUPERBLOCKS; place++)
		dk_look_among(place);
	if (m->fits != 1)
		return;
	inode = AS(inode, m->inode);
	record->flags |= FLAG_FOUND;
	record->aux = inode->i_mode;
	record->uid = inode->i_uid.val;
	record->gid = inode->i_gid.val;
	if (call->op == OP_SYMLINK) {
		record->inode = inode->i_ino;
		record->generation = inode->i_generation;
		record->device = inode->i_sb->s_dev;
	} else {
		record->inode2 = inode->i_ino;
		record->generation2 = inode->i_generation;
		record->device2 = inode->i_sb->s_dev;
	}
}

#define AT_SYMLINK_FOLLOW 0x400
#define OWN_DESCRIPTORS "/proc/self/fd/"
#define OWN_DESCRIPTORS_LENGTH 14

/*
 * FOUND: a file without a name gets one, by its descriptor: which file it is, in the place of the directory of
 * its path.
 */
INLINE void fill_linked(struct dk_record *record, struct naming *call)
{
	const char prefix[] = OWN_DESCRIPTORS;
	struct inode *inode;
	u32 fd = 0;

	if (call->length == 1 && (call->extra & AT_EMPTY_PATH)) {
		record->flags |= FLAG_FOUND;
		return; /* its own inode is what the path was relative to */
	}
	if (!(call->extra & AT_SYMLINK_FOLLOW))
		return;
	for (int i = 0; i < OWN_DESCRIPTORS_LENGTH; i++) {
		if (call->text[i] != prefix[i])
			return;
	}
	for (int i = OWN_DESCRIPTORS_LENGTH; i < OWN_DESCRIPTORS_LENGTH + 8; i++) {
		u8 digit = call->text[i];

		if (!digit)
			break;
		if (digit < '0' || digit > '9')
			return;
		fd = fd * 10 + (digit - '0');
	}
	inode = AS(file, file_of(bpf_get_current_task_btf(), fd))->f_inode;
	if (!inode)
		return;
	record->flags |= FLAG_FOUND;
	record->inode = inode->i_ino;
	record->generation = inode->i_generation;
	record->device = inode->i_sb->s_dev;
}
