# SPDX-License-Identifier: Apache-2.0
"""``tidegate advise``: what is wrong on this node, how that is known, and what to change."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from tidegate.advisor import Advisor
from tidegate.config import Config, load
from tidegate.config.units import duration
from tidegate.control.client import ControlClient, NoAgentError
from tidegate.daemon import bounds_of
from tidegate.errors import UsageError
from tidegate.measurement import Measurement
from tidegate.model.finding import Finding, Severity
from tidegate.model.snapshot import View

_INTERVAL = 1.0
_WIDTH = 100
_COLOURS = {Severity.CRITICAL: "31;1", Severity.WARNING: "33;1", Severity.INFO: "36;1"}


def advise(
    json: Annotated[bool, typer.Option("--json", help="Print a JSON list of findings.")] = False,
    socket: Annotated[Path | None, typer.Option("--socket", help="The agent's control socket.")] = None,
    time_: Annotated[
        str, typer.Option("--for", metavar="DURATION", help="Where no agent runs: observe so long.")
    ] = "10s",
    config_file: Annotated[
        Path | None,
        typer.Option("-c", "--config", help="Config file, for the limits where no agent runs."),
    ] = None,
) -> None:
    """Say what is wrong on this node and what to change; observes for a while where no agent runs."""
    config = load(config_file)
    try:
        patience = duration(time_)
    except ValueError as error:
        raise UsageError(f"--for: {error}") from error
    view, seconds = _judged(socket or Path(config.control.socket), config, patience, quiet=json)
    findings = view.findings or ()
    if json:
        typer.echo(msgspec.json.encode(findings).decode())
        return
    colour = sys.stdout.isatty()
    typer.echo(
        "\n\n".join("\n".join(lines(finding, colour=colour)) for finding in findings) or _none(view, seconds)
    )


def _judged(path: Path, config: Config, seconds: float, *, quiet: bool) -> tuple[View, float | None]:
    """Return the agent's present view, or one of this process's own after ``seconds``."""
    try:
        with ControlClient(path) as client:
            return next(client.watch()), None
    except NoAgentError:
        pass
    if not quiet:
        typer.echo(f"no agent runs at {path}; observing for {seconds:g} s", err=True)
    root = Path(config.services.host_root)
    with Measurement(bounds_of(config), host_root=root, locations=config.locations) as measurement:
        advisor = Advisor(config.advice, config.residency)
        view = measurement.measure()
        for _ in _beats(seconds):
            view = advisor.judge(measurement.measure())
    return view, seconds


def _beats(seconds: float) -> Iterator[None]:
    """Yield once an interval for so long, the last time at the end."""
    began = time.monotonic()
    end, due = began + seconds, began
    while due < end:
        due = min(due + _INTERVAL, end)
        time.sleep(max(due - time.monotonic(), 0))
        yield


def _none(view: View, seconds: float | None) -> str:
    if view.findings is None:
        return "the agent's version doesn't judge what it sees"
    return "no findings" + (f" in {seconds:g} s" if seconds is not None else "")


def lines(finding: Finding, *, colour: bool = False) -> list[str]:
    """Write one finding: what it is in the first line, then its numbers, what to change, what would refute it."""
    severity = finding.severity.value.upper()
    if colour:
        severity = f"\x1b[{_COLOURS[finding.severity]}m{severity}\x1b[0m"
    written = [f"{severity} {finding.id}: {finding.subject}", *_wrapped(finding.summary, "  ")]
    numbers = ", ".join(f"{name} {_number(value)}" for name, value in finding.evidence.items())
    written += _wrapped(numbers, "  evidence:   ")
    for i, remedy in enumerate(finding.remedies, 1):
        number = f"{i}. " if len(finding.remedies) > 1 else ""
        written += _wrapped(f"{number}{remedy.what}", "  do:         " if i == 1 else "              ")
        if remedy.where:
            written += _wrapped(f"in {remedy.where}:", "                ")
        written += [f"                    {line}" for line in remedy.lines]
    written += _wrapped(f"{finding.refuted_by} (confidence: {finding.confidence.value})", "  refuted by: ")
    return [*written, f"  runbook:    {finding.runbook}"]


def _number(value: float | str) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _wrapped(text: str, first: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_long_words=False,
        break_on_hyphens=False,
    )
