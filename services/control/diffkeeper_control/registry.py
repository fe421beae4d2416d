"""What control knows of each volume: who leads it, since which position, where its directories are, how its
program is started.

One JSON file, replaced atomically before anything is done that rests on it. It says what was decided, not how
far the log is: positions stand in the logs and the replicators, except for those at which a reign began or
capture ended. Volumes are frozen values; the functions here make the next one, ``Registry.put`` makes it
durable.
"""

from __future__ import annotations

import enum
from pathlib import Path

import msgspec

from diffkeeper import atomic_files
from diffkeeper.domain import errors, frames, positions, receipts, stop_signals, volumes


class State(enum.Enum):
    """What was last decided about a volume."""

    CAPTURED = "captured"  # its leader's agent captures it, or will as soon as the site is back
    RELEASED = "released"  # capture ended in order; ``resume`` says where it goes on
    MOVING = "moving"  # an operation is under way
    FAILED = "failed"  # an operation stopped half-way; ``detail`` says what to do


class Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A key that nobody reads would be lost at the next save, so it is an error."""


class Point(Struct, frozen=True):
    """A frame: its position as text, its hash as hex."""

    position: str
    hash: str


START = Point(position=str(positions.START), hash=frames.NO_HASH.hex())


class Reign(Struct, frozen=True):
    site: str
    epoch: int
    # The frame the reign's first frame continues.
    parent: Point


class Resume(Struct, frozen=True):
    """With what a site's capture of the volume goes on: the last frame, and the file that holds the tree at
    it.
    """

    point: Point
    tree_state: str | None


class Command(Struct, frozen=True):
    argv: list[str]
    env: dict[str, str]
    cwd: str | None = None
    uid: int | None = None
    gid: int | None = None
    # How it is asked to end by a planned handover; a name without SIG.
    stop_signal: str = stop_signals.DEFAULT
    # Whether it may use io_uring, whose syncs nobody can hold.
    io_uring: bool = False
    # Whether it is stopped while it writes faster than can be captured.
    hard_limit: bool = False


class Door(Struct, frozen=True):
    """The volume's front door: where its clients come, and at which port its program listens at each site."""

    host: str
    port: int
    protocol: str  # http or tcp
    hold_max: int
    hold_ms: int
    drain_ms: int
    ports: dict[str, int] = {}


class Orphan(Struct, frozen=True):
    """A directory a dead leader left behind, with writes beyond the parent of the next reign. Kept."""

    site: str
    epoch: int
    path: str
    since_us: int


class Reclaim(Struct, frozen=True):
    """A directory a fenced leader left behind, to be taken back into the main line as soon as its site is there."""

    epoch: int
    path: str
    since_us: int
    # Its agent gave it up, and left these files (null: it had none).
    surrendered: bool = False
    tail: str | None = None
    tree_state: str | None = None


class Volume(Struct, frozen=True):
    name: str
    mode: str
    durability: str
    policy: str
    probe: str
    created_us: int
    # Invariant: chain[-1] is the reign that counts; epochs rise along the chain.
    chain: tuple[Reign, ...]
    # Invariant: highest_epoch >= every epoch ever handed out, also to operations that failed.
    highest_epoch: int
    paths: dict[str, str]
    state: State
    # The path under which the program expects its files, wherever they are.
    bind: str
    resume: Resume | None = None
    command: Command | None = None
    held_since_us: int | None = None
    operation: str | None = None
    detail: str = ""
    # Directories that replicators can follow in without rebuilding, by site: the tree's file and its
    # position.
    tree_states: dict[str, Resume] = {}
    orphans: tuple[Orphan, ...] = ()
    # By site.
    reclaims: dict[str, Reclaim] = {}
    door: Door | None = None

    @property
    def leader(self) -> str:
        return self.chain[-1].site

    @property
    def epoch(self) -> int:
        return self.chain[-1].epoch

    @property
    def level(self) -> receipts.Level:
        return receipts.parse_level(self.durability)

    @property
    def origin(self) -> volumes.Origin:
        return volumes.Origin(self.name, self.leader)


def created(
    name: str, site: str, path: str, *, mode: str, durability: str, policy: str, probe: str, now_us: int
) -> Volume:
    """A volume that nobody has seen before: its first reign, at ``site``."""
    return Volume(
        name=name,
        mode=mode,
        durability=durability,
        policy=policy,
        probe=probe,
        created_us=now_us,
        chain=(Reign(site=site, epoch=1, parent=START),),
        highest_epoch=1,
        paths={site: path},
        state=State.CAPTURED,
        bind=path,
    )


def with_reign(volume: Volume, reign: Reign, *, path: str, resume: Resume | None) -> Volume:
    """``volume`` from the moment a new reign counts. Recording the same reign again changes nothing."""
    if volume.chain[-1] == reign:
        return msgspec.structs.replace(volume, paths={**volume.paths, reign.site: path}, resume=resume)
    assert reign.epoch > volume.epoch, "reigns are recorded in the order of their epochs"
    states = {site: state for site, state in volume.tree_states.items() if site != reign.site}
    return msgspec.structs.replace(
        volume,
        reclaims={site: reclaim for site, reclaim in volume.reclaims.items() if site != reign.site},
        chain=(*volume.chain, reign),
        highest_epoch=max(volume.highest_epoch, reign.epoch),
        paths={**volume.paths, reign.site: path},
        resume=resume,
        tree_states=states,
    )


def without_reign(volume: Volume, epoch: int) -> Volume:
    """``volume`` without a last reign that never wrote a frame."""
    if volume.epoch != epoch:
        return volume
    assert len(volume.chain) > 1, "the first reign is never taken back"
    return msgspec.structs.replace(volume, chain=volume.chain[:-1])


def with_next_epoch(volume: Volume) -> tuple[Volume, int]:
    """An epoch nobody was ever given."""
    epoch = volume.highest_epoch + 1
    return msgspec.structs.replace(volume, highest_epoch=epoch), epoch


def with_orphan(volume: Volume, orphan: Orphan, path: str) -> Volume:
    """The site follows in another directory from now on; the old one stays as it is."""
    states = {site: state for site, state in volume.tree_states.items() if site != orphan.site}
    return msgspec.structs.replace(
        volume,
        orphans=(*volume.orphans, orphan),
        paths={**volume.paths, orphan.site: path},
        tree_states=states,
    )


def with_reclaim(volume: Volume, site: str, reclaim: Reclaim) -> Volume:
    """The site follows in the directory its leader left, once that was taken back."""
    states = {known: state for known, state in volume.tree_states.items() if known != site}
    return msgspec.structs.replace(volume, reclaims={**volume.reclaims, site: reclaim}, tree_states=states)


def without_reclaim(volume: Volume, site: str, replica: str) -> Volume:
    """The directory cannot be taken back: it is kept as it is, and the site follows in a new one."""
    reclaim = volume.reclaims[site]
    orphan = Orphan(site=site, epoch=reclaim.epoch, path=reclaim.path, since_us=reclaim.since_us)
    rest = {known: other for known, other in volume.reclaims.items() if known != site}
    return with_orphan(msgspec.structs.replace(volume, reclaims=rest), orphan, replica)


def end_of(volume: Volume, epoch: int) -> Point:
    """The frame from which the chain goes on after a reign."""
    epochs = [reign.epoch for reign in volume.chain]
    return volume.chain[epochs.index(epoch) + 1].parent


class _File(Struct, frozen=True):
    version: int
    volumes: list[Volume]


_VERSION = 1


class Registry:
    """The volumes of a deployment, by name; what ``put`` has returned from survives a power cut."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._volumes: dict[str, Volume] = {}
        if path.exists():
            self._volumes = {volume.name: volume for volume in _load(path).volumes}

    def all(self) -> list[Volume]:
        return [self._volumes[name] for name in sorted(self._volumes)]

    def find(self, name: str) -> Volume | None:
        return self._volumes.get(name)

    def get(self, name: str) -> Volume:
        volume = self._volumes.get(name)
        if volume is None:
            known = ", ".join(sorted(self._volumes)) or "none yet"
            raise errors.NotFound(
                f"there is no volume {name!r}",
                reason="unknown-volume",
                hint=f"the volumes of this deployment: {known}",
                volume=name,
            )
        return volume

    def put(self, volume: Volume) -> Volume:
        """Make ``volume`` the one that counts; durable when this returns."""
        changed = {**self._volumes, volume.name: volume}
        self._save(changed)
        self._volumes = changed
        return volume

    def note(self, volume: Volume) -> Volume:
        """Like ``put``, but durable only with the next ``put``: for what another durable record says too."""
        self._volumes = {**self._volumes, volume.name: volume}
        return volume

    def remove(self, name: str) -> None:
        """Forget a volume whose capture never began."""
        changed = {known: volume for known, volume in self._volumes.items() if known != name}
        self._save(changed)
        self._volumes = changed

    def _save(self, known: dict[str, Volume]) -> None:
        file = _File(version=_VERSION, volumes=[known[name] for name in sorted(known)])
        atomic_files.write_json(self._path, msgspec.to_builtins(file))


def _load(path: Path) -> _File:
    try:
        file = msgspec.json.decode(path.read_bytes(), type=_File)
    except (OSError, msgspec.DecodeError) as error:
        raise errors.Misconfigured(
            f"the registry {path} cannot be read: {error}; it was left as it is",
            reason="registry-unreadable",
            hint="it is JSON; the deployment can be started again once it can be read",
            path=path,
        ) from error
    if file.version != _VERSION:
        raise errors.Misconfigured(
            f"the registry {path} has version {file.version} and this control reads {_VERSION}",
            reason="unknown-version",
            hint="start the deployment with the version that wrote it",
        )
    return file
