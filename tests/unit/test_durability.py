"""How old the oldest change is that the loss of the site would take, as confirmations come and do not come."""

from __future__ import annotations

from tests.support.made_logs import FrameChain

from diffkeeper.domain import clocks, frames, positions
from diffkeeper.log.event_log import Confirmation
from diffkeeper_capture.durability import Durability


def word_of(site: str, position: positions.Position, frame_hash: bytes) -> Confirmation:
    return Confirmation(site, position, frame_hash, position, at_us=0)


def reign() -> tuple[Durability, list[frames.Frame]]:
    """Three frames of a new reign, all of them in the spool and in the site's stream."""
    made = FrameChain(volume="orders", origin="east")
    run = [made.frame() for _ in range(3)]
    durability = Durability("orders", "east", run[0].position.epoch, frames.ORIGIN_TIP)
    for frame in run:
        durability.sealed(frame)
        durability.note_spooled(frame.position)
        durability.note_stored(frame.position)
    return durability, run


def first_us(frame: frames.Frame) -> int:
    return clocks.to_micros(frame.header.first)


def test_lag_begins_at_the_first_frame_that_no_other_site_confirmed() -> None:
    durability, (one, two, three) = reign()
    durability.note_confirmed(word_of("west", one.position, one.hash))
    assert durability.oldest_unsafe_us() == first_us(two)
    durability.note_confirmed(word_of("west", three.position, three.hash))
    assert durability.oldest_unsafe_us() is None


def test_a_first_word_that_is_behind_the_stream_makes_the_lag_as_old_as_it_is() -> None:
    durability, (one, two, _) = reign()
    assert durability.oldest_unsafe_us() is None, "no other site is known: the stream counts"
    durability.note_confirmed(word_of("west", one.position, one.hash))
    assert durability.oldest_unsafe_us() == first_us(two)
