# SPDX-License-Identifier: Apache-2.0
"""``tidegate breaker``: the circuits of the endpoints of pools, how to change them, and how a policy would do."""

from __future__ import annotations

import json as jsonlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from tidegate.config import load
from tidegate.control.client import ControlClient
from tidegate.errors import UsageError
from tidegate.model.breaker import State

app = typer.Typer(no_args_is_help=True, help="The circuits of the endpoints of pools, while they run.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Socket = Annotated[Path | None, typer.Option("--socket", help="The agent's control socket.")]
Pool = Annotated[str, typer.Argument(help="A pool of the config.")]
Endpoint = Annotated[str, typer.Argument(help="One of its endpoints, as ADDRESS:PORT.")]


@app.command()
def status(json: Json = False, socket: Socket = None) -> None:
    """Show the circuit of each endpoint, and why it is as it is."""
    pools = _ask(socket, "breaker.status", {})
    if json:
        typer.echo(msgspec.json.encode(pools).decode())
        return
    if not pools:
        typer.echo("no pools: 'pools' of the config names none")
    for pool in pools:
        text = f"{pool['pool']}: mode {pool['mode']}, {pool['active']} of {len(pool['endpoints'])} out"
        if pool["panic"]:
            text += ", too few are healthy: all are used"
        if pool["frozen"]:
            text += f", frozen by this node's {', '.join(pool['frozen'])}"
        typer.echo(text)
        for row in pool["endpoints"]:
            typer.echo(f"  {_line(row)}")


def _line(row: Mapping[str, Any]) -> str:
    state = State(row["state"]).word
    runs = ", ".join(
        f"{row[name]} {name.removeprefix('consecutive_')} in a row"
        for name in ("consecutive_5xx", "consecutive_gateway_failure", "consecutive_local_origin_failure")
        if row[name]
    )
    text = f"{row['endpoint']:<24} {state:<10} {row['ejected_total']:>4} ejections"
    if row["reason"]:
        text += f"  {row['reason']}"
    if row["until"] is not None:
        # Of CLOCK_MONOTONIC, which is the agent's own as well.
        text += f", for {max(row['until'] - time.monotonic(), 0.0):.0f} s more"
    if row["is_encrypted"]:
        text += "  (its answers can't be read: TLS, or no HTTP/1)"
    return f"{text}  {runs}" if runs else text


@app.command("open")
def open_(
    pool: Pool,
    endpoint: Endpoint,
    force: Annotated[bool, typer.Option("--force", help="Even if fewer than min_healthy are left.")] = False,
    socket: Socket = None,
) -> None:
    """Take an endpoint out, until 'close' or 'reset'."""
    _change(socket, "breaker.open", {"pool": pool, "endpoint": endpoint, "force": force})


@app.command()
def close(pool: Pool, endpoint: Endpoint, socket: Socket = None) -> None:
    """Let an endpoint back; how long it is out the next time stays."""
    _change(socket, "breaker.close", {"pool": pool, "endpoint": endpoint})


@app.command()
def reset(pool: Pool, endpoint: Endpoint, socket: Socket = None) -> None:
    """Let an endpoint back and forget all about it."""
    _change(socket, "breaker.reset", {"pool": pool, "endpoint": endpoint})


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


def _change(socket: Path | None, method: str, params: Mapping[str, Any]) -> None:
    typer.echo(_ask(socket, method, params)["done"])


def _ask(socket: Path | None, method: str, params: Mapping[str, Any]) -> Any:
    with ControlClient(socket or Path(load(None).control.socket)) as client:
        return client.request(method, params)
