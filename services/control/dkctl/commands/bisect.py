"""``dkctl bisect``: the first write after which a check fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import click

from diffkeeper.domain import errors
from dkctl import client, exits, options, output, when
from dkctl.output import Column

SKIP = 125
# Beyond this a check did not judge but broke, as with git bisect.
_LAST_VERDICT = 127
COLUMNS = [
    Column("", "what"),
    Column("POSITION", "position"),
    Column("TIME", "time"),
    Column("OPERATION", "op"),
    Column("PATH", "path"),
    Column("OFFSET", "offset"),
    Column("LENGTH", "length"),
]


class Bisection:
    """Checks states, each in a directory of its own that is removed afterwards."""

    def __init__(self, control: client.Control, volume: str, argv: tuple[str, ...], work: Path) -> None:
        self._control, self._volume, self._argv, self._work = control, volume, argv, work
        self.checks = 0

    def is_good(self, position: str, upto: int | None = None) -> bool:
        query = [("when", position)] + ([("upto", str(upto))] if upto is not None else [])
        with tempfile.TemporaryDirectory(prefix="bisect-", dir=self._work) as folder:
            into = Path(folder) / "state"
            when.fill(self._control, self._volume, into, query)
            code = self._check(into, position)
        self.checks += 1
        where = position if upto is None else f"{position} after {upto} deltas"
        output.say(f"  {where}: {'good' if code == 0 else f'bad (exit {code})'}")
        return code == 0

    def first_bad(self, good: str, bad: str) -> tuple[str, str]:
        """The neighbours between which it breaks: the last good and the first bad kept position."""
        while True:
            found = self._control.history(self._volume, "middle", [("from", good), ("to", bad)])
            if found["middle"] is None:
                return good, bad
            output.say(f"{found['between']} positions between {good} and {bad}")
            middle = found["middle"]["position"]
            if self.is_good(middle):
                good = middle
            else:
                bad = middle

    def first_delta(self, bad: str) -> dict[str, Any]:
        """The delta of the first bad frame after which the check fails."""
        deltas: list[dict[str, Any]] = self._control.history(self._volume, "deltas", [("when", bad)])[
            "deltas"
        ]
        low, high = 0, len(deltas)  # after ``low`` deltas it is good, after ``high`` bad
        while high - low > 1:
            middle = (low + high) // 2
            if self.is_good(bad, middle):
                low = middle
            else:
                high = middle
        return deltas[high - 1]

    def _check(self, into: Path, position: str) -> int:
        argv = [argument.replace("{path}", str(into)) for argument in self._argv]
        env = {**os.environ, "DIFFKEEPER_POSITION": position, "DIFFKEEPER_PATH": str(into)}
        try:
            code = subprocess.run(
                argv, cwd=into, env=env, stdin=subprocess.DEVNULL, stdout=2, check=False
            ).returncode
        except OSError as error:
            raise errors.Misconfigured(
                f"{argv[0]} cannot be executed: {error.strerror}",
                reason="not-executable",
                hint="give the path of a program that may be executed",
            ) from error
        if code == SKIP or code < 0 or code > _LAST_VERDICT:
            raise errors.Refused(
                f"the check cannot judge {position}: it ended with {code}",
                reason="check-failed",
                hint="0 says good, 1 to 124, 126 and 127 say bad",
            )
        return code


@click.command()
@click.argument("volume")
@click.option("--from", "good", type=when.WHEN, required=True, help="A moment at which the check passes.")
@click.option(
    "--to", "bad", type=when.WHEN, default="latest", show_default=True, help="One at which it fails."
)
@click.option(
    "--frames", is_flag=True, help="Stop at the frame; do not look for the single write inside of it."
)
@click.option(
    "--work",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where states are restored to while they are checked; the temporary folder otherwise.",
)
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- CHECK [ARG]...")
@options.directory
@options.form
def bisect(
    volume: str,
    good: str,
    bad: str,
    frames: bool,
    work: Path | None,
    argv: tuple[str, ...],
    directory: Path,
    form: str,
) -> exits.Exit:
    """Find the first write to VOLUME after which a check fails.

    The check runs in a directory with the state of a moment ({path} in its arguments stands for it). Exit
    code 0 means good, 1 to 124, 126 and 127 mean bad; anything else ends the search.
    """
    control = client.Control.of(directory)
    program = shutil.which(argv[0])
    search = Bisection(control, volume, (program or str(Path(argv[0]).absolute()), *argv[1:]), _place(work))
    first, last = (
        control.history(volume, "moment", [("when", moment)])["position"] for moment in (good, bad)
    )
    for moment, expected in ((first, True), (last, False)):
        if search.is_good(moment) is not expected:
            raise errors.Refused(
                f"the check says {'bad' if expected else 'good'} at {moment}, where it should say "
                f"{'good' if expected else 'bad'}; there is nothing to search",
                reason="bad-range",
                hint="choose --from and --to so that the check passes at the first and fails at the second",
            )
    last_good, first_bad = search.first_bad(first, last)
    delta = None if frames else search.first_delta(first_bad)
    return output.show(of_search(volume, last_good, first_bad, delta, search.checks), form)


def _place(work: Path | None) -> Path:
    return work if work is not None else Path(tempfile.gettempdir())


def of_search(
    volume: str, last_good: str, first_bad: str, delta: dict[str, Any] | None, checks: int
) -> output.Answer:
    data = {"volume": volume, "good": last_good, "bad": first_bad, "delta": delta, "checks": checks}
    rows = [{"what": "good", "position": last_good}]
    bad: dict[str, Any] = {"what": "bad", "position": first_bad}
    verdict = f"{volume} broke at {first_bad}"
    if delta is not None:
        bad |= {**delta, "time": output.moment(delta["at_us"])}
        verdict += f", with its delta {delta['nth']}: {delta['op']} of {delta['path'] or '?'}"
        if delta["op"] == "write":
            verdict += f", {delta['length']} bytes at {delta['offset']}"
    return output.Answer(
        f"{verdict} ({checks} checks).",
        data,
        tables=[output.Table(COLUMNS, [*rows, bad])],
        names=[first_bad],
        hints=[f"dkctl diff {volume} {last_good} {first_bad}"],
    )
