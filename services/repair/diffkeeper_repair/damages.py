"""What is known to be bad: where, since when, why, and what became of it.

A damaged item is in quarantine from the moment it is found: it is read only where nothing else is left, and removed
only once a replacement was written and read back. The book survives restarts, but for its last second (what was
noted in it is found again); what was repaired stays in it for a while, so that somebody can see that something
happened.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from pathlib import Path

import msgspec

from diffkeeper import atomic_files
from diffkeeper.domain import errors
from diffkeeper.domain.shard_headers import Key, Stripe

MAX_PAST = 1000
KEEP_EVERY_S = 1.0


class Cause(enum.Enum):
    MISSING = "missing"  # the node answers and does not have it
    TORN = "torn"  # only parts of it are there
    HEADER = "flipped-header"  # put right by its check bytes
    DIGEST = "wrong-digest"
    LIE = "lie"  # agrees with itself and not with its stripe
    FOREIGN = "foreign"  # belongs to another place
    MANIFEST = "bad-manifest"
    UNREADABLE = "unreadable-segment"
    STREAM = "stream"  # an origin stream lost or altered a message


class State(enum.Enum):
    QUARANTINED = "quarantined"  # known bad, replacement not proven yet
    REPAIRED = "repaired"
    LOST = "lost"  # nothing that is reachable now can bring it back


class Damage(msgspec.Struct, frozen=True, kw_only=True):
    item: str  # key of a shard or manifest, or the place in a stream
    node: str  # storage node, or site
    volume: str
    cause: Cause
    state: State
    detail: str
    found_us: int
    ended_us: int | None = None


class _Book(msgspec.Struct):
    open: list[Damage] = []
    past: list[Damage] = []


class DamageBook:
    def __init__(self, path: Path, now_us: Callable[[], int]) -> None:
        self._path = path
        self._now_us = now_us
        self._open: dict[tuple[str, str], Damage] = {}
        self._past: list[Damage] = []
        # The same by what they are of: a stripe, or a stream.
        self._of: dict[str, set[tuple[str, str]]] = {}
        # Counts the changes of each, for those who remember what followed from it.
        self._versions: dict[str, int] = {}
        self.version = 0
        self._kept_version = 0
        self.found_total = 0
        self.repaired_total = 0

    def load(self) -> None:
        try:
            book = msgspec.json.decode(self._path.read_bytes(), type=_Book)
        except FileNotFoundError:
            return
        except msgspec.DecodeError as error:
            raise errors.Misconfigured(
                f"the book of damages {self._path} cannot be read: {error}; it was left as it is",
                reason="damages-unreadable",
                hint="move it away: the next scrub finds what is damaged again",
            ) from error
        for damage in book.open:
            self._put(damage)
        self._past = book.past

    @property
    def open(self) -> list[Damage]:
        return sorted(self._open.values(), key=lambda damage: damage.found_us)

    @property
    def past(self) -> list[Damage]:
        return list(self._past)

    def version_of(self, stripe: Stripe) -> int:
        return self._versions.get(_name(stripe), 0)

    def is_bad(self, node: str, key: Key) -> bool:
        return (node, str(key)) in self._open

    def report(self, node: str, key: Key, cause: Cause, detail: str) -> None:
        """Note a damaged item; again is nothing new."""
        self._note(node, str(key), key.stripe.volume, cause, State.QUARANTINED, detail)

    def report_lost(self, stripe: Stripe, detail: str) -> None:
        self._note("", _name(stripe), stripe.volume, Cause.UNREADABLE, State.LOST, detail)

    def report_stream(self, site: str, stream: str, volume: str, sequence: int, detail: str) -> None:
        self._note(site, f"{stream}:{sequence}", volume, Cause.STREAM, State.QUARANTINED, detail)

    def _note(self, node: str, item: str, volume: str, cause: Cause, state: State, detail: str) -> None:
        known = self._open.get((node, item))
        if known is not None and known.cause is cause and known.state is state:
            return
        found_us = known.found_us if known is not None else self._now_us()
        self.found_total += known is None
        self._put(
            Damage(
                item=item,
                node=node,
                volume=volume,
                cause=cause,
                state=state,
                detail=detail,
                found_us=found_us,
            )
        )

    def repaired(self, node: str, key: Key) -> None:
        """The item's replacement is proven, or the item itself is good again."""
        self._end(node, str(key))

    def acquit(self, node: str, key: Key, cause: Cause) -> None:
        """The item was blamed for what another one did."""
        damage = self._open.get((node, str(key)))
        if damage is not None and damage.cause is cause:
            self._take(node, str(key))

    def settle(self, stripe: Stripe, answers: Callable[[str], bool]) -> None:
        """Every shard of the stripe stands, so its damages on nodes that answer are history."""
        for node, item in sorted(self._of.get(_name(stripe), ())):
            if not node or (answers(node) and self._open[node, item].cause is not Cause.TORN):
                self._end(node, item)

    def readable(self, stripe: Stripe) -> None:
        self._end("", _name(stripe))

    def stream_sealed(self, stream: str, up_to: int) -> None:
        """What a stream lost up to there stands in shards now; the stream itself stays as it is."""
        for (site, item), damage in list(self._open.items()):
            name, _, sequence = item.rpartition(":")
            if damage.cause is Cause.STREAM and name == stream and int(sequence) <= up_to:
                self._end(site, item)

    def _end(self, node: str, item: str) -> None:
        damage = self._take(node, item)
        if damage is None:
            return
        self.repaired_total += 1
        ended = msgspec.structs.replace(damage, state=State.REPAIRED, ended_us=self._now_us())
        self._past = [*self._past, ended][-MAX_PAST:]

    def _put(self, damage: Damage) -> None:
        self._open[damage.node, damage.item] = damage
        self._of.setdefault(_whole(damage.item), set()).add((damage.node, damage.item))
        self._touch(damage.item)

    def _take(self, node: str, item: str) -> Damage | None:
        damage = self._open.pop((node, item), None)
        if damage is not None:
            self._of[_whole(item)].discard((node, item))
            self._touch(item)
        return damage

    def _touch(self, item: str) -> None:
        self.version += 1
        self._versions[_whole(item)] = self.version

    async def run(self) -> None:
        """Keep the book on disk, a little behind: a node that lost everything is thousands of notes at once."""
        while True:
            await asyncio.sleep(KEEP_EVERY_S)
            if self.version != self._kept_version:
                self._kept_version = self.version
                await asyncio.to_thread(atomic_files.write_bytes, self._path, self._encoded())

    def keep(self) -> None:
        """Write everything now: the last thing before the end."""
        atomic_files.write_bytes(self._path, self._encoded())

    def _encoded(self) -> bytes:
        return msgspec.json.encode(_Book(open=list(self._open.values()), past=self._past))


def _whole(item: str) -> str:
    """What an item is of: the key of a shard begins with its stripe; a lost stripe and a stream are named whole."""
    return ".".join(item.split(".")[:3])


def _name(stripe: Stripe) -> str:
    return f"{stripe.volume}.{stripe.segment}.{stripe.geometry.data}-{stripe.geometry.parity}"
