"""Everything back from any k shards of each segment, on an empty machine, with no index: the work of ``dkctl rescue``.

Below the target, for each volume: ``VOLUME/log/ORIGIN/…`` with every segment that could be decoded, as it was sealed.
Frames of it are the history; the tree at its end is made of them by ``diffkeeper_replicator.materialise``. The
report on stdout says what was found, what is whole, and what is missing, by position and time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffkeeper import atomic_files, service
from diffkeeper.domain import errors, lineages, manifests, segments, shard_headers
from diffkeeper.domain.shard_headers import MANIFEST, Key, Stripe
from diffkeeper_repair import assembly, rescue_sources, similar
from diffkeeper_repair.rescue_sources import Source

SEGMENT_SUFFIX = ".dkseg"

Place = tuple[Source, Key]


class Rescue:
    def __init__(self, target: Path) -> None:
        self._target = target
        self._links: dict[str, list[lineages.Link]] = {}
        self._spans: dict[str, list[segments.Span]] = {}
        self._lost: dict[str, list[dict[str, Any]]] = {}
        self._written: set[tuple[str, str]] = set()
        # Rescued segments of a volume and origin, by their place in the stream; and those that need them.
        self._files: dict[tuple[str, str], list[tuple[int, Path]]] = {}
        self._hard: list[
            tuple[Stripe, segments.Span, Sequence[assembly.Shard], Sequence[assembly.Shard]]
        ] = []
        self.damaged: list[dict[str, str]] = []
        self.shards = 0
        self.bytes = 0

    async def run(self, sources: Sequence[Source]) -> None:
        places: dict[Stripe, list[Place]] = {}
        for source in sources:
            for key in await self._list(source):
                places.setdefault(key.stripe, []).append((source, key))
        for stripe in sorted(places):
            if (stripe.volume, stripe.segment) not in self._written:
                await self._rescue(stripe, places[stripe])
        for stripe, span, shards, damaged in self._hard:
            if (stripe.volume, stripe.segment) not in self._written:
                await asyncio.to_thread(self._from_likeness, stripe, span, shards, damaged)
        self._forget_written()

    async def _list(self, source: Source) -> Sequence[Key]:
        try:
            return (await source.store.keys()).whole
        except errors.DiffKeeperError as error:
            self.damaged.append({"where": source.name, "item": "", "why": error.message})
            return []

    async def _rescue(self, stripe: Stripe, places: Sequence[Place]) -> None:
        waiting = sorted(
            (place for place in places if place[1].index != MANIFEST), key=lambda place: place[1].index
        )
        shards: list[assembly.Shard] = []
        damaged: list[assembly.Shard] = []
        trouble = f"no shard of it was found, and {stripe.geometry.data} are needed"
        while waiting:
            source, key = waiting.pop(0)
            shard = await self._read(source, key)
            if shard is None:
                continue
            if not await asyncio.to_thread(self._is_good, shard):
                damaged.append(shard)
                continue
            self.shards += 1
            shards.append(shard)
            have = len({one.header.index for one in shards})
            if have < stripe.geometry.data:
                trouble = f"{have} good shards of it were found, and {stripe.geometry.data} are needed"
                continue
            try:
                found = await asyncio.to_thread(assembly.assemble, stripe, shards)
            except errors.Corrupt as error:
                trouble = error.message
                continue
            for liar in found.liars:
                self._note(
                    liar.source, str(liar.header.key), "it agrees with itself and not with its segment"
                )
            await asyncio.to_thread(self._keep, found)
            return
        try:
            found = await asyncio.to_thread(assembly.mend, stripe, shards, damaged)
        except errors.Corrupt as error:
            if error.reason == "beyond-salvage":
                trouble = error.message
        else:
            await asyncio.to_thread(self._keep, found)
            return
        span = await self._span(stripe, shards or damaged, places)
        self._lose(stripe, trouble, span)
        if span is not None and (shards or damaged):
            self._hard.append((stripe, span, shards, damaged))

    def _from_likeness(
        self,
        stripe: Stripe,
        span: segments.Span,
        shards: Sequence[assembly.Shard],
        damaged: Sequence[assembly.Shard],
    ) -> None:
        """What parity could not give back, with the help of what was rescued of the same stream: all of it is there now."""
        near = sorted(
            self._files.get((span.volume, span.origin), []),
            key=lambda one: abs(one[0] - span.first_sequence),
        )
        whole = [path.read_bytes() for _, path in near[: similar.NEIGHBOURS]]
        said = b"".join(shard.payload for shard in (*shards, *damaged))
        try:
            self._keep(assembly.mend(stripe, shards, damaged, similar.nearest(said, whole, similar.DONORS)))
        except errors.Corrupt:
            return  # named as lost already

    def _forget_written(self) -> None:
        """A segment that could not be read in one geometry, or at first, may have been read after all."""
        for volume, lost in self._lost.items():
            left = [one for one in lost if (volume, one["segment"]) not in self._written]
            self._lost[volume] = sorted(left, key=lambda one: (one.get("first_us", 0), one["segment"]))

    async def _read(self, source: Source, key: Key) -> assembly.Shard | None:
        try:
            data = await source.store.get(key)
            if data is None:
                raise errors.Corrupt("its store does not give it", reason="missing")
            return await asyncio.to_thread(assembly.open_header, data, source.name, key.stripe)
        except errors.DiffKeeperError as error:
            self._note(source.name, str(key), error.message)
            return None

    def _is_good(self, shard: assembly.Shard) -> bool:
        """Whether its bytes are those of its digest; noted if not, and kept in case too few are."""
        try:
            shard_headers.check_payload(shard.header, shard.payload)
        except errors.Corrupt as error:
            self._note(shard.source, str(shard.header.key), error.message)
            return False
        return True

    def _note(self, where: str, item: str, why: str) -> None:
        self.damaged.append({"where": where, "item": item, "why": why})

    def _keep(self, found: assembly.Assembled) -> None:
        segment = found.segment
        try:
            links = [
                lineages.link_of(frame, segment.first_sequence + number)
                for number, frame in enumerate(segment.frames())
            ]
            span = segment.span()
        except errors.Corrupt as error:
            self._note("", segments.name_of(found.segment_hash), f"a frame in it: {error.message}")
            return
        # Volume and origin were checked to be names, which hold neither dots nor slashes.
        name = segments.name_of(found.segment_hash)
        directory = self._target / segment.volume / "log" / segment.origin
        directory.mkdir(parents=True, exist_ok=True)
        file = f"{segment.first_sequence:012}-{segment.last_sequence:012}.{name}{SEGMENT_SUFFIX}"
        atomic_files.write_bytes(directory / file, bytes(found.data))
        self._files.setdefault((segment.volume, segment.origin), []).append(
            (segment.first_sequence, directory / file)
        )
        self._written.add((segment.volume, name))
        self.bytes += len(found.data)
        self._links.setdefault(segment.volume, []).extend(links)
        self._spans.setdefault(segment.volume, []).append(span)

    async def _span(
        self, stripe: Stripe, shards: Sequence[assembly.Shard], places: Sequence[Place]
    ) -> segments.Span | None:
        """What a lost segment stood for, from whatever is left that says so."""
        if shards:
            return shards[0].header.span
        for source, key in places:
            if key.index != MANIFEST:
                continue
            try:
                data = await source.store.get(key)
                if data is not None and (found := manifests.decode(data)).stripe == stripe:
                    return found.span
            except errors.DiffKeeperError as error:
                self._note(source.name, str(key), error.message)
        return None

    def _lose(self, stripe: Stripe, why: str, span: segments.Span | None) -> None:
        lost: dict[str, Any] = {"segment": stripe.segment, "why": why}
        if span is not None:
            lost |= {
                "origin": span.origin,
                "first": str(span.first),
                "last": str(span.last),
                "first_us": span.first_us,
                "last_us": span.last_us,
            }
        self._lost.setdefault(stripe.volume, []).append(lost)

    def report(self) -> list[dict[str, Any]]:
        return [self._volume(volume) for volume in sorted({*self._links, *self._lost})]

    def _volume(self, volume: str) -> dict[str, Any]:
        lineage = lineages.trace(self._links.get(volume, []))
        lost = self._lost.get(volume, [])
        return {
            "volume": volume,
            "log": str(self._target / volume / "log"),
            "segments": sum(name == volume for name, _ in self._written),
            "frames": len(self._links.get(volume, [])),
            "position": str(lineage.tip),
            "main_frames": len(lineage.main),
            "base_complete": any(link.closes_base for link in lineage.main),
            "tail_frames": len(lineage.tails),
            "cut_off_frames": len(lineage.cut_off),
            "holes": [{"after": str(hole.after), "up_to": str(hole.parent)} for hole in lineage.holes],
            "lost": lost,
            "whole": bool(lineage.main) and not lost and not lineage.holes,
        }


async def rescue(wanted: Sequence[str], target: Path, secret: str | None) -> dict[str, Any]:
    """Rescue into ``target``, which must be empty or absent; raises Refused otherwise."""
    if target.exists() and any(target.iterdir()):
        raise errors.Refused(
            f"{target} is not empty; nothing was written",
            reason="target-not-empty",
            hint="give a new or empty directory with --to",
        )
    target.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".rescue-", dir=target))
    async with rescue_sources.open_all(wanted, work, secret) as sources:
        run = Rescue(target)
        await run.run(sources.opened)
    return {
        "to": str(target),
        "sources": [source.name for source in sources.opened],
        "unusable": [{"where": one.name, "why": one.why} for one in sources.unusable],
        "shards_read": run.shards,
        "bytes": run.bytes,
        "damaged": run.damaged,
        "volumes": run.report(),
    }


def main() -> None:
    """The report as JSON on stdout; an error as JSON on stdout with the exit code of its family."""
    parser = argparse.ArgumentParser(prog="diffkeeper-rescue", description=__doc__)
    parser.add_argument("--from", dest="sources", action="append", required=True, metavar="DIR|URL")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR")
    parser.add_argument("--secret-file", type=Path, metavar="FILE")
    options = parser.parse_args()
    service.configure_log()
    try:
        secret = options.secret_file.read_text().strip() if options.secret_file is not None else None
        answer = asyncio.run(rescue(options.sources, options.to.absolute(), secret))
    except errors.DiffKeeperError as error:
        json.dump({"error": error.to_dict()}, sys.stdout)
        sys.exit(service.exit_code(error))
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
