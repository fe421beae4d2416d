"""The seven conditions of a SAC and its phase, from what was observed. Pure.

Each says True, False or Unknown, a reason in CamelCase, and a sentence; where it is not True, the sentence ends with
the remedy. What was not heard is Unknown. The time of the last change is put in by ``merged``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diffkeeper.domain import errors
from diffkeeper_operator import specs, views
from diffkeeper_operator.observations import Observed, primary, runs_here
from diffkeeper_operator.refusals import Refusal

TYPES = ("Ready", "Captured", "InSync", "PrimaryElected", "ParityHealthy", "ChainVerified", "Recoverable")


@dataclass(frozen=True, slots=True)
class Condition:
    type: str
    # "True", "False" or "Unknown", as Kubernetes writes them.
    status: str
    reason: str
    message: str


def at_first() -> list[Condition]:
    """Before anything was looked at."""
    return [Condition(kind, "Unknown", "NotObservedYet", "Nothing has been looked at yet.") for kind in TYPES]


def conditions(sac: specs.Sac, observed: Observed, refusal: Refusal | None) -> list[Condition]:
    """All seven, in the order of ``TYPES``."""
    if observed.control is None and observed.workload is None and refusal is None:
        return at_first()
    told = _from_control(sac, observed)
    return [_ready(sac, observed, refusal, told), *told]


def _from_control(sac: specs.Sac, observed: Observed) -> list[Condition]:
    control = observed.control
    if control is None:
        return at_first()[1:]
    if control.failure is not None:
        why = _failure(control.failure)
        who = "AgentUnreachable" if control.direct else "ControlUnreachable"
        return [Condition(kind, "Unknown", who, why) for kind in TYPES[1:]]
    site = control.site(observed.here)
    if site is not None and site.without_broker:
        why = (
            f"No NATS server of {observed.here} runs, so nothing can be shipped; what is written waits in the spool. "
            "Bring the site's brokers back."
        )
        silent = [Condition(kind, "False", "NoBroker", why) for kind in ("Captured", "InSync")]
        return [*silent, *_rest(sac, observed)]
    return [_captured(observed), _in_sync(sac, observed), *_rest(sac, observed)]


def _rest(sac: specs.Sac, observed: Observed) -> list[Condition]:
    return [_elected(sac, observed), _parity(sac, observed), _verified(observed), _recoverable(observed)]


def _captured(observed: Observed) -> Condition:
    def captured(status: str, reason: str, message: str) -> Condition:
        return Condition("Captured", status, reason, message)

    volume = observed.volume
    if observed.not_attached is not None:
        return captured("False", "AttachRefused", _failure(observed.not_attached))
    if volume is None:
        return captured(
            "False",
            "NotAttached",
            "DiffKeeper has not seen this volume yet: its agent attaches it once the program's pod runs.",
        )
    if volume.state == "scanning":
        return captured(
            "False",
            "BaseScan",
            f"What was there before is being read ({_progress(volume)}). No action is needed.",
        )
    if not volume.captured:
        why = volume.detail or "without a detail"
        return captured(
            "False", "NotCapturing", f"The volume is {volume.state} ({why}). See: kubectl diffkeeper log."
        )
    if volume.probe == "watch":
        return captured(
            "False",
            "FallbackPolling",
            f"The agent polls instead of seeing each write ({_words(volume.why_not_bpf) or 'BPF is not to be had'}), so points "
            "between are inexact. Give the node a kernel with BTF and the agent BPF, PERFMON and SYS_PTRACE.",
        )
    if volume.gaps is not None and volume.gaps.open:
        return captured(
            "False",
            "GapOpen",
            "Capture lost exactness and reads the range again; points meanwhile are inexact. No action is needed.",
        )
    return captured("True", "Capturing", f"Every write is captured ({volume.fidelity or 'exact'}).")


def _progress(volume: views.Volume) -> str:
    base = volume.base
    return f"{100 * base.bytes // base.bytes_total} %" if base and base.bytes_total else "just begun"


def _in_sync(sac: specs.Sac, observed: Observed) -> Condition:
    volume = observed.volume
    if volume is None:
        return Condition("InSync", "Unknown", "NotAttached", "There is nothing to be in sync with yet.")
    wanted = [one.name for one in sac.clusters(observed.here) if one.replicas and one.name != volume.leader]
    if not wanted:
        return Condition(
            "InSync",
            "False",
            "NoOtherCluster",
            "There is one copy only: the loss of this cluster loses it. Name others in spec.clusters.",
        )
    if volume.level is not None and volume.level.met is False:
        return Condition(
            "InSync",
            "False",
            "LevelNotMet",
            f"Writes wait: the level {volume.level.asked} is not met. Bring the other clusters back.",
        )
    late = [words for name in wanted if (words := behind(sac, volume.at(name), name))]
    if late:
        return Condition(
            "InSync", "False", "ReplicaBehind", "; ".join(late) + ". See: kubectl diffkeeper status."
        )
    return Condition("InSync", "True", "Following", f"{', '.join(wanted)} hold all that is shipped.")


def behind(sac: specs.Sac, replica: views.Replica | None, name: str) -> str:
    if replica is None or replica.role in (None, "none"):
        return f"{name} holds no copy yet"
    if replica.state not in ("following", "leading"):
        return f"{name} is {replica.state}" + (f" ({_words(replica.error)})" if replica.error else "")
    if not replica.base_complete:
        return f"{name} does not have all of the base yet"
    limit = sac.spec.failover.recovery_point_seconds
    if replica.lag is not None and replica.lag.ms is not None and replica.lag.ms > limit * 1000:
        return f"{name} is further behind than recoveryPointSeconds ({limit})"
    return ""


def _elected(sac: specs.Sac, observed: Observed) -> Condition:
    def elected(status: str, reason: str, message: str) -> Condition:
        return Condition("PrimaryElected", status, reason, message)

    volume, leaders = observed.volume, observed.leaders
    if volume is None:
        return elected("Unknown", "NotAttached", f"Nobody leads yet; {primary(sac, observed)} will.")
    if len(leaders) > 1 and sac.spec.mode == "exclusive":
        return elected(
            "False",
            "TwoPrimaries",
            f"{' and '.join(leaders)} both say that they lead. Nothing is promoted or restarted until one is fenced. "
            "See: kubectl diffkeeper status; then move it with a Switchover to the one that shall lead.",
        )
    if volume.state == "failing-over":
        return elected("Unknown", "Moving", f"Operation {volume.operation} moves it. No action is needed.")
    if not volume.leader or volume.leader_state in ("dead", "unreachable", "stopped"):
        return elected(
            "False",
            "LeaderLost",
            f"The leader {volume.leader or '(none)'} is {volume.leader_state or 'unknown'}. Bring it back, or make a "
            "Switchover to another cluster.",
        )
    return elected("True", "Elected", f"{volume.leader} leads in epoch {volume.epoch}.")


def _parity(sac: specs.Sac, observed: Observed) -> Condition:
    def parity(status: str, reason: str, message: str) -> Condition:
        return Condition("ParityHealthy", status, reason, message)

    control = observed.control
    assert control is not None, "asked only when control was looked at"
    if control.parity_failure is not None:
        return parity("Unknown", "RepairUnreachable", _failure(control.parity_failure))
    if control.parity is None:
        return parity(
            "Unknown", "NoStorageNodes", "This installation has no storage nodes, so nothing is parity-coded."
        )
    mine = control.parity.of(sac.volume)
    if mine is None:
        return parity(
            "Unknown", "NothingSealed", "Nothing of this volume has been sealed yet. No action is needed."
        )
    if sac.spec.parity is not None and mine.geometry not in (None, sac.spec.parity):
        return parity(
            "False",
            "OtherGeometry",
            f"It is coded {mine.geometry}, not {sac.spec.parity}: the geometry is that of the storage nodes. Start them with it.",
        )
    if mine.lost_segments or mine.rebuilding or mine.waiting or (mine.spare is not None and mine.spare < 0):
        return parity(
            "False",
            "ShardsMissing",
            f"{control.parity.verdict or 'Shards are missing'}. They are rebuilt by themselves while enough nodes are up; "
            "bring lost storage nodes back or replace them (dkctl nodes).",
        )
    return parity("True", "Whole", f"Every shard is where it belongs; {mine.spare} more nodes may be lost.")


def _verified(observed: Observed) -> Condition:
    verified = observed.verified
    if observed.control is not None and observed.control.direct:
        return Condition(
            "ChainVerified",
            "Unknown",
            "NoControl",
            "Only control compares the log with its copies, and the operator has none to ask.",
        )
    if verified is None:
        return Condition(
            "ChainVerified",
            "Unknown",
            "NotVerifiedYet",
            "The chain has not been verified yet; that is done by itself.",
        )
    if not verified.ok:
        return Condition(
            "ChainVerified",
            "False",
            "Differences",
            f"{verified.verdict} ({verified.at}). See: dkctl verify; nothing was overwritten.",
        )
    return Condition("ChainVerified", "True", "Verified", f"{verified.verdict} ({verified.at}).")


def _recoverable(observed: Observed) -> Condition:
    control = observed.control
    assert control is not None, "asked only when control was looked at"
    history = control.history
    if control.direct:
        return Condition(
            "Recoverable",
            "Unknown",
            "NoControl",
            "The log is kept by the site's brokers; what can be restored of it is known to control only.",
        )
    if history is None or history.last is None:
        return Condition(
            "Recoverable",
            "Unknown",
            "NoHistory",
            "No other cluster keeps the history yet. With several clusters it comes by itself.",
        )
    if history.damaged:
        return Condition(
            "Recoverable",
            "False",
            "HistoryDamaged",
            f"{len(history.damaged)} parts of the history are damaged. See: dkctl history.",
        )
    return Condition(
        "Recoverable",
        "True",
        "PointsKept",
        "Recovery points are kept; status.recoveryWindow says from when to when.",
    )


def _ready(
    sac: specs.Sac, observed: Observed, refusal: Refusal | None, told: Sequence[Condition]
) -> Condition:
    def ready(status: str, reason: str, message: str) -> Condition:
        return Condition("Ready", status, reason, message)

    if refusal is not None:
        return ready("False", refusal.reason, refusal.message)
    by_type = {condition.type: condition for condition in told}
    elected = by_type["PrimaryElected"]
    if elected.status == "False":
        return ready("False", elected.reason, elected.message)
    if observed.draining:
        return ready("False", "Moving", "The program has left its pod for a Switchover. No action is needed.")
    if not runs_here(sac, observed):
        if elected.status == "Unknown":
            return ready("Unknown", elected.reason, elected.message)
        return ready(
            "True", "RunsElsewhere", f"The program runs at {primary(sac, observed)}; a copy is kept here."
        )
    workload = observed.workload
    if workload is None:
        return ready("Unknown", "NotObservedYet", "The program's pods have not been looked at yet.")
    if not workload.exists:
        return ready("False", "NoWorkload", "The program's workload is not there yet. No action is needed.")
    if not workload.ready:
        why = workload.trouble or "its pod is not ready"
        return ready("False", "PodNotReady", f"The program does not run: {why}. See: kubectl describe pod.")
    return ready("True", "Running", "The program runs.")


def merged(
    before: Sequence[dict[str, Any]], now: Sequence[Condition], at: str, generation: int
) -> list[dict[str, Any]]:
    """As the status has them: the time stays that of the last change of the status."""
    old = {condition["type"]: condition for condition in before}
    result = []
    for condition in now:
        previous = old.get(condition.type, {})
        changed = previous.get("status") != condition.status
        result.append(
            {
                "type": condition.type,
                "status": condition.status,
                "reason": condition.reason,
                "message": condition.message,
                "lastTransitionTime": at if changed else previous["lastTransitionTime"],
                "observedGeneration": generation,
            }
        )
    return result


def _failure(error: errors.DiffKeeperError) -> str:
    return f"{error.message}. {error.hint or 'It is asked again by itself.'}"


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("message") or value.get("reason") or "")
    return "" if value is None else str(value)
