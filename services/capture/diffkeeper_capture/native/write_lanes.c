/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inner loop of capture: plain writes to files that are known, and the marks of their syncs, from the ring into the
 * lane of their volume, without an object for each. What is not plain stops the loop and goes the long way, in Python.
 *
 * Twins of the structures stand in write_lanes.py, that of struct record in records.py (a test compares them); the twin of
 * the loop is Observer.observe with Framer.add_write. Called by ctypes, with no part of Python in here, so that one
 * object serves every version of it. Nothing is allocated; all memory is the caller's, and the ring's content is
 * believed only as far as it was checked here.
 */
#include <stdint.h>
#include <string.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

struct record {
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
#define HEAD_BYTES sizeof(struct record)
_Static_assert(HEAD_BYTES == 104, "HEAD in records.py has 104 bytes");

#define KIND_WRITE 1
#define KIND_SYNC 10
/* UNREADABLE, OVERLAPPED, UNLINKED: such a write is not plain. */
#define CAREFUL (1 | 2 | 32)

#define BUSY 0x80000000u
#define DISCARDED 0x40000000u
#define RING_HEAD_BYTES 8

/* Op in deltas.py. */
#define OP_WRITE 2
#define OP_BARRIER 13

/* What a delta takes in a frame besides its data, and its arguments; _BYTES_PER_DELTA and _BYTES_OF_ARGS in deltas.py. */
#define DELTA_BYTES 29
#define ARGS_BYTES 64
/* Powers of two. Fuller than three quarters, a table is emptied: what was in it is learned again. */
#define FILES 4096
#define WRITERS 256
/* REMEMBERED in overlaps.py. */
#define HEADS 512

struct file {
	u64 inode;
	u64 id; /* 0: nothing stands here */
	u32 generation;
	u32 unused;
};

struct lane {
	u32 volume;
	u32 files_known;
	u32 writers_known;
	/* Writes and marks waiting in the lane. */
	u32 count;
	u32 count_max;
	u32 data_bytes;
	u32 data_max;
	/* Heads waiting, and how many were put in since they were taken. */
	u32 heads;
	/* Of those that wait, marks of sync calls. */
	u32 marks;
	u32 marks_max;
	/* How much the open frame still takes: data and DELTA_BYTES each, ARGS_BYTES for a mark. */
	u64 room;
	u64 *ids;
	u64 *offsets;
	u64 *lengths;
	u64 *ends_us;
	u32 *at_us;
	u8 *data;
	u8 *noted; /* HEADS heads, the oldest overwritten */
	struct file *files;
	u32 *writers; /* 0: nothing stands here */
	u8 *ops;
	u32 *mark_calls;
	u32 *mark_tgids;
};

enum why { EMPTY, UNFINISHED, NOT_PLAIN, LANE_FULL, ENOUGH, BROKEN };

struct ring {
	const u8 *data;
	u64 bytes;
	u64 *consumer;
	u64 position;
	u64 stride; /* our position is told to the kernel this seldom; 0: never, somebody else does */
	u64 told;
	u64 taken;
	u32 stopped_by; /* index of the lane that is full */
	u32 unused;
};

static u32 hash_of(u64 key, u32 more)
{
	key ^= (u64)more << 40;
	key *= 0x9E3779B97F4A7C15ull;
	return (u32)(key >> 32);
}

static u64 id_of(const struct lane *lane, u64 inode, u32 generation)
{
	u32 at = hash_of(inode, generation);

	for (u32 step = 0; step < FILES; step++) {
		const struct file *file = &lane->files[(at + step) & (FILES - 1)];
		if (!file->id)
			return 0;
		if (file->inode == inode && file->generation == generation)
			return file->id;
	}
	return 0;
}

static int is_writer(const struct lane *lane, u32 tgid)
{
	u32 at = hash_of(tgid, 0);

	for (u32 step = 0; step < WRITERS; step++) {
		u32 found = lane->writers[(at + step) & (WRITERS - 1)];
		if (found == tgid)
			return tgid != 0;
		if (!found)
			return 0;
	}
	return 0;
}

void dk_forget(struct lane *lane)
{
	memset(lane->files, 0, FILES * sizeof(struct file));
	memset(lane->writers, 0, WRITERS * sizeof(u32));
	lane->files_known = lane->writers_known = 0;
}

/* From now on a write of this process to this file is plain. */
void dk_learn(struct lane *lane, u64 inode, u32 generation, u32 tgid, u64 id)
{
	u32 at;

	if (!id || !tgid)
		return;
	if (lane->files_known >= FILES / 4 * 3 || lane->writers_known >= WRITERS / 4 * 3)
		dk_forget(lane);
	if (!is_writer(lane, tgid)) {
		at = hash_of(tgid, 0);
		while (lane->writers[at & (WRITERS - 1)])
			at++;
		lane->writers[at & (WRITERS - 1)] = tgid;
		lane->writers_known++;
	}
	at = hash_of(inode, generation);
	while (1) {
		struct file *file = &lane->files[at++ & (FILES - 1)];
		if (file->id && (file->inode != inode || file->generation != generation))
			continue;
		lane->files_known += !file->id;
		*file = (struct file){.inode = inode, .id = id, .generation = generation};
		return;
	}
}

/* Times as the columns of a frame have them, whose first delta was at ``first_us``. */
void dk_relate(struct lane *lane, u64 first_us)
{
	for (u32 index = 0; index < lane->count; index++) {
		u64 end = lane->ends_us[index];
		u64 at = end > first_us ? end - first_us : 0;
		lane->at_us[index] = at > 0xffffffffull ? 0xffffffffu : (u32)at;
	}
}

static int has_room(const struct lane *lane, u64 size)
{
	return lane->room && lane->count < lane->count_max && lane->marks < lane->marks_max &&
	       size <= lane->data_max - lane->data_bytes;
}

static void put_delta(struct lane *lane, u8 op, u64 id, u64 offset, u64 length, u64 end_ns)
{
	lane->ops[lane->count] = op;
	lane->ids[lane->count] = id;
	lane->offsets[lane->count] = offset;
	lane->lengths[lane->count] = length;
	lane->ends_us[lane->count] = end_ns / 1000;
	lane->count++;
}

static void put(struct lane *lane, const struct record *head, const u8 *payload, u64 id)
{
	u32 size = (u32)head->length;
	u64 takes = (u64)size + DELTA_BYTES;

	memcpy(lane->data + lane->data_bytes, payload, size);
	memcpy(lane->noted + (lane->heads % HEADS) * HEAD_BYTES, head, HEAD_BYTES);
	lane->heads++;
	if (lane->heads == 2 * HEADS)
		lane->heads = HEADS;
	put_delta(lane, OP_WRITE, id, head->offset, size, head->end_ns);
	lane->data_bytes += size;
	lane->room = lane->room > takes ? lane->room - takes : 0;
}

/* The program asked for durability of a file. */
static void put_mark(struct lane *lane, const struct record *head, u64 id)
{
	u64 takes = DELTA_BYTES + ARGS_BYTES;

	lane->mark_calls[lane->marks] = head->extra;
	lane->mark_tgids[lane->marks] = head->tgid;
	lane->marks++;
	put_delta(lane, OP_BARRIER, id, 0, 0, head->end_ns);
	lane->room = lane->room > takes ? lane->room - takes : 0;
}

static void tell(struct ring *ring)
{
	if (!ring->stride)
		return;
	__atomic_store_n(ring->consumer, ring->position, __ATOMIC_RELEASE);
	ring->told = ring->position;
}

/*
 * Take plain writes and marks up to position ``end``, at most ``most``; why it stopped. ``taken`` counts them, ``position`` stands
 * at the first record that was not taken.
 */
u32 dk_take(struct ring *ring, u64 end, u64 most, struct lane *const *lanes, u32 lanes_count)
{
	u32 why = EMPTY, current = 0;

	ring->taken = 0;
	if (end - ring->position > ring->bytes)
		return BROKEN;
	while (ring->position < end) {
		u64 at = ring->position & (ring->bytes - 1);
		u32 length = __atomic_load_n((const u32 *)(ring->data + at), __ATOMIC_ACQUIRE);
		struct record head;
		u64 id;

		if (length & BUSY) {
			why = UNFINISHED;
			break;
		}
		if (!(length & DISCARDED)) {
			if (ring->taken >= most) {
				why = ENOUGH;
				break;
			}
			why = NOT_PLAIN;
			if (length < HEAD_BYTES || at + RING_HEAD_BYTES + length > ring->bytes)
				break;
			memcpy(&head, ring->data + at + RING_HEAD_BYTES, HEAD_BYTES);
			int is_mark = head.kind == KIND_SYNC && length == HEAD_BYTES;
			if (!is_mark &&
			    (head.kind != KIND_WRITE || head.flags & CAREFUL || head.length != length - HEAD_BYTES))
				break;
			if (current >= lanes_count || lanes[current]->volume != head.volume)
				for (current = 0; current < lanes_count; current++)
					if (lanes[current]->volume == head.volume)
						break;
			if (current == lanes_count || !is_writer(lanes[current], head.tgid))
				break;
			id = id_of(lanes[current], head.inode, head.generation);
			if (!id)
				break;
			u64 size = is_mark ? 0 : head.length;
			if (size > lanes[current]->data_max)
				break;
			if (!has_room(lanes[current], size)) {
				why = LANE_FULL;
				ring->stopped_by = current;
				break;
			}
			if (is_mark)
				put_mark(lanes[current], &head, id);
			else
				put(lanes[current], &head, ring->data + at + RING_HEAD_BYTES + HEAD_BYTES, id);
			ring->taken++;
			why = EMPTY;
		}
		length &= ~(BUSY | DISCARDED);
		ring->position += ((u64)length + 15) & ~7ull;
		if (ring->stride && ring->position - ring->told >= ring->stride)
			tell(ring);
	}
	tell(ring);
	return why;
}
