/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* write, pwrite64, writev, pwritev, pwritev2: where the bytes went, and the bytes. */
#pragma once

#define O_APPEND_FLAG 02000
#define O_DSYNC_FLAG 010000 /* O_SYNC contains it */
#define RWF_DSYNC 2
#define RWF_SYNC 4
#define RWF_APPEND 16
#define RWF_NOAPPEND 32

struct iovec {
	u64 base;
	u64 length;
};

/*
 * A finished write: decided first, copied then. Plain numbers only, so that the verifier follows each piece
 * once.
 */
struct written {
	struct dk_begun begun;
	u64 own; /* number of the record before, when this call is told in several */
	s64 offset;
	s64 length;
	s64 done;
	s64 size;
	u64 inode;
	u32 generation;
	u32 device;
	u32 uid;
	u32 gid;
	u32 volume;
	u32 flags;
	u32 extra;
	u32 segments;
	u64 buffer; /* of a plain write; 0 with a vector */
	u64 vector;
	/* Where the next byte of a vector comes from. */
	u64 address;
	u64 left;
	u64 next_segment;
	u64 filled;
};

struct {
	MAP_UINT(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	MAP_UINT(max_entries, 1);
	MAP_TYPE(key, u32);
	MAP_TYPE(value, struct written);
} writing SEC(".maps");

INLINE s64 lesser(s64 a, s64 b)
{
	return a < b ? a : b;
}

INLINE s64 greater(s64 a, s64 b)
{
	return a > b ? a : b;
}

/* The range changed, its bytes are not known: to be read again. */
INLINE void emit_reread(u32 volume, struct inode *inode, struct dk_begun begun, u32 flags, s64 from,
			s64 to, u32 nr)
{
	struct dk_record *record = begin_record(KIND_REREAD, volume, inode, begun.ns);

	if (!record)
		return;
	record->flags |= flags;
	record->offset = greater(from, 0);
	record->length = greater(to - greater(from, 0), 0);
	record->aux = inode->i_size;
	record->extra = nr;
	flag_overlap(record, begun.order, 0);
	bpf_ringbuf_submit(record, 0);
}

INLINE void fill_write(struct dk_record *record, struct task_struct *task, struct written *w, u64 chunk)
{
	fill_head(record, task, KIND_WRITE, w->volume, w->begun.ns);
	record->inode = w->inode;
	record->generation = w->generation;
	record->device = w->device;
	record->uid = w->uid;
	record->gid = w->gid;
	record->flags = w->flags | (w->done + (s64)chunk < w->length ? FLAG_PARTIAL : 0);
	record->offset = w->offset + w->done;
	record->length = chunk;
	record->aux = w->size;
	record->extra = w->extra;
	w->own = flag_overlap(record, w->begun.order, w->own);
}

/*
 * The rest of a write whose bytes cannot be had (user memory not present, or too many of them): its range
 * alone.
 */
static __attribute__((noinline)) int emit_unreadable(struct written *w)
{
	struct dk_record *record = bpf_ringbuf_reserve(&ring, sizeof(*record), 0);

	if (!record) {
		count_lost(w->volume, w->inode);
		return 0;
	}
	fill_write(record, bpf_get_current_task_btf(), w, w->length - w->done);
	record->flags |= FLAG_UNREADABLE;
	bpf_ringbuf_submit(record, 0);
	return 0;
}

/* Room for a record and `chunk` bytes, head filled. NULL without room, and then counted. */
INLINE struct dk_record *begin_chunk(struct bpf_dynptr *room, struct written *w, u32 chunk)
{
	struct dk_record *record;

	if (bpf_ringbuf_reserve_dynptr(&ring, sizeof(*record) + chunk, 0, room)) {
		count_lost(w->volume, w->inode);
		return NULL;
	}
	record = bpf_dynptr_data(room, 0, sizeof(*record));
	if (record)
		fill_write(record, bpf_get_current_task_btf(), w, chunk);
	return record;
}

/* A write of a size known here: half the cost of one through a dynptr. */
#define EMIT_FIXED(bytes) \
	{ \
		struct { \
			struct dk_record head; \
			u8 payload[bytes]; \
		} *room = bpf_ringbuf_reserve(&ring, sizeof(*room), 0); \
\
		if (!room) { \
			count_lost(w->volume, w->inode); \
			return; \
		} \
		fill_write(&room->head, task, w, bytes); \
		if (unlikely(bpf_probe_read_user(room->payload, bytes, (void *)w->buffer))) { \
			bpf_ringbuf_discard(room, 0); \
			emit_unreadable(w); \
		} else { \
			bpf_ringbuf_submit(room, 0); \
		} \
		return; \
	}

/* The usual case: one buffer, one record. Pages of databases have two sizes above all. */
INLINE void emit_whole(struct task_struct *task, struct written *w)
{
	struct bpf_dynptr room;

	if (w->length == 4096)
		EMIT_FIXED(4096)
	if (w->length == 8192)
		EMIT_FIXED(8192)
	if (!begin_chunk(&room, w, w->length)) {
		bpf_ringbuf_discard_dynptr(&room, 0);
	} else if (bpf_probe_read_user_dynptr(&room, HEAD_BYTES, w->length, (void *)w->buffer)) {
		bpf_ringbuf_discard_dynptr(&room, 0);
		emit_unreadable(w);
	} else {
		bpf_ringbuf_submit_dynptr(&room, 0);
	}
}

INLINE int next_segment(struct written *w)
{
	struct iovec segment;

	if (w->next_segment >= w->segments)
		return 1;
	if (bpf_probe_read_user(&segment, sizeof(segment), (void *)(w->vector + 16 * w->next_segment)))
		return 1;
	w->next_segment++;
	w->address = segment.base;
	w->left = segment.length;
	return 0;
}

INLINE int copy_segments(struct bpf_dynptr *room, struct written *w, u64 chunk)
{
	w->filled = 0;
	FOR_UP_TO (2 * SEGMENTS_MAX + 2) {
		u64 n = chunk - w->filled;

		if (w->filled >= chunk)
			return 0;
		if (!w->left) {
			if (next_segment(w))
				return 1;
			continue;
		}
		if (n > w->left)
			n = w->left;
		if (bpf_probe_read_user_dynptr(room, HEAD_BYTES + w->filled, n, (void *)w->address))
			return 1;
		w->address += n;
		w->left -= n;
		w->filled += n;
	}
	return w->filled < chunk;
}

/*
 * The next piece of this processor's write; 1 when there is no more to do. Global, so that it is verified
 * by itself.
 */
__attribute__((noinline)) int dk_emit_piece(void)
{
	u32 zero = 0;
	struct written *w = bpf_map_lookup_elem(&writing, &zero);
	struct bpf_dynptr room;
	u64 chunk;
	int failed;

	if (!w || w->done >= w->length)
		return 1;
	chunk = w->length - w->done;
	if (chunk > PAYLOAD_MAX)
		chunk = PAYLOAD_MAX;
	if (!begin_chunk(&room, w, chunk)) {
		bpf_ringbuf_discard_dynptr(&room, 0);
		return 1; /* the file is named as lost: it is read again as a whole */
	}
	if (w->buffer)
		failed = bpf_probe_read_user_dynptr(&room, HEAD_BYTES, chunk, (void *)(w->buffer + w->done));
	else
		failed = copy_segments(&room, w, chunk);
	if (failed) {
		bpf_ringbuf_discard_dynptr(&room, 0);
		emit_unreadable(w);
		return 1;
	}
	bpf_ringbuf_submit_dynptr(&room, 0);
	w->done += chunk;
	return 0;
}

INLINE void emit_write(struct task_struct *task, struct written *w)
{
	u32 zero = 0;
	struct written *shared;

	if (likely(w->buffer && w->length <= PAYLOAD_MAX)) {
		emit_whole(task, w);
		return;
	}
	shared = bpf_map_lookup_elem(&writing, &zero);
	if (w->length > COPY_MAX || w->segments > SEGMENTS_MAX || !shared) {
		emit_unreadable(w);
		return;
	}
	*shared = *w;
	FOR_UP_TO (COPY_RECORDS) {
		if (dk_emit_piece())
			return;
	}
}

/*
 * Where did it go? Calls with an offset say so. The others moved f_pos, and ended there, unless a second
 * thread or process moved the same f_pos meanwhile; then, and for appends that interleave, only a range
 * that surely covers it is known. `before` is what sys_enter saw, NULL when it did not. False when the
 * place is not certain: then [*from, *to) covers it.
 */
INLINE bool place(struct file *file, struct inode *inode, struct dk_task *before, bool append,
		  bool by_position, s64 offset, s64 length, s64 *from, s64 *to)
{
	s64 size = inode->i_size;
	s64 end = by_position ? file->f_pos : append ? size : offset + length;

	*from = end - length;
	*to = end;
	if (!by_position && !append)
		return true;
	if (!before) {
		*from = 0;
		*to = greater(end, size);
		return false;
	}
	if (*from == (append ? before->size : before->position))
		return true;
	*from = append ? lesser(before->size, *from) : 0;
	*to = greater(end, size);
	return false;
}
