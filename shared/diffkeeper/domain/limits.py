"""Bounds, each with its unit and its reason. Everything read from a peer or a disk is checked against these
first.
"""

# nats-server refuses more than 64 MiB and warns above 8 MiB; frames stay well below the configured payload.
BROKER_MAX_PAYLOAD_BYTES = 8 * 1024 * 1024
# A sealed frame, header and compressed body together.
FRAME_MAX_BYTES = 6 * 1024 * 1024
# A frame's body after decompression. Checked before memory is taken for it.
FRAME_MAX_BODY_BYTES = 6 * 1024 * 1024
# Builders cut a frame once its raw payload reaches this: large enough to pay for one fsync a message (what a frame
# costs each process it passes, whatever its size, is as much as a megabyte of it), and 29 bytes of it for each
# delta are still fewer than FRAME_MAX_DELTAS.
FRAME_TARGET_BYTES = 1792 * 1024
FRAME_MAX_DELTAS = 65_536
HEADER_MAX_BYTES = 4096
# One WRITE delta; larger writes are cut into several.
DELTA_MAX_DATA_BYTES = 1024 * 1024
NAME_MAX_BYTES = 255
SYMLINK_MAX_BYTES = 4096
XATTR_NAME_MAX_BYTES = 255
XATTR_VALUE_MAX_BYTES = 65_536
# off_t is signed on every Linux file system.
FILE_MAX_OFFSET = (1 << 63) - 1
# How far ahead of the local clock a remote stamp may be before it is refused (a forged clock must not poison
# ours).
CLOCK_MAX_DRIFT_MS = 60 * 60 * 1000 + 5 * 60 * 1000
