"""A moment of a volume on its way into a directory, which can break off and go on.

Beside the directory stands ``.NAME.dkctl-restore`` while it is not finished: first what is restored, then a
line for each file that is complete, with its digest. The directory is whole, synced and verified to the byte
once that note is gone.
"""

from __future__ import annotations

import base64
import itertools
import json
from pathlib import Path
from typing import Any, TextIO

from diffkeeper.directory_writer import DirectoryWriter
from diffkeeper.domain import errors
from dkctl import client, output, when


class Restore:
    def __init__(self, control: client.Control, volume: str, into: Path) -> None:
        self._control = control
        self._volume = volume
        self._into = into
        self._note = into.parent / f".{into.name}.dkctl-restore"
        self.left_out: dict[str, int] = {}
        self.moved_aside: Path | None = None

    def run(self, at: str, paths: list[bytes], *, force: bool) -> dict[str, Any]:
        """Restore, or go on with a restore of the same; the facts of the moment."""
        done: dict[bytes, bytes] = {}
        begun = self._begun()
        asked = {
            "volume": self._volume,
            "at": at,
            "paths": [base64.b64encode(path).decode() for path in paths],
        }
        if begun is not None and begun[0]["asked"] == asked and not when.is_free(self._into):
            at, done = begun[0]["position"], begun[1]
            output.say(f"going on with the restore of {at}: {len(done)} files are there already")
        else:
            self.make_room(force=force)
            begun = None
        self._into.mkdir(parents=True, exist_ok=True)
        query: client.Query = [("when", at), *(("path", path) for path in paths), ("skip", str(len(done)))]
        with (
            self._control.history_stream(self._volume, "restore", query) as response,
            DirectoryWriter(self._into, again=begun is not None) as writer,
        ):
            head, stream = when.open_stream(response)
            output.say(f"restoring {self._volume} at {when.resolved(head['position'], head['at_us'])}")
            with self._note.open("a" if begun is not None else "w") as note:
                if begun is None:
                    _line(note, {"asked": asked, "position": head["position"]})
                bar = when.Bar("restoring", head["bytes"])
                for change in when.counted(stream, bar):
                    writer.do(change)
                    if change[0] == "digest":
                        _line(note, {"path": base64.b64encode(change[1]).decode(), "digest": change[2].hex()})
            self._verify(writer, done)
            writer.sync()
            self.left_out = dict(writer.left_out)
        self._note.unlink()
        return head

    def _verify(self, writer: DirectoryWriter, done: dict[bytes, bytes]) -> None:
        """What this run wrote was read back at once; here is what an earlier one had written."""
        for path, digest in done.items():
            writer.do(("digest", path, digest))

    def _begun(self) -> tuple[dict[str, Any], dict[bytes, bytes]] | None:
        try:
            lines = self._note.read_text().splitlines()
            head = json.loads(lines[0])
            done: dict[bytes, bytes] = {}
            for line in lines[1:]:
                try:
                    kept = json.loads(line)
                    done[base64.b64decode(kept["path"])] = bytes.fromhex(kept["digest"])
                except (ValueError, KeyError):
                    break  # the last line may be torn; its file is sent again
            return head, done
        except (FileNotFoundError, IndexError, ValueError):
            return None

    def make_room(self, *, force: bool) -> None:
        """Raises Refused for a directory with something in it, or moves that aside."""
        if when.is_free(self._into):
            return
        if not force:
            when.need_free(
                self._into, "choose another directory, or --force: what is there is then moved aside"
            )
        for number in itertools.count(1):
            aside = self._into.with_name(f"{self._into.name}.before-restore-{number}")
            if not aside.exists():
                try:
                    self._into.rename(aside)
                except OSError as error:
                    raise errors.Refused(
                        f"{self._into} cannot be moved aside: {error.strerror}; nothing was touched",
                        reason="target-not-empty",
                        hint="a mount point cannot be; empty it, or name a directory in it",
                    ) from error
                self.moved_aside = aside
                return


def _line(note: TextIO, facts: dict[str, Any]) -> None:
    note.write(json.dumps(facts) + "\n")
    note.flush()
