"""Sites with addresses and network namespaces of their own: what ``--site-address`` says, checked. Pure.

A deployment on one machine needs none of it: all sites listen on its loopback address. With it, links between sites are real
ones, which can be cut and slowed down; control reaches every site at its address from the namespace it runs in itself.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from diffkeeper import network_namespaces
from diffkeeper.domain import errors
from diffkeeper_control import storage_notes
from diffkeeper_control.deployment import HOST, Deployment

_HINT = "--site-address east=10.77.0.2@dk-east, once for each site"


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    netns: str | None


def parse(words: Iterable[str]) -> dict[str, Address]:
    """``SITE=ADDRESS[@NAMESPACE]`` each; raises Refused."""
    found: dict[str, Address] = {}
    for word in words:
        site, equals, rest = word.partition("=")
        host, at, netns = rest.partition("@")
        try:
            usable = _is_usable(ipaddress.IPv4Address(host))
        except ValueError:
            usable = False
        if not (site and equals and usable) or (at and not network_namespaces.is_name(netns)):
            raise errors.Refused(
                f"{word!r} is no address of a site: SITE=ADDRESS[@NAMESPACE], the address that of one machine in IPv4",
                reason="bad-site-address",
                hint=_HINT,
            )
        if site in found:
            raise errors.Refused(f"site {site} is given two addresses", reason="bad-site-address", hint=_HINT)
        found[site] = Address(host, netns or None)
    return found


def _is_usable(address: ipaddress.IPv4Address) -> bool:
    return not (address.is_unspecified or address.is_multicast or address.is_reserved)


def check_sites(
    wanted: Mapping[str, Address], sites: Iterable[str], storage: storage_notes.Storage | None
) -> None:
    """Every site or none has one, and nothing that listens on loopback is needed by them; raises Refused."""
    if not wanted:
        return
    if set(wanted) != set(sites):
        raise errors.Refused(
            f"the sites are {', '.join(sites)}; --site-address names {', '.join(wanted)}",
            reason="bad-site-address",
            hint="give an address to each of them, or to none",
        )
    if storage is not None:
        raise errors.Refused(
            "storage nodes listen on control's loopback address, where sites with addresses of their own do not reach them",
            reason="bad-site-address",
            hint="leave --storage-nodes or --site-address out",
        )


def give(note: Deployment, wanted: Mapping[str, Address]) -> None:
    """To a new deployment, before anything of it runs."""
    for site, address in wanted.items():
        note.sites[site].address, note.sites[site].netns = address.host, address.netns


def of(note: Deployment) -> dict[str, Address]:
    """What each site has; nothing where all are on control's loopback address."""
    found = {site: Address(at.address, at.netns) for site, at in note.sites.items()}
    return {} if all(at == Address(HOST, None) for at in found.values()) else found


def check_same(note: Deployment, wanted: Mapping[str, Address]) -> None:
    has = of(note) or {site: Address(HOST, None) for site in note.sites}
    if wanted and dict(wanted) != has:
        told = ", ".join(
            f"{site}={at.host}" + (f"@{at.netns}" if at.netns else "") for site, at in has.items()
        )
        raise errors.Refused(
            f"this deployment has the addresses {told}; they stay as they are",
            reason="sites-differ",
            hint="leave --site-address out, or give another --dir",
        )
