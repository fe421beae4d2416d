"""What an agent is told to capture, and what it keeps of that on its own disk.

Below ``DIR/volumes/VOLUME/``: ``capture.json`` (the reign: which epoch, what it continues), ``tree.state``
(the tree at a frame that is still in the spool or just before it), ``resume.journal`` and ``spool/``. Tree and spool together
give the tree at the end of the log after the agent died, so the spool keeps every frame behind the saved
tree.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

import msgspec

from diffkeeper import atomic_files
from diffkeeper.domain import errors, frames, positions
from diffkeeper.domain.receipts import Level
from diffkeeper.domain.volumes import UnmetPolicy


@dataclass(frozen=True, slots=True)
class Order:
    """A reign: this site captures the volume in ``path`` under ``epoch``, continuing ``parent``."""

    volume: str
    path: Path
    epoch: int
    parent: frames.Tip
    durability: Level
    policy: UnmetPolicy
    tree_state: Path | None
    probe: str  # auto, bpf or watch
    # The sites that are to hold a replica: until one of them confirms, nothing counts as safe beyond this site.
    replicas: tuple[str, ...] = ()
    # The time of the lease this reign needs; None where no other site takes over by itself.
    lease_ttl_ms: int | None = None


class Reign(msgspec.Struct, frozen=True):
    """``capture.json``."""

    path: str
    epoch: int
    parent_position: str
    parent_hash: str
    # The first sight is complete in the log.
    based: bool


@dataclass(frozen=True, slots=True)
class VolumeFiles:
    directory: Path

    @property
    def spool(self) -> Path:
        return self.directory / "spool"

    @property
    def tree_store(self) -> Path:
        return self.directory / "tree.db"

    @property
    def resume_journal(self) -> Path:
        return self.directory / "resume.journal"

    def ended_tree_state(self, epoch: int) -> Path:
        """The tree at the end of a reign, for whoever goes on."""
        return self.directory / f"tree-{epoch}.state"

    @property
    def reign(self) -> Path:
        return self.directory / "capture.json"

    def is_ours(self, tree_state: Path) -> bool:
        """Whether this agent wrote the state: then the directory may have changed unwatched since."""
        return tree_state.parent == self.directory

    def read_reign(self) -> Reign | None:
        try:
            return msgspec.json.decode(self.reign.read_bytes(), type=Reign)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise errors.Misconfigured(
                f"{self.reign} cannot be read: {error}",
                reason="reign-unreadable",
                hint="move the directory away to begin anew; the log itself is not in it",
            ) from error

    def write_reign(self, order: Order, *, based: bool) -> None:
        reign = Reign(
            str(order.path), order.epoch, str(order.parent.position), order.parent.hash.hex(), based
        )
        atomic_files.write_bytes(self.reign, msgspec.json.encode(reign))


def check_path(path: Path, captured: dict[str, Path], own_directory: Path) -> Path:
    """The real path of a directory that may be captured; raises Refused with the reason otherwise."""
    try:
        real = Path(os.path.realpath(path, strict=True))
        status = real.stat()
    except OSError as error:
        raise _refused(f"{path} cannot be captured: {error.strerror}", "path-missing", path) from error
    if not stat.S_ISDIR(status.st_mode):
        raise _refused(f"{path} is not a directory", "not-a-directory", path)
    for volume, other in captured.items():
        if real == other:
            raise _refused(f"{real} is captured already, as volume {volume}", "path-captured", path)
        if real.is_relative_to(other):
            raise _refused(f"{real} lies inside volume {volume} ({other})", "path-inside-volume", path)
        if other.is_relative_to(real):
            raise _refused(f"{real} contains volume {volume} ({other})", "path-around-volume", path)
    own = Path(os.path.realpath(own_directory))
    if own.is_relative_to(real) or real.is_relative_to(own):
        raise _refused(f"{real} overlaps the agent's own directory {own}", "path-is-own", path)
    return real


def parse_tip(position: str, digest: str) -> frames.Tip:
    parsed = positions.parse(position)
    try:
        value = bytes.fromhex(digest) if digest else frames.NO_HASH
    except ValueError:
        value = b""
    if len(value) != len(frames.NO_HASH):
        raise errors.Refused(f"{digest!r} is not the hash of a frame", reason="bad-hash")
    return frames.Tip(parsed, value)


def _refused(message: str, reason: str, path: Path) -> errors.Refused:
    return errors.Refused(message, reason=reason, hint="choose another directory; dkctl status", path=path)
