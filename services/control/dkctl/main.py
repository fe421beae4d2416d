"""``dkctl``: the command line of DiffKeeper, a client of control's admin API.

Commands are files of ``dkctl.commands``, imported when they are named, so that ``dkctl status`` pays for
itself only. A command returns its exit code; errors of the five families become three lines on stderr and
the code of ``exits.of_error``.
"""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Sequence
from typing import Any

import click

from diffkeeper.domain import errors
from dkctl import exits, output

PROGRAM = "dkctl"

# In the order of a user's journey; ``module:function`` below dkctl.commands.
COMMANDS = {
    "up": "up:up",
    "down": "down:down",
    "run": "run:run",
    "attach": "attach:attach",
    "detach": "detach:detach",
    "status": "status:status",
    "conflicts": "conflicts:conflicts",
    "blame": "blame:blame",
    "undo": "undo:undo",
    "log": "log:log",
    "history": "history:history",
    "diff": "diff:diff",
    "cat": "cat:cat",
    "restore": "restore:restore",
    "mount": "mount:mount",
    "branch": "branch:branch",
    "rollback": "rollback:rollback",
    "tag": "tag:tag",
    "bisect": "bisect:bisect",
    "replay": "replay:replay",
    "sync": "sync:sync",
    "verify": "verify:verify",
    "failover": "failover:failover",
    "switchover": "switchover:switchover",
    "health": "health:health",
    "nodes": "nodes:nodes",
    "scrub": "scrub:scrub",
    "rebuild": "rebuild:rebuild",
    "rescue": "rescue:rescue",
    "drill": "drill:drill",
    "read": "read:read",
    "check": "check:check",
    "doctor": "doctor:doctor",
    "bench": "bench:bench",
    "manifests": "manifests:print_manifests",
    "completion": "completion:completion",
    "version": "version:version",
}


class Commands(click.Group):
    """A group whose commands are imported when needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        where = COMMANDS.get(cmd_name)
        if where is None:
            return None
        module, function = where.split(":")
        command = getattr(importlib.import_module(f"dkctl.commands.{module}"), function)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            ctx.fail(f"No such command {args[0]!r}." + (f" Did you mean {close[0]!r}?" if close else ""))
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def dkctl() -> None:
    """Keeps the state directory of an unmodified program alive at several sites.

    \b
    Exit codes: 0 done; 1 done, but look at the answer; 2 usage; 3 failed; 4 cannot reach; 5 not found;
    6 refused for safety; 7 not authorised; 8 timed out; 9 partly done; 128+N ended by signal N.
    """


def invoke(
    arguments: Sequence[str] | None = None, command: click.Command = dkctl, name: str = PROGRAM
) -> int:
    """Run one command line and return its exit code; nothing of it ends the process."""
    try:
        result: Any = command.main(args=arguments, prog_name=name, standalone_mode=False)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.Abort:
        return exits.of_signal(signal.SIGINT)
    except click.ClickException as error:
        error.show()
        return exits.Exit.USAGE
    except errors.DiffKeeperError as error:
        output.complain(error)
        return exits.of_error(error)
    except KeyboardInterrupt:
        return exits.of_signal(signal.SIGINT)
    return int(result) if isinstance(result, int) else exits.Exit.DONE


def main() -> None:
    # A reader that closed the pipe (``dkctl log | head``) ends this program as it ends every other.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(invoke())


if __name__ == "__main__":
    main()
