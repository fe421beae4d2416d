"""A shared volume for people: each site's part in it, how far it has merged the others', and what is held up."""

from __future__ import annotations

from typing import Any

from dkctl import exits, output
from dkctl.output import Column

COLUMNS = [
    Column("SITE", "site"),
    Column("STATE", "state"),
    Column("FILES", "files"),
    Column("SAID", "records"),
    Column("TAKEN IN", "taken"),
    Column("WAITING", "waiting"),
    Column("UNPUBLISHED", "unpublished"),
    Column("CAPTURED AS", "member"),
    Column("PATH", "path"),
]


def of_shared(found: dict[str, Any]) -> output.Answer:
    sites: list[dict[str, Any]] = found["sites"]
    troubles = [
        f"{one['site']}: {trouble['message']}" for one in sites for trouble in one.get("troubles", [])
    ]
    left_out = [
        f"{one['site']} leaves out {left['path']}: {left['why']}"
        for one in sites
        for left in one.get("left_out", [])
    ]
    findings = troubles + rules_findings(sites) + left_out
    well = f"All is well: {found['volume']} is shared by {', '.join(one['site'] for one in sites)}."
    return output.Answer(
        well if not findings else "Needs attention: " + "; ".join(findings[:5]) + ".",
        found,
        tables=[output.Table(COLUMNS, [_row(one) for one in sites])],
        items=sites,
        names=[f"volume/{one['member']}" for one in sites],
        exit=exits.Exit.ATTENTION if findings else exits.Exit.DONE,
        hints=[f"dkctl conflicts {found['volume']}"],
    )


def rules_findings(sites: list[dict[str, Any]]) -> list[str]:
    """Rules that are not in force, said once for all sites that say the same; files that are not merged as theirs says."""
    bad: dict[str, list[str]] = {}
    for one in sites:
        trouble = (one.get("rules") or {}).get("trouble")
        if trouble is not None:
            bad.setdefault(f"{trouble['message']} ({trouble['hint']})", []).append(one["site"])
    ignored: dict[str, list[str]] = {}
    for one in sites:
        for file in one.get("not_as_ruled", []):
            ignored.setdefault(f"{file['path']} is not merged as its rule says: {file['why']}", []).append(
                one["site"]
            )
    return [f"{', '.join(told)}: {what}" for what, told in [*bad.items(), *ignored.items()]]


def _row(one: dict[str, Any]) -> dict[str, Any]:
    taken = ", ".join(f"{site} {number}" for site, number in one.get("taken", {}).items())
    plain: dict[str, Any] = {
        key: str(one[key]) for key in ("files", "records", "waiting", "unpublished") if key in one
    }
    return {
        "site": one["site"],
        "state": one["state"],
        "member": one["member"],
        "path": one["path"],
        "taken": taken or None,
        **plain,
    }
