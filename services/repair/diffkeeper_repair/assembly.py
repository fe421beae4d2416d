"""From shards found anywhere to the segment they are of. Pure but for its use of the processor.

Nothing a shard says is believed for being said: headers that disagree are grouped, each group is decoded, and what
comes out must have the hash whose beginning is the segment's name. What the segment is (volume, origin, places) is
then read from the segment itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from blake3 import blake3

from diffkeeper.domain import errors, manifests, segments, shard_headers, stripes
from diffkeeper_repair import coder, salvage


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard whose header holds. ``source`` is where it was found: a node, a file."""

    header: shard_headers.Header
    payload: bytes | memoryview
    source: str
    was_repaired: bool = False


@dataclass(frozen=True, slots=True)
class Assembled:
    segment: segments.Segment
    data: bytes | memoryview
    segment_hash: bytes
    # Shards that agree with themselves and not with the segment.
    liars: Sequence[Shard]


def open_shard(data: bytes, source: str, stripe: shard_headers.Stripe | None = None) -> Shard:
    """A shard from bytes nobody vouches for, which must be one of ``stripe`` where that is given; raises Corrupt."""
    shard = open_header(data, source, stripe)
    shard_headers.check_payload(shard.header, shard.payload)
    return shard


def open_header(data: bytes, source: str, stripe: shard_headers.Stripe | None = None) -> Shard:
    """The same without asking the payload's digest, only its length: the segment's hash says as much about all of
    them, in less time, as long as nothing is wrong.
    """
    header, was_repaired = shard_headers.decode(data)
    if stripe is not None and header.key.stripe != stripe:
        raise errors.Corrupt(
            f"a shard of {header.span.volume} {header.key.stripe.segment} stands in the place of one of "
            f"{stripe.volume} {stripe.segment}; it was not used",
            reason="foreign-shard",
            hint="the node returned with another disk; what it misses is made anew",
        )
    payload = memoryview(data)[shard_headers.HEADER_BYTES :]
    shard_headers.check_length(header, payload)
    return Shard(header, payload, source, was_repaired)


def sift(shards: Sequence[Shard]) -> tuple[list[Shard], list[Shard]]:
    """Those whose payloads have their digest, and the others."""
    good: list[Shard] = []
    bad: list[Shard] = []
    for shard in shards:
        try:
            shard_headers.check_payload(shard.header, shard.payload)
        except errors.Corrupt:
            bad.append(shard)
        else:
            good.append(shard)
    return good, bad


def assemble(stripe: shard_headers.Stripe, shards: Sequence[Shard]) -> Assembled:
    """The segment of a stripe; raises Corrupt when these shards do not give it."""
    groups: dict[tuple[bytes, int], list[Shard]] = {}
    for shard in shards:
        groups.setdefault((shard.header.segment_hash, shard.header.segment_bytes), []).append(shard)
    trouble: errors.Corrupt | None = None
    for (digest, size), group in sorted(groups.items(), key=lambda item: -len(item[1])):
        try:
            data, wrong = coder.decode_believed(
                stripe.geometry, [(one.header.index, one.payload) for one in group], size, digest
            )
            segment = segments.decode_believed(data)
            if segment.volume != stripe.volume:
                raise _foreign(stripe, segment)
        except errors.Corrupt as error:
            trouble = trouble or error
            continue
        outside = [shard for shard in shards if shard not in group]
        return Assembled(segment, data, digest, [*(group[place] for place in wrong), *outside])
    raise trouble or _nothing_left(stripe)


def mend(
    stripe: shard_headers.Stripe,
    good: Sequence[Shard],
    damaged: Sequence[Shard],
    donors: Sequence[bytes] = (),
) -> Assembled:
    """The segment from fewer good shards than it needs, what damaged ones still say and ``donors``, which are segments
    that may be like it; raises Corrupt.

    All shards that do not agree with the segment are in ``liars``.
    """
    groups: dict[tuple[bytes, int], tuple[dict[int, Shard], dict[int, Shard]]] = {}
    for place, shards in enumerate((good, damaged)):
        for shard in shards:
            group = groups.setdefault((shard.header.segment_hash, shard.header.segment_bytes), ({}, {}))
            group[place].setdefault(shard.header.index, shard)
    trouble: errors.Corrupt | None = None
    for (digest, size), (whole, hurt) in sorted(groups.items(), key=lambda item: -len(item[1][0])):
        others = {index: shard.payload for index, shard in hurt.items() if index not in whole}
        if len(whole) >= stripe.geometry.data:
            continue  # they were tried as they are
        try:
            data = salvage.mend(
                stripe.geometry,
                {index: shard.payload for index, shard in whole.items()},
                others,
                size,
                digest,
                donors,
            )
            segment = segments.decode_believed(data)
            if segment.volume != stripe.volume:
                raise _foreign(stripe, segment)
        except errors.Corrupt as error:
            trouble = trouble or error
            continue
        true = coder.of(stripe.geometry).encode(data)
        liars = [
            shard
            for shard in (*good, *damaged)
            if shard.header.segment_hash != digest or true[shard.header.index] != shard.payload
        ]
        return Assembled(segment, data, digest, liars)
    raise trouble or _nothing_left(stripe)


def from_wires(
    stripe: shard_headers.Stripe, span: segments.Span, wires: Sequence[bytes], shards: Sequence[Shard]
) -> Assembled:
    """The segment from its frames as a stream holds them; raises Corrupt unless they are those that were sealed.

    ``shards`` are what is left of it; those that do not agree with the segment are in ``liars``.
    """
    segment = segments.Segment(span.volume, span.origin, span.first_sequence, tuple(wires))
    data = segments.encode(segment)
    digest = blake3(data).digest()
    if segments.name_of(digest) != stripe.segment or segment.volume != stripe.volume:
        raise errors.Corrupt(
            f"the streams hold other frames than {stripe.segment} of {stripe.volume} was sealed of",
            reason="other-frames",
            hint="a node returned with the disk of another deployment, or a stream was made anew",
        )
    true = coder.of(stripe.geometry).encode(data)
    liars = [
        shard
        for shard in shards
        if shard.header.segment_hash != digest or true[shard.header.index] != shard.payload
    ]
    return Assembled(segment, data, digest, liars)


def _foreign(stripe: shard_headers.Stripe, segment: segments.Segment) -> errors.Corrupt:
    return errors.Corrupt(
        f"the segment {stripe.segment} is of volume {segment.volume}, not {stripe.volume}",
        reason="foreign-shard",
    )


def _nothing_left(stripe: shard_headers.Stripe) -> errors.Corrupt:
    return errors.Corrupt(
        f"no shard is left of segment {stripe.segment} of {stripe.volume}; it cannot be read",
        reason="too-few-shards",
        hint="bring back a node that held one of them, or add its directory to dkctl rescue --from",
        have=0,
        need=stripe.geometry.data,
    )


@dataclass(frozen=True, slots=True)
class Coded:
    """A segment with payloads of its shards, ready to be written."""

    data: bytes | memoryview
    segment_hash: bytes
    span: segments.Span
    geometry: stripes.Geometry
    # By index; only those that were asked for.
    payloads: Mapping[int, memoryview]
    digests: tuple[bytes, ...]

    def manifest(self, epoch: int, placed: dict[int, str], sealed_us: int) -> manifests.Manifest:
        return manifests.Manifest(
            self.geometry,
            epoch,
            self.segment_hash,
            len(self.data),
            self.span,
            self.digests,
            placed,
            sealed_us,
        )

    def shard(self, index: int, epoch: int) -> tuple[shard_headers.Key, bytes]:
        """The whole shard of an index, and what it is called."""
        header = self.manifest(epoch, {}, 0).header(index)
        return header.key, b"".join((shard_headers.encode(header), self.payloads[index]))


def code(segment: segments.Segment, geometry: stripes.Geometry) -> Coded:
    return code_bytes(segment, segments.encode(segment), geometry)


def code_bytes(segment: segments.Segment, data: bytes | memoryview, geometry: stripes.Geometry) -> Coded:
    """Blocks for as long as coding and hashing take."""
    payloads = coder.of(geometry).encode(data)
    digests = tuple(blake3(payload).digest() for payload in payloads)
    return Coded(data, blake3(data).digest(), segment.span(), geometry, dict(enumerate(payloads)), digests)


def code_some(assembled: Assembled, manifest: manifests.Manifest, indexes: Collection[int]) -> Coded | None:
    """These shards alone, each with the digest that the manifest says; None when it says anything else, and is wrong.

    What the manifest says of the other shards is not asked: the scrub compares it with each of them.
    """
    said = (manifest.segment_hash, manifest.segment_bytes, manifest.span)
    if said != (assembled.segment_hash, len(assembled.data), assembled.segment.span()):
        return None
    payloads = coder.of(manifest.geometry).encode_some(assembled.data, indexes)
    if any(blake3(payloads[index]).digest() != manifest.digests[index] for index in indexes):
        return None
    return Coded(
        assembled.data, manifest.segment_hash, manifest.span, manifest.geometry, payloads, manifest.digests
    )
