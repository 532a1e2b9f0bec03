# SPDX-License-Identifier: Apache-2.0
"""``tidegate breaker``: try a policy on recorded events."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer

from tidegate.config import load
from tidegate.errors import UsageError

app = typer.Typer(help="The circuit breaker: try a policy on recorded events.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """The circuit breaker."""


@app.command()
def simulate(
    config_file: Annotated[Path, typer.Option("--config", help="The config whose pools are tried.")],
    events: Annotated[Path, typer.Option("--events", help="Events, one JSON object a line, in the order of t.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON, as always.", show_default=False)] = False,  # noqa: ARG001
) -> None:
    """Run the engine over recorded events in virtual time; prints one action a line, as JSON.

    It shows what `enforce` would do, whatever the mode says, and touches nothing.
    """
    # Only now: without pools, the agent has no use for it.
    from tidegate.breaker.configured import members  # noqa: PLC0415
    from tidegate.breaker.simulate import action  # noqa: PLC0415
    from tidegate.breaker.simulate import simulate as simulated  # noqa: PLC0415

    config = load(config_file)
    try:
        with events.open("rb") as lines:
            for decision in simulated(members(config.pools), lines, config.breaker.freeze):
                typer.echo(jsonlib.dumps(action(decision)))
    except OSError as error:
        raise UsageError(f"--events: {events} can't be read: {error.strerror}") from error
