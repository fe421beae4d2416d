"""The settings file of a replicator."""

from __future__ import annotations

from diffkeeper import settings


class ReplicatorSettings(settings.Settings, frozen=True, kw_only=True):
    site: str
    # Journals, cursors and tree states, one directory a volume.
    dir: str
    # Where replicas are kept whose path nobody names, one directory a volume.
    volumes_dir: str
    token_file: str
    # Addresses of this site's own nats-servers.
    servers: tuple[str, ...]
    broker_secret_file: str
    # All sites: what this one's brokers lost is asked for there.
    sites: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 0
    # Replicators of other sites, asked for what is damaged in the history here.
    peers: tuple[str, ...] = ()
    # Carry set-user-id and set-group-id bits over to replicas.
    allow_setid: bool = False
    # How much is kept to bring a replica backward: bytes and frames a volume; 0 bytes: nothing.
    undo_bytes: int = 512 * 1024 * 1024
    undo_frames: int = 100_000
    # One more fsync before each run is applied: undo outlives a power cut too.
    undo_durable: bool = False
    # Where the repair service listens; asked for a frame that the streams do not give.
    repair: str | None = None
