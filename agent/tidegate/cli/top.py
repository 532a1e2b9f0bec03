# SPDX-License-Identifier: Apache-2.0
"""``tidegate top``: the live view, from the running agent or measured by itself."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from tidegate.config import Config
from tidegate.control.client import ControlClient, NoAgentError
from tidegate.measurement import Bounds, Measurement
from tidegate.model.snapshot import View
from tidegate.top.plain import Options, frame
from tidegate.top.screen import Screen


def top(
    once: Annotated[bool, typer.Option("--once", help="Print one frame and end.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one Snapshot object a line.")] = False,
    delay: Annotated[float, typer.Option("-d", "--delay", min=0.1, help="Seconds between frames.")] = 1.0,
    count: Annotated[int | None, typer.Option("-n", "--count", min=1, help="End after this many frames.")] = None,
    batch: Annotated[bool, typer.Option("-b", "--batch", help="Print frames one after another.")] = False,
    view: Annotated[str | None, typer.Option("--view", help="Only this table: services or endpoints.")] = None,
    sort: Annotated[str | None, typer.Option("--sort", help="Sort by this column.")] = None,
    text: Annotated[str, typer.Option("--filter", help="Only rows that hold this text.")] = "",
    columns: Annotated[str, typer.Option("--columns", help="These columns, with commas between.")] = "",
    socket: Annotated[Path | None, typer.Option("--socket", help="The agent's control socket.")] = None,
) -> None:
    """Show which service connects to whom, what fails and why; measures by itself where no agent runs."""
    options = Options(
        tables=(view,) if view else ("services", "endpoints"),
        sort=sort,
        filter=text,
        columns=tuple(name.strip() for name in columns.split(",") if name.strip()),
    )
    options.check()
    path = socket or Path(Config().control.socket)
    views = itertools.islice(_views(path, delay), 1 if once else count)
    if json:
        for v in views:
            sys.stdout.write(msgspec.json.encode(v).decode() + "\n")
            sys.stdout.flush()
    elif once or batch or not sys.stdout.isatty():
        for i, v in enumerate(views):
            typer.echo("\n".join([*([""] if i else []), *frame(v, options)]))
    else:
        with Screen(options) as screen:
            for v in views:
                screen.show(v)


def _views(path: Path, delay: float) -> Iterator[View]:
    try:
        client = ControlClient(path)
    except NoAgentError:
        yield from _measured(delay)
        return
    with client:
        yield from client.watch()


def _measured(delay: float) -> Iterator[View]:
    with Measurement(Bounds()) as measurement:
        due = time.monotonic()
        while True:
            due += delay
            time.sleep(max(due - time.monotonic(), 0))
            yield measurement.measure()
