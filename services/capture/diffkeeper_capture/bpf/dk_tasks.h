/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What is kept of a task between sys_enter and sys_exit. */
#pragma once

struct {
	MAP_UINT(type, BPF_MAP_TYPE_TASK_STORAGE);
	MAP_UINT(map_flags, BPF_F_NO_PREALLOC);
	MAP_TYPE(key, s32);
	MAP_TYPE(value, struct dk_task);
} tasks SEC(".maps");

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
