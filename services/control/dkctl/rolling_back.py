"""A volume brought back to a moment, as one more change of it.

Nothing is taken out of the log: what lies between stays, the moment before gets a tag, and the writes that lead
back are captured like a program's. So a rollback is undone by another one, and one that broke off in the middle
is done again: it begins from where the log says the directory stands.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from diffkeeper.directory_writer import DirectoryWriter
from diffkeeper.domain import errors, positions
from dkctl import capturing, client, output, when

# How long the replica may need to have the last write that the directory shows.
CATCH_UP_S = 60.0
STOP_S = 30.0
_POLL_S = 0.1


class Rollback:
    def __init__(self, control: client.Control, volume: str, timeout_s: float) -> None:
        self._control, self._volume, self._timeout_s = control, volume, timeout_s

    def run(self, to: str, *, start: bool) -> dict[str, Any]:
        """Stop, bring back, verify, start; raises and says how far it came where something is in the way."""
        target = self._moment(to)
        before = self._control.volume(self._volume)
        ran = bool((before.get("program") or {}).get("running"))
        path = self._directory(before)
        if ran:
            output.say(f"stopping the program of {self._volume}")
            self._control.stop_program(self._volume)
            self._wait_stopped()
        self._capture(before, path)
        here = self._known_end(before)
        if here == target["position"]:
            return {"from": here, **target, "path": str(path), "bytes": 0, "changes": 0, "tag": None}
        tag = f"before-rollback-{here}"
        self._control.history(self._volume, f"tags/{tag}", method="PUT", body={"when": here})
        output.say(
            f"bringing {path} from {here} back to {when.resolved(target['position'], target['at_us'])}; "
            f"tag:{tag} leads forward again"
        )
        written, changes = self._bring(path, here, target["position"])
        after = self._known_end(before)
        self._verify(target["position"], after)
        pid = self._start(ran=ran, start=start)
        return {
            "from": here,
            "to": target["position"],
            "at_us": target["at_us"],
            "position": after,
            "path": str(path),
            "bytes": written,
            "changes": changes,
            "tag": tag,
            "pid": pid,
        }

    def _moment(self, to: str) -> dict[str, Any]:
        return self._control.history(self._volume, "moment", [("when", to)])

    def _directory(self, volume: dict[str, Any]) -> Path:
        path = Path(str(volume.get("path") or ""))
        if not path.is_absolute() or not path.is_dir():
            raise errors.Refused(
                f"the directory of {self._volume} is at {volume.get('leader')} and not on this machine",
                reason="not-here",
                hint=f"run this at {volume.get('leader')}",
                path=str(path),
            )
        return path

    def _wait_stopped(self) -> None:
        until = time.monotonic() + STOP_S
        while True:
            volume = self._control.volume(self._volume)
            running = (volume.get("program") or {}).get("running")
            # Whoever ran the program ends its capture, with its last writes; ours begins only after that.
            if not running and volume["state"] == "released":
                return
            if time.monotonic() > until:
                raise errors.TimedOut(
                    f"the program of {self._volume} and its capture did not end within {STOP_S:g} s (the program "
                    f"{'runs' if running else 'has ended'}, the volume is {volume['state']}); nothing was changed",
                    reason="program-running",
                    hint="stop it yourself, and try again",
                )
            time.sleep(_POLL_S)

    def _capture(self, before: dict[str, Any], path: Path) -> None:
        """What is written now must be captured."""
        state = self._control.volume(self._volume)["state"]
        if state not in ("capturing", "running"):
            body = {"site": before["leader"], "path": str(path)}
            body |= {key: before[key] for key in ("durability", "policy", "mode") if before.get(key)}
            ready = self._control.attach(self._volume, body)
            capturing.wait_until_ready(self._control, ready["volume"])

    def _known_end(self, before: dict[str, Any]) -> str:
        """Up to where everything is in the log, and a history that has it all."""
        level = "remote" if before["durability"] == "remote" else "site"
        end: str = self._control.sync(self._volume, level, self._timeout_s)["position"]
        until = time.monotonic() + CATCH_UP_S
        while True:
            latest = self._moment("latest")["position"]
            if positions.parse(latest) >= positions.parse(end):
                return end
            if time.monotonic() > until:
                raise errors.TimedOut(
                    f"the replica stands at {latest} and the directory at {end}; nothing was changed",
                    reason="behind",
                    hint="dkctl status shows what holds the replica",
                )
            time.sleep(_POLL_S)

    def _bring(self, path: Path, here: str, target: str) -> tuple[int, int]:
        changes = 0
        query = [("from", here), ("to", target)]
        with (
            self._control.history_stream(self._volume, "patch", query) as response,
            DirectoryWriter(path) as writer,
        ):
            _, stream = when.open_stream(response)
            for change in stream:
                writer.do(change)
                changes += 1
            writer.sync()
            return writer.written_bytes, changes

    def _verify(self, target: str, after: str) -> None:
        """By the log itself: what was captured must have led to the moment."""
        query = [("from", target), ("to", after), ("stat", "1")]
        found = self._control.history(self._volume, "diff", query)
        if found["changes"]:
            raise errors.Corrupt(
                f"{self._volume} at {after} is not what it was at {target}: {len(found['changes'])} paths differ "
                f"({found['changes'][0]['path']}); nothing was lost",
                reason="rollback-differs",
                hint=f"dkctl diff {self._volume} {target} {after}; was something else writing to it?",
            )

    def _start(self, *, ran: bool, start: bool) -> int | None:
        if not start or not ran:
            return None
        pid: int = self._control.start_program(self._volume)["pid"]
        return pid
