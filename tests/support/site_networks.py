"""Sites on a network of their own: a namespace each, joined by a bridge in one for control, and cables that can be cut.

A link is cut one way by telling its sender a hardware address that nobody has: packets leave and are lost without a word,
also those of connections that stand. Nothing of it touches the machine's own network.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

HUB = "control"
_CLONE_NEWNET = 0x4000_0000
_NOBODY = "02:00:00:00:de:ad"


class SiteNetwork:
    """Names of sites, and ``control`` for the namespace of whoever starts them."""

    def __init__(self, sites: Iterable[str]) -> None:
        self.sites = list(sites)
        self._mark = f"dkt-{secrets.token_hex(3)}"
        places = [HUB, *self.sites]
        self._address = {place: f"10.77.0.{number}" for number, place in enumerate(places, 1)}
        self._hardware = {place: f"02:00:00:00:00:{number:02x}" for number, place in enumerate(places, 1)}
        self.cuts: set[tuple[str, str]] = set()
        self._slow: set[str] = set()

    @property
    def told(self) -> list[str]:
        """What control is told of it."""
        words = [f"{site}={self._address[site]}@{self.namespace(site)}" for site in self.sites]
        return [argument for word in words for argument in ("--site-address", word)]

    def namespace(self, place: str) -> str:
        return f"{self._mark}-{place}"

    def make(self) -> None:
        for place in (HUB, *self.sites):
            _run("ip", "netns", "add", self.namespace(place))
            self._ip(place, "link set lo up")
        self._ip(HUB, f"link add eth0 address {self._hardware[HUB]} type bridge", "link set eth0 up")
        for site in self.sites:
            self._ip(
                HUB,
                f"link add v-{site} type veth peer name eth0 address {self._hardware[site]} "
                f"netns {self.namespace(site)}",
                f"link set v-{site} master eth0 up",
            )
        for place in (HUB, *self.sites):
            self._ip(place, f"addr add {self._address[place]}/24 dev eth0", "link set eth0 up")
            self._ip(place, *(self._neighbour(other) for other in self._others(place)))

    def remove(self) -> None:
        """With a namespace goes everything that was in it; what was not made is not missed."""
        for place in (*self.sites, HUB):
            if Path("/run/netns", self.namespace(place)).exists():
                _run("ip", "netns", "del", self.namespace(place))

    def cut(self, sender: str, receiver: str) -> None:
        """From now on nothing that ``sender`` sends reaches ``receiver``."""
        self._ip(sender, self._neighbour(receiver, _NOBODY))
        self.cuts.add((sender, receiver))

    def heal(self, sender: str, receiver: str) -> None:
        self._ip(sender, self._neighbour(receiver))
        self.cuts.discard((sender, receiver))

    def part(self, some: Iterable[str], others: Iterable[str]) -> None:
        """Nothing passes between the two groups, in either direction."""
        others = list(others)
        for one in some:
            for other in others:
                self.cut(one, other)
                self.cut(other, one)

    def slow_down(self, site: str, kbit_per_s: int) -> None:
        """Everything a site sends shares so much; what waits for longer than a second is lost."""
        bucket = f"tbf rate {kbit_per_s}kbit burst 16kb latency 1s"
        _run("tc", "-n", self.namespace(site), *f"qdisc replace dev eth0 root {bucket}".split())
        self._slow.add(site)

    def speed_up(self, site: str) -> None:
        _run("tc", "-n", self.namespace(site), *["qdisc", "del", "dev", "eth0", "root"])
        self._slow.discard(site)

    def heal_all(self) -> None:
        for sender, receiver in list(self.cuts):
            self.heal(sender, receiver)
        for site in list(self._slow):
            self.speed_up(site)

    @contextlib.contextmanager
    def inside(self, place: str = HUB) -> Iterator[None]:
        """This thread, and what it starts, in the namespace of ``place``."""
        with open("/proc/thread-self/ns/net") as own:
            with Path("/run/netns", self.namespace(place)).open() as there:
                _enter(there.fileno())
            try:
                yield
            finally:
                _enter(own.fileno())

    def _others(self, place: str) -> list[str]:
        return [other for other in (HUB, *self.sites) if other != place]

    def _neighbour(self, place: str, hardware: str | None = None) -> str:
        at = f"{self._address[place]} lladdr {hardware or self._hardware[place]}"
        return f"neigh replace {at} dev eth0 nud permanent"

    def _ip(self, place: str, *lines: str) -> None:
        batch = "".join(f"{line}\n" for line in lines)
        _run("ip", "-n", self.namespace(place), "-batch", "-", given=batch)


@contextlib.contextmanager
def made(sites: Iterable[str]) -> Iterator[SiteNetwork]:
    """A network that is there within the block; skips the test where none can be made."""
    network = SiteNetwork(sites)
    try:
        try:
            network.make()
        except (OSError, subprocess.CalledProcessError) as error:
            told = getattr(error, "stderr", None) or error
            pytest.skip(f"network namespaces cannot be made here: {told}")
        with network.inside():
            yield network
    finally:
        network.remove()


def _run(*argv: str, given: str | None = None) -> None:
    subprocess.run(argv, input=given, capture_output=True, text=True, check=True)


def _enter(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
