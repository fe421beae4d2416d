"""``dkctl rollback``: a volume as it was, as one more change that can be undone."""

from __future__ import annotations

from pathlib import Path

import click

from dkctl import client, confirm, exits, options, output, rolling_back, when


@click.command()
@click.argument("volume")
@click.option("--to", "to", type=when.WHEN, required=True, help="Which moment.")
@click.option(
    "--start/--no-start", default=True, help="Start the program again if it ran.", show_default=True
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@options.timeout(60.0)
@options.directory
@options.form
def rollback(
    volume: str, to: str, start: bool, yes: bool, timeout_s: float, directory: Path, form: str
) -> exits.Exit:
    """Bring the directory of VOLUME back to a moment; its program is stopped, and started again.

    The rollback is captured like any other change: nothing is lost, and it can be undone with
    dkctl rollback VOLUME --to tag:before-rollback-POSITION.
    """
    control = client.Control.of(directory)
    target = control.history(volume, "moment", [("when", to)])
    now = control.volume(volume)
    stops = (
        "its program is stopped meanwhile" if (now.get("program") or {}).get("running") else "no program runs"
    )
    where = when.resolved(target["position"], target["at_us"])
    confirm.traffic(f"{volume} at {now.get('leader')} goes back to {where}; {stops}.", yes=yes)
    done = rolling_back.Rollback(control, volume, timeout_s).run(target["position"], start=start)
    answer = output.Answer(
        f"{volume} is again as it was at {where}, since position {done['position']}: "
        f"{output.size(done['bytes'])} written, verified by the log.",
        {"volume": volume, **done},
        tables=[
            output.Table(
                [
                    output.Column("", "what"),
                    output.Column("BEFORE", "before"),
                    output.Column("AFTER", "after"),
                ],
                [
                    {"what": "position", "before": done["from"], "after": done["position"]},
                    {"what": "shows", "before": done["from"], "after": target["position"]},
                    {"what": "program", "before": None, "after": done.get("pid") and f"pid {done['pid']}"},
                ],
            )
        ],
        names=[done["position"]],
        hints=[f"dkctl rollback {volume} --to tag:{done['tag']}  undoes it"] if done["tag"] else [],
    )
    return output.show(answer, form)
