"""``dkctl completion``: the script that teaches a shell to complete dkctl."""

from __future__ import annotations

import click
from click import shell_completion

from dkctl import exits

VARIABLE = "_DKCTL_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> exits.Exit:
    """Print the completion script of a shell.

    \b
    bash:  eval "$(dkctl completion bash)"
    zsh:   eval "$(dkctl completion zsh)"
    fish:  dkctl completion fish | source
    """
    kind = shell_completion.get_completion_class(shell)
    assert kind is not None, "click knows the shells of the choice"
    click.echo(kind(ctx.find_root().command, {}, "dkctl", VARIABLE).source())
    return exits.Exit.DONE
