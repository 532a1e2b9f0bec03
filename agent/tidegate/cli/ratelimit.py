# SPDX-License-Identifier: Apache-2.0
"""``tidegate ratelimit``: what the limiter does, who it is about, and how to change that while it runs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import psutil
import typer

from tidegate.config import load
from tidegate.config.units import duration, port_ranges
from tidegate.control.client import ControlClient
from tidegate.errors import UsageError
from tidegate.ratelimit.captures import packets
from tidegate.ratelimit.simulate import simulate as simulated

app = typer.Typer(no_args_is_help=True, help="Limits per source address at the network card, while they run.")

#: Sources that a simulation names.
_HEAVIEST = 10
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Socket = Annotated[Path | None, typer.Option("--socket", help="The agent's control socket.")]
For = Annotated[str | None, typer.Option("--for", metavar="DURATION", help="For so long, as in 60s or 10m.")]
Target = Annotated[str, typer.Argument(help="An address, or a handle that 'ratelimit top' shows.")]


@app.command()
def status(json: Json = False, socket: Socket = None) -> None:
    """Show the mode, the interfaces and what they passed and refused, by reason."""
    found = _ask(socket, "ratelimit.status", {})
    if json:
        typer.echo(msgspec.json.encode(found).decode())
        return
    rolls_back = found["rolls_back_in"]
    typer.echo(f"mode {found['mode']}" + (f", rolls back in {rolls_back:.0f} s" if rolls_back is not None else ""))
    typer.echo(
        f"lists: {found['allowed']} allowed, {found['denied']} denied, {found['bans']} banned; "
        f"{found['guarded']} packets judged by the sketch, {found['contended']} passed uncounted"
    )
    for row in found["interfaces"]:
        attached = row["attached"] or "not attached"
        typer.echo(f"{row['interface']}: {attached}" + (f" ({row['reason']})" if row["reason"] else ""))
        for count in row["counts"]:
            typer.echo(
                f"  {count['verdict']:<10} {count['reason']:<14} {count['packets']:>14} packets "
                f"{count['bytes']:>17} bytes"
            )
    if (feed := found.get("feed")) is not None:
        told = {**feed["lines"], "dropped": feed["dropped"], "queue full": feed["full"]}
        typer.echo(f"feed {feed['feed']} at {feed['listen']}: " + _counts(told))
        typer.echo("  " + _counts(feed["bans"]))
    for complaint in [*([feed["complaint"]] if feed and feed["complaint"] else []), *found["complaints"]]:
        typer.echo(f"amiss: {complaint}")


@app.command()
def top(
    count: Annotated[int, typer.Option("-n", min=1, max=1000, help="How many sources.")] = 20,
    json: Json = False,
    socket: Socket = None,
) -> None:
    """Show the heaviest sources and what they would lose under enforcement, since they are known."""
    found = _ask(socket, "ratelimit.top", {"count": count})
    if json:
        typer.echo(msgspec.json.encode(found).decode())
        return
    columns = ("PACKETS", "REFUSED", "PACKETS/s", "REFUSED/s", "LOSES")
    typer.echo(f"{'HANDLE':<12} {'SOURCE':<24} " + " ".join(f"{column:>10}" for column in columns))
    for row in found:
        counts, rates = (row["packets"], row["refused"]), (row["packet_rate"], row["refused_rate"])
        # What it loses now, where that is known, else since it is known.
        all_, lost = rates if rates[0] else counts
        cells = [*map(str, counts), *("-" if rate is None else f"{rate:.1f}" for rate in rates)]
        cells.append(f"{lost / all_:.1%}" if all_ else "-")
        typer.echo(f"{row['handle']:<12} {row['source']:<24} " + " ".join(f"{cell:>10}" for cell in cells))


@app.command()
def ban(
    target: Target,
    time_: For = None,
    reason: Annotated[str, typer.Option("--reason", help="For the audit trail.")] = "",
    socket: Socket = None,
) -> None:
    """Refuse all that a source (IPv4 /32, IPv6 /64) sends to listening ports; for ever without --for."""
    found = _ask(socket, "ratelimit.ban", {"target": target, "seconds": _seconds(time_), "reason": reason})
    typer.echo(found["done"])


@app.command()
def unban(target: Target, socket: Socket = None) -> None:
    """End a ban."""
    typer.echo(_ask(socket, "ratelimit.unban", {"target": target})["done"])


@app.command()
def allow(
    network: Annotated[str, typer.Argument(help="An address or a CIDR network.")],
    time_: For = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take back what was allowed by this command.")] = False,
    socket: Socket = None,
) -> None:
    """Never limit a network, until the agent ends or for some time; what is to last belongs in the config."""
    params = {"network": network, "seconds": _seconds(time_), "remove": remove}
    typer.echo(_ask(socket, "ratelimit.allow", params)["done"])


@app.command()
def mode(
    mode: Annotated[str | None, typer.Argument(help="off, monitor or enforce.")] = None,
    time_: For = None,
    confirm: Annotated[bool, typer.Option("--confirm", help="Keep the mode that waits to roll back.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Even if it may lock out this session or a crowd.")] = False,
    socket: Socket = None,
) -> None:
    """Change the mode; 'enforce --for 60s' rolls back by itself unless 'mode --confirm' follows."""
    if mode is None and not confirm:
        raise UsageError("ratelimit mode: expected off, monitor or enforce, or --confirm; found neither")
    params = {"mode": mode, "seconds": _seconds(time_), "confirm": confirm, "yes": yes, "session": session()}
    typer.echo(_ask(socket, "ratelimit.mode", params)["done"])


@app.command()
def simulate(
    config_file: Annotated[Path, typer.Option("--config", help="The config whose rate_limit is tried.")],
    pcap: Annotated[Path, typer.Option("--pcap", help="A capture: pcap or pcapng.")],
    listen: Annotated[str | None, typer.Option("--listen", help="Ports that listen, as 80,443; else all.")] = None,
    json: Json = False,
) -> None:
    """Run a capture through the real kernel program, with the capture's own clock; needs no interface."""
    try:
        ports = None if listen is None else {port for some in port_ranges(listen) for port in some}
    except ValueError as error:
        raise UsageError(f"--listen: {error}") from error
    verdicts = simulated(load(config_file).rate_limit, packets(pcap), ports)
    if json:
        for verdict in verdicts:
            typer.echo(msgspec.json.encode(verdict))
        return
    by_reason: Counter[tuple[str, str]] = Counter()
    dropped: Counter[str] = Counter()
    for verdict in verdicts:
        by_reason[verdict.verdict, verdict.reason] += 1
        if verdict.verdict == "drop":
            dropped[verdict.source or "none"] += 1
    for (what, reason), count in sorted(by_reason.items()):
        typer.echo(f"{what:<6} {reason:<14} {count:>12} packets")
    for source, count in dropped.most_common(_HEAVIEST):
        typer.echo(f"drops of {source:<40} {count:>12} packets")


def session(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the address from which this command's user is logged in, as sshd or the login records have it."""
    for name in ("SSH_CONNECTION", "SSH_CLIENT"):
        if environment.get(name):
            return environment[name].split()[0]
    try:
        terminal = os.ttyname(0).removeprefix("/dev/")
    except OSError:
        return None
    hosts = [user.host for user in psutil.users() if user.terminal == terminal and user.host]
    return hosts[0] if hosts and not hosts[0].startswith(":") else None


def _counts(counts: Mapping[str, int | None]) -> str:
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if count is not None)


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return duration(text)
    except ValueError as error:
        raise UsageError(f"--for: {error}") from error


def _ask(socket: Path | None, method: str, params: Mapping[str, Any]) -> Any:
    with ControlClient(socket or Path(load(None).control.socket)) as client:
        return client.request(method, params)
