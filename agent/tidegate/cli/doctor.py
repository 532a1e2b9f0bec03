# SPDX-License-Identifier: Apache-2.0
"""``tidegate doctor``: what works on this host, what doesn't, and what would mend it."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from tidegate.config import Config
from tidegate.control.client import ControlClient, NoAgentError
from tidegate.errors import TidegateError
from tidegate.features import agent, features, unseen_failures
from tidegate.kernel.objects import BpfObject
from tidegate.kernel.probe import probe
from tidegate.model.feature import Feature, State
from tidegate.pools import failfast
from tidegate.pools.feature import of_drivers
from tidegate.ratelimit import feature
from tidegate.signals import disk, http, tcp

_OBJECTS = {
    "tcp": "connections, failures and handshakes",
    "cgroup": "names of services that live shortly",
    "ports": "ports in TIME_WAIT and listeners",
    "oom": "whose the processes are that are killed for want of memory",
    "disk": "requests of block devices",
    "http": "status and resets of endpoints of pools",
    "failfast": "connects to endpoints that are out",
}
_POOLS: dict[str, Callable[[], tuple[BpfObject, str]]] = {
    "http": lambda: http.load(max_rows=64),
    "failfast": failfast.load,
}
#: Without these the agent goes on.
_OPTIONAL = ("oom", "disk", "http", "failfast")


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    socket: Annotated[Path | None, typer.Option("--socket", help="The agent's control socket.")] = None,
) -> None:
    """Check each feature and the running agent: ok, degraded or unavailable, why, and what would mend it."""
    host = probe()
    found = features(host)
    found.append(feature.of_host(host, _limiter_refused()))
    found += [_load(name, purpose) for name, purpose in _OBJECTS.items()]
    found.append(unseen_failures())
    found += _agent(socket or Path(Config().control.socket))
    if json:
        typer.echo(msgspec.json.encode(found).decode())
    else:
        for each in found:
            typer.echo(_line(each))
    if any(each.state is State.UNAVAILABLE for each in found):
        sys.exit(3)


def _load(name: str, purpose: str) -> Feature:
    """Load an object for real, without attaching it: what the verifier accepts works."""
    try:
        if name == "tcp":
            return _load_tcp()
        if name == "disk":
            return _load_disk()
        if name in _POOLS:
            return _load_of_pools(name)
        with BpfObject.named(name) as bpf:
            bpf.load()
    except TidegateError as error:
        return Feature(
            name=f"programs:{name}",
            state=State.DEGRADED if name in _OPTIONAL else State.UNAVAILABLE,
            reason=f"{purpose}: {error}",
            remedy="mend what stands above; if all of it is ok, report this with the kernel's version",
        )
    return Feature(name=f"programs:{name}", state=State.OK)


def _load_tcp() -> Feature:
    bpf, refusal = tcp.load(max_rows=64, max_sockets=64)
    bpf.close()
    if not refusal:
        return Feature(name="programs:tcp", state=State.OK)
    return Feature(
        name="programs:tcp",
        state=State.DEGRADED,
        reason=f"{refusal}, so their bytes are counted when a connection's state changes and at its end",
        remedy="a later kernel; Linux 6.1 has what the walk needs",
    )


def _load_disk() -> Feature:
    bpf, refusal = disk.load(max_rows=64, max_requests=1024)
    bpf.close()
    if not refusal:
        return Feature(name="programs:disk", state=State.OK)
    return Feature(
        name="programs:disk",
        state=State.DEGRADED,
        reason=f"{refusal}, so queue times are unknown where a device's io accounting is off",
        remedy="a later kernel, or echo 1 >/sys/block/DEVICE/queue/iostats",
    )


def _load_of_pools(name: str) -> Feature:
    bpf, refusal = _POOLS[name]()
    bpf.close()
    if name == "failfast" and failfast.says_eperm(platform.release()):
        refusal += ", and callers see EPERM instead of ECONNREFUSED (Linux 5.18)"
    if not refusal:
        return Feature(name=f"programs:{name}", state=State.OK)
    remedy = "a later kernel; without it, what begins later is whole all the same"
    return Feature(name=f"programs:{name}", state=State.DEGRADED, reason=refusal, remedy=remedy)


def _limiter_refused() -> str | None:
    """Return why the kernel doesn't take the limiter's program, None where it does."""
    try:
        with BpfObject.named("ratelimit") as bpf:
            for name in ("ratelimit_syns", "ratelimit_sources", "ratelimit_sketch"):
                bpf.set_max_entries(name, 64)
            bpf.load()
    except TidegateError as error:
        return str(error)
    return None


def _agent(path: Path) -> list[Feature]:
    """Ask the running agent for its health; nothing where none runs."""
    try:
        with ControlClient(path) as client:
            view = next(client.watch())
    except NoAgentError:
        return []
    except TidegateError as error:
        remedy = "ask as root or as the agent's user, with the program of the agent's version"
        return [Feature(name="agent", state=State.DEGRADED, reason=str(error), remedy=remedy)]
    of_limiter = feature.of_limiter(view.limiter) if view.limiter else []
    return [*agent(view.health, view.interval), *of_limiter, *of_drivers(view.drivers)]


def _line(feature: Feature) -> str:
    text = f"{feature.name:<16} {feature.state}"
    if feature.reason:
        text += f"\n{'':17}{feature.reason}"
    if feature.remedy:
        text += f"\n{'':17}to mend it: {feature.remedy}"
    return text
