"""Whether a volume may be run or attached at a site: every reason to refuse, before anything is changed.
Pure.

What needs the disk (does the path exist, what is it really) is looked up by the caller and handed in.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from diffkeeper.domain import errors, volumes
from diffkeeper_control import registry


@dataclass(frozen=True, slots=True)
class Asked:
    volume: str
    site: str
    path: str | None  # as the caller wrote it, absolute
    mode: str


@dataclass(frozen=True, slots=True)
class PathFacts:
    """What stands at a path: ``real`` has every symlink resolved."""

    real: str
    exists: bool
    is_directory: bool


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has the volume now: a running program, as its agent says."""

    site: str
    pid: int
    since_us: int | None


def check_request(asked: Asked, sites: list[str]) -> None:
    volumes.check_name("volume", asked.volume)
    check_site(asked.site, sites)
    if (asked.mode == volumes.Mode.SHARED.value) != volumes.is_member(asked.volume):
        raise errors.Refused(
            f"{asked.volume!r} is kept for the directory of a shared volume at one site",
            reason="reserved-name",
            hint=f"use a name without {volumes.MEMBER_MARK!r}",
        )


def check_site(site: str, sites: list[str]) -> None:
    if site not in sites:
        raise errors.NotFound(
            f"there is no site {site!r} in this deployment",
            reason="unknown-site",
            hint=f"its sites are {', '.join(sites)}",
            site=site,
        )


def check_volume(asked: Asked, known: registry.Volume, holder: Holder | None) -> None:
    """Whether a known volume may be run at the asked site now."""
    if known.operation is not None:
        raise errors.Refused(
            f"volume {known.name} is being moved by operation {known.operation}",
            reason="failover-running",
            hint=f"dkctl status {known.name} shows how far it is",
            operation=known.operation,
        )
    if holder is not None:
        raise errors.Refused(
            f"volume {known.name} has its writer already: process {holder.pid} at site {holder.site}",
            reason="volume-held",
            hint="an exclusive volume has one writer; stop that program first",
            site=holder.site,
            pid=holder.pid,
            since_us=holder.since_us,
        )
    if known.mode != asked.mode:
        raise errors.Refused(
            f"volume {known.name} is {known.mode}, not {asked.mode}",
            reason="mode-differs",
            hint="a volume keeps its mode",
        )
    if known.leader != asked.site:
        raise errors.Refused(
            f"volume {known.name} is led by site {known.leader}",
            reason="led-elsewhere",
            hint=f"dkctl failover {known.name} --to {asked.site}",
            site=known.leader,
        )


def check_path(facts: PathFacts, path: str) -> None:
    if not facts.exists:
        raise errors.Refused(
            f"{path} does not exist", reason="path-missing", hint="make the directory first", path=path
        )
    if not facts.is_directory:
        raise errors.Refused(
            f"{path} is not a directory",
            reason="path-not-directory",
            hint="a volume is a directory and all below it",
            path=path,
        )


def check_apart(name: str, real: str, others: list[registry.Volume], deployment_dir: str) -> None:
    """A new volume's directory must not touch another volume's at any site, nor the files of control."""
    mine = PurePosixPath(real)
    for other in others:
        if other.name == name:
            continue
        for theirs in other.paths.values():
            if theirs == real:
                raise errors.Refused(
                    f"{real} is captured already, as volume {other.name}",
                    reason="path-captured",
                    hint=f"dkctl status {other.name}",
                    volume=other.name,
                    path=theirs,
                )
            if mine.is_relative_to(theirs) or PurePosixPath(theirs).is_relative_to(mine):
                where = "lies inside" if mine.is_relative_to(theirs) else "holds"
                raise errors.Refused(
                    f"{real} {where} {theirs}, the directory of volume {other.name}",
                    reason="path-overlaps",
                    hint="volumes cannot be nested",
                    volume=other.name,
                    path=theirs,
                )
    if _touches_deployment(mine, PurePosixPath(deployment_dir)):
        raise errors.Refused(
            f"{real} and the files of the deployment in {deployment_dir} lie one inside the other",
            reason="path-of-deployment",
            hint="keep the deployment's own files outside of what it captures",
            path=deployment_dir,
        )


def _is_branch(mine: PurePosixPath, deployment_dir: PurePosixPath) -> bool:
    """Whether it is a named branch of a volume, or a directory in one."""
    try:
        parts = mine.relative_to(deployment_dir / "sites").parts
    except ValueError:
        return False
    # site, volumes, .branches, volume, branch
    return len(parts) >= 5 and parts[1:3] == ("volumes", ".branches")


def _touches_deployment(mine: PurePosixPath, deployment_dir: PurePosixPath) -> bool:
    """A directory of the user's own below the deployment's is fine, and so is a branch; what else control keeps there
    is not.
    """
    if _is_branch(mine, deployment_dir):
        return False
    own = [deployment_dir / name for name in ("control", "logs", "sites")]
    return deployment_dir.is_relative_to(mine) or any(mine.is_relative_to(path) for path in own)


def choose_path(known: registry.Volume | None, asked: Asked, real: str | None) -> str | None:
    """The directory of a known volume at the asked site; None for a volume whose directory is the one asked
    for.

    The path under which the program knows its files (``bind``) is as good as the site's own; any other is
    refused.
    """
    if known is None:
        if real is None:
            raise errors.Refused(
                f"volume {asked.volume} is new, so its directory must be given",
                reason="path-missing",
                hint="add --path DIR",
            )
        return None
    kept = known.paths[asked.site]
    if real not in (None, kept, known.bind):
        raise errors.Refused(
            f"volume {known.name} is kept in {kept} at site {asked.site}, not in {real}",
            reason="path-differs",
            hint="leave --path out, or give that one",
            path=kept,
        )
    return kept
