"""A journal as a replicator writes it, and a history that follows it; also as a process that a test kills:
``python -m tests.support.history_rigs FOLDER`` grows and prunes until it is killed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from diffkeeper.domain import frames, retention
from diffkeeper_replicator import pruning, volume_history
from diffkeeper_replicator.chunk_store import ChunkStore
from diffkeeper_replicator.histories import Histories
from diffkeeper_replicator.journal import Journal
from diffkeeper_replicator.peers import Peers
from diffkeeper_replicator.volume_history import VolumeHistory

SEGMENT_BYTES = 20_000
VOLUME = "orders"


class Rig:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journal = Journal.open(folder / VOLUME / "journal", segment_bytes=SEGMENT_BYTES)
        self.histories = self._opened()

    def _opened(self) -> Histories:
        return Histories(self.folder, self.folder / "volumes", "west", Peers((), ""))

    @property
    def history(self) -> VolumeHistory:
        return self.histories.get(VOLUME)

    @property
    def store(self) -> ChunkStore:
        return self.histories.store

    def append(self, log: Sequence[frames.Frame]) -> None:
        """A few at a time, so that segments are begun and sealed."""
        for at in range(0, len(log), 5):
            self.journal.append(log[at : at + 5])

    def reopened(self) -> VolumeHistory:
        self.histories.close()
        self.histories = self._opened()
        return self.history

    def close(self) -> None:
        self.histories.close()
        self.journal.close()


def make_small() -> None:
    """Checkpoints and archives as often as a short log needs to have some."""
    volume_history.REPLAY_MAX_COST = 60_000
    pruning.ARCHIVE_BYTES = 30_000


def main() -> None:
    make_small()
    histories = Histories(Path(sys.argv[1]), Path(sys.argv[1]) / "volumes", "west", Peers((), ""))
    history = histories.get(VOLUME)
    print("growing", flush=True)
    age_s = 10**10
    while True:
        # Ever less is kept: each round folds what the one before has made.
        history.set_policy(retention.Policy(0, 0, (retention.Step(age_s, 3),)))
        pruning.Pruner(history).prune(int(sys.argv[2]))
        histories.drop_unused_chunks()
        print("pruned", flush=True)
        age_s = max(1, int(age_s * 0.999))


if __name__ == "__main__":
    main()
