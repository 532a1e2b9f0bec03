# SPDX-License-Identifier: Apache-2.0
"""``tidegate run``: the agent in the foreground."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from tidegate.config import load
from tidegate.daemon import Agent
from tidegate.logs import configure
from tidegate.memory import give_back_early
from tidegate.model.snapshot import View
from tidegate.top.plain import Options, frame
from tidegate.top.screen import Screen


def run(
    config_file: Annotated[Path | None, typer.Option("-c", "--config", help="Config file.")] = None,
    show: Annotated[
        bool, typer.Option("--view", help="Draw the live view meanwhile; to a pipe, one frame.")
    ] = False,
) -> None:
    """Run the agent in the foreground; without a config file it observes and nothing acts."""
    give_back_early()
    config = load(config_file)
    picture = show and sys.stdout.isatty()
    # A log line would tear the picture; errors still reach the user when the agent ends.
    configure("critical" if picture else config.logging.level, config.logging.format)

    async def agent(on_view: Callable[[View], None] | None) -> None:
        await Agent(config_file, config, on_view).run()

    if picture:
        with Screen() as screen:
            asyncio.run(agent(screen.show))
    else:
        asyncio.run(agent(OneFrame().show if show else None))


class OneFrame:
    """Prints one frame: of the first whole interval."""

    def __init__(self) -> None:
        self._views = 0

    def show(self, view: View) -> None:
        """Take one view."""
        self._views += 1
        if self._views == 2:
            typer.echo("\n".join(frame(view, Options())))
            sys.stdout.flush()
