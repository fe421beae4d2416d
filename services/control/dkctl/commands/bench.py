"""``dkctl bench``: what capture costs, how far replicas lag, how long a failover takes on this machine."""

from __future__ import annotations

import contextlib
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import click

from dkctl import exits, options, output


@click.group()
def bench() -> None:
    """Measure a deployment of its own, which goes up for the bench and down after it.

    Each figure stands beside its baseline of the same run and its target. A figure that falls short says
    so; exit code 1 means a broken promise: a lost record, or a replica that differs.
    """


def _place(function: options.F) -> options.F:
    return click.option(
        "--work",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="Where the state of the bench goes while it runs; the temporary folder otherwise.",
    )(function)


def _seconds(default: float) -> Callable[[options.F], options.F]:
    return click.option(
        "--seconds",
        type=click.FloatRange(min=0, min_open=True),
        default=default,
        show_default=True,
        help="How long each load is held.",
    )


@bench.command()
@_seconds(5)
@click.option("--rate", "rates", type=int, multiple=True, help="Writes a second to try; may be repeated.")
@click.option(
    "--writers",
    type=click.IntRange(min=1, max=64),
    default=1,
    show_default=True,
    help="Processes that share the writes, each with a file of its own.",
)
@click.option("--postgres/--no-postgres", default=True, help="Also pgbench, where PostgreSQL is installed.")
@_place
@options.form
def capture(
    seconds: float, rates: tuple[int, ...], writers: int, postgres: bool, work: Path | None, form: str
) -> exits.Exit:
    """Added time of a write, writes carried to the other site, memory of the agent, pgbench at each level."""
    from dkctl.bench import capture as measurement
    from dkctl.bench import figures
    from dkctl.bench import postgres as pgbench

    with _folder(work) as folder:
        plain = folder / "writes"
        plain.mkdir()
        report = measurement.measure(
            plain, seconds, rates or measurement.RATES, output.say, processes_count=writers
        )
        binaries = pgbench.folder() if postgres else None
        if binaries is None:
            why = "PostgreSQL is not installed" if postgres else "pgbench was left out"
            report = replace(report, notes=[*report.notes, f"{why}: no pgbench ratios"])
        else:
            ratios = pgbench.measure(folder, binaries, 2 * seconds, output.say)
            report = replace(report, figures=[*report.figures, *ratios])
    return output.show(figures.answer(report), form)


@bench.command()
@_seconds(10)
@_place
@options.form
def lag(seconds: float, work: Path | None, form: str) -> exits.Exit:
    """From a write to its bytes in the replica, at 1,000 writes a second."""
    from dkctl.bench import figures
    from dkctl.bench import lag as measurement

    with _folder(work) as folder:
        report = measurement.measure(folder, seconds, output.say)
    return output.show(figures.answer(report), form)


@bench.command()
@click.option(
    "--size", "sizes_mb", type=click.IntRange(min=1), multiple=True, help="MB of state; may be repeated."
)
@click.option("--full", is_flag=True, help="10 MB and 1 GB instead of 10 MB and 200 MB.")
@click.option(
    "--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Failovers of each kind."
)
@click.option(
    "--front-door",
    is_flag=True,
    help="Clients behind a front door, and planned moves: failed, lost, stalled.",
)
@click.option(
    "--moves", type=click.IntRange(min=1), default=50, show_default=True, help="Moves with --front-door."
)
@click.option(
    "--requests",
    type=click.IntRange(min=1),
    default=500,
    show_default=True,
    metavar="RATE",
    help="Requests a second with --front-door.",
)
@_place
@options.form
def failover(
    sizes_mb: tuple[int, ...],
    full: bool,
    rounds: int,
    front_door: bool,
    moves: int,
    requests: int,
    work: Path | None,
    form: str,
) -> exits.Exit:
    """From the decision to a promoted replica, and to the first write accepted there."""
    from dkctl.bench import failover as measurement
    from dkctl.bench import figures

    with _folder(work) as folder:
        sizes = sizes_mb or ((10, 1000) if full else (10, 200))
        if front_door:
            from dkctl.bench import front_door as under_load

            moved = under_load.measure(folder, sizes, moves, requests, output.say)
            return output.show(figures.answer(moved), form)
        report = measurement.measure(folder, sizes, rounds, output.say)
    return output.show(figures.answer(report), form)


@bench.command()
@_seconds(20)
@click.option("--postgres/--no-postgres", default=True, help="Also pgbench, where PostgreSQL is installed.")
@_place
@options.form
def history(seconds: float, postgres: bool, work: Path | None, form: str) -> exits.Exit:
    """How small the log of every write is, and how long any moment of it takes to be there again."""
    from dkctl.bench import figures
    from dkctl.bench import history as measurement
    from dkctl.bench import postgres as pgbench

    with _folder(work) as folder:
        report = measurement.measure(folder, pgbench.folder() if postgres else None, seconds, output.say)
    return output.show(figures.answer(report), form)


@bench.command()
@click.option(
    "--count", type=click.IntRange(min=1), default=50_000, show_default=True, help="How many small files."
)
@_place
@options.form
def files(count: int, work: Path | None, form: str) -> exits.Exit:
    """Memory of the agent for each file it knows, and its processor time for the first sight of them."""
    from dkctl.bench import figures
    from dkctl.bench import files as measurement

    with _folder(work) as folder:
        report = measurement.measure(folder, count, output.say)
    return output.show(figures.answer(report), form)


@bench.command()
@click.option("--geometry", "geometries", metavar="K+M", multiple=True, help="Such as 2+8; may be repeated.")
@click.option("--segments", type=click.IntRange(min=1), default=8, show_default=True, help="Of 8 MiB each.")
@click.option(
    "--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="The best one counts."
)
@click.option("--rebuild/--no-rebuild", default=True, help="Also lose a storage node and rebuild it.")
@click.option(
    "--node-mb",
    type=click.IntRange(min=8),
    default=256,
    show_default=True,
    help="Size of that node; six of them.",
)
@_place
@options.form
def erasure(
    geometries: tuple[str, ...],
    segments: int,
    rounds: int,
    rebuild: bool,
    node_mb: int,
    work: Path | None,
    form: str,
) -> exits.Exit:
    """Coding segments beside pyeclib alone; rebuilding a node, and what a writer feels of it."""
    from dkctl.bench import erasure as measurement
    from dkctl.bench import figures

    with _folder(work) as folder:
        place = folder if rebuild else None
        report = measurement.measure(geometries, segments, rounds, place, node_mb, output.say)
    return output.show(figures.answer(report), form)


@bench.command()
@click.option(
    "--size", "megabytes", type=click.IntRange(1, 30), default=5, show_default=True, help="MB of text."
)
@click.option(
    "--edits", type=click.IntRange(min=2), default=100_000, show_default=True, help="Of the text's history."
)
@options.form
def merge(megabytes: int, edits: int, form: str) -> exits.Exit:
    """Merging what several sites wrote: a text with a long history, and JSON, beside pycrdt alone."""
    from dkctl.bench import figures
    from dkctl.bench import merge as measurement

    return output.show(figures.answer(measurement.measure(megabytes, edits, output.say)), form)


@contextlib.contextmanager
def _folder(work: Path | None) -> Iterator[Path]:
    """A folder that an unprivileged server can reach too; removed at the end."""
    # To be asked to end is the same as Ctrl-C: what was started is stopped.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="dk-bench-", dir=work))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
