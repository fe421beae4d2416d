"""The histories of all volumes at a site: opened at first need, with one store of chunks between them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from diffkeeper.domain import chunks, errors, volumes
from diffkeeper_replicator import checkpoints, named_branches
from diffkeeper_replicator.chunk_store import ChunkStore, Freed
from diffkeeper_replicator.peers import Peers
from diffkeeper_replicator.volume_history import VolumeHistory


class Histories:
    def __init__(self, directory: Path, volumes_directory: Path, site: str, peers: Peers) -> None:
        self.site = site
        self._branches = volumes_directory / named_branches.FOLDER
        self._directory = directory
        self._peers = peers
        self._lock = threading.Lock()
        self._open: dict[str, VolumeHistory] = {}
        self.store = ChunkStore(directory / ".chunks")
        self.store.elsewhere = self._elsewhere

    def get(self, volume: str) -> VolumeHistory:
        """Raises NotFound for a volume that has no log here."""
        volumes.check_name("volume", volume)
        with self._lock:
            found = self._open.get(volume)
            if found is None:
                folder = self._directory / volume
                if not (folder / "journal").is_dir():
                    raise errors.NotFound(
                        f"site {self.site} holds no log of volume {volume}",
                        reason="no-history",
                        hint="ask at a site that follows it (dkctl status)",
                    )
                found = self._open[volume] = VolumeHistory(volume, folder, self.store, self._branches)
            return found

    def known(self) -> Sequence[str]:
        return sorted(path.parent.name for path in self._directory.glob("*/journal"))

    def drop_unused_chunks(self) -> Freed:
        """Chunks that no checkpoint of any volume names. Nothing goes while a checkpoint cannot be read."""
        with self.store.lock:
            live: set[bytes] = set()
            for path in self._directory.glob(f"*/history/checkpoints/*{checkpoints.SUFFIX}"):
                live.update(checkpoints.hashes(path))
            return self.store.drop_all_but(live)

    def close(self) -> None:
        with self._lock:
            for history in self._open.values():
                history.close()
            self._open.clear()
        self.store.close()

    def _elsewhere(self, ref: chunks.Ref) -> bytes | None:
        return self._peers.chunk(ref)
