# SPDX-License-Identifier: Apache-2.0
"""From an endpoint's third failure to the pool without it, beside what the proxies' own detection makes of it."""

from __future__ import annotations

import contextlib
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from bench.report import Figure
from lab.closedloop import ClosedLoop
from lab.envoy import Cluster, Envoy
from lab.haproxy import Haproxy
from lab.lab import Lab
from lab.story import INVENTORY, Story, Way
from tests.lab.agent import RunningAgent
from tidegate.control.client import ControlClient

FIRST = INVENTORY[0]
#: It fails for so long after it is out, in which the last request that was under way has come to it.
LINGERS = 0.1
POLLED = 0.001
PATIENCE = 15.0
#: Consecutive failures; the story's DestinationRule says the same.
FAILURES = 3
OWN_PORT = 90
_HAPROXY = """\
defaults
    mode http
    timeout connect 1s
    timeout client 60s
    timeout server 10s
frontend gateway
    bind :{port}
    default_backend inventory_service
backend inventory_service
    default-server check inter 200ms observe layer7 error-limit {failures} on-error mark-down
{servers}
"""


class Load(NamedTuple):
    """So many clients, each with the next request so many seconds after the last is answered."""

    name: str
    workers: int
    pause: float
    rounds: int


LIGHT, FULL = Load("light", 5, 0.005, 20), Load("full", 20, 0.0, 10)
LOADS = (LIGHT, FULL)


class Failing(NamedTuple):
    """An endpoint that fails: from when until when, and when its proxy was seen to have it out (Unix seconds)."""

    began: float
    seen: float
    ended: float


class Reaction(NamedTuple):
    """Seconds from the third 503: until the proxy was seen to have it out, until the last request came there.

    ``failed`` are the 503s, each of which a client has seen; ``told`` is ``seen`` by the agent's own record.
    """

    seen: float
    last: float
    failed: int
    told: float


class Contender(NamedTuple):
    """Who takes the endpoint out: how the proxy is reached, whether the endpoint is out, and what puts it back.

    ``told`` returns when it was put on record that the endpoint is out.
    """

    way: Way
    is_out: Callable[[], bool]
    reset: Callable[[], object] = lambda: None
    told: Callable[[], list[float]] = list


class Found(NamedTuple):
    """All reactions under one load; requests a second, and how many failed by another status than 503."""

    reactions: list[Reaction]
    rate: float
    others: int


def figures() -> Iterator[Figure]:
    """Measure all."""
    for proxy, name in (("haproxy", "HAProxy"), ("envoy", "Envoy")):
        with Lab() as lab:
            story = Story(lab, proxy, ejection="60s")
            with _agent(story) as ours:
                tidegate = {load: reactions(story, ours, load) for load in LOADS}
            theirs = _own(story, proxy)
            own = {load: reactions(story, theirs, load) for load in LOADS}
        yield _reaction(name, tidegate)
        yield _beside(name, tidegate, own)


def reactions(story: Story, contender: Contender, load: Load) -> Found:
    """Have the first endpoint fail until it is out, and mend it, again and again."""
    way = contender.way
    loop = ClosedLoop(way.host, way.address, way.port, workers=load.workers, pause=load.pause)
    time.sleep(0.5)
    done = []
    for _ in range(load.rounds):
        time.sleep(random.uniform(0.1, 0.2))
        began = time.time()
        story.fail(FIRST)
        _poll(contender.is_out)
        seen = time.time()
        time.sleep(LINGERS)
        done.append(Failing(began, seen, time.time()))
        story.mend(FIRST)
        contender.reset()
        _poll(lambda: not contender.is_out())
    requests = loop.stop()
    answers, told = story.statuses(FIRST), contender.told()
    return Found(
        [_of(failing, answers, told) for failing in done],
        len(requests) / (requests[-1].end - requests[0].start),
        sum(request.status not in (200, 503) for request in requests),
    )


def _of(failing: Failing, answers: list[tuple[float, int]], told: list[float]) -> Reaction:
    """Find what came of a failure; the endpoint's log and the record have ms, rounded down."""
    during = [(at, status) for at, status in answers if failing.began - 0.001 <= at <= failing.ended]
    failed = [at for at, status in during if status == 503]
    third = failed[FAILURES - 1]
    record = next(at for at in [*told, failing.seen] if third - 0.001 <= at <= failing.ended)
    return Reaction(failing.seen - third, failed[-1] - third, len(failed), record - third)


def _poll(done: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < end
        time.sleep(POLLED)


@contextlib.contextmanager
def _agent(story: Story) -> Iterator[Contender]:
    """Run the agent, without the limiter and with nothing that would have it freeze by the load alone."""
    with tempfile.TemporaryDirectory() as made:
        directory, audit = Path(made), Path(made) / "audit.jsonl"
        freeze = "freeze: {steal: 1, cpu_pressure: 1, memory_pressure: 1, io_pressure: 1}"
        extra = f"breaker: {{journal: {directory}/journal, {freeze}}}\naudit: {{file: {audit}}}\n"
        extra += f"logging: {{level: error}}\n{story.config}"
        with (
            RunningAgent(directory, 19475, interval="1s", extra=extra) as agent,
            ControlClient(agent.socket) as control,
        ):
            agent.wait_for("the proxy to be read", lambda: _uses(agent) == dict.fromkeys(INVENTORY, "active"))
            reset = {"pool": "inventory", "endpoint": FIRST}
            yield Contender(
                story.way,
                _is_out(story),
                lambda: control.request("breaker.reset", reset),
                lambda: _ejections(audit),
            )
            agent.stop()


def _uses(agent: RunningAgent) -> dict[str, str]:
    rows = json.loads(agent.command("pools", "list", "--json").stdout)
    return next(dict(row["uses"]) for row in rows if row["pool"] == "inventory")


def _ejections(audit: Path) -> list[float]:
    """Return when the agent has put on record that the proxy says that the endpoint is out."""
    records = [json.loads(line) for line in audit.read_text(encoding="utf-8").splitlines()]
    return [
        datetime.fromisoformat(record["time"]).timestamp()
        for record in records
        if record["action"] == "pool" and record["details"]["changed"].get(FIRST) == "ejected"
    ]


def _is_out(story: Story) -> Callable[[], bool]:
    proxy = story.proxy
    if isinstance(proxy, Haproxy):
        return lambda: _haproxy_is_out(proxy)
    assert isinstance(proxy, Envoy)
    return lambda: _envoy_is_out(proxy)


def _haproxy_is_out(proxy: Haproxy) -> bool:
    """Tell whether it is in maintenance or drained, or down."""
    lines = proxy.ask("show servers state inventory_service").splitlines()
    address, _, _ = FIRST.partition(":")
    operation, admin = next(line.split(" ")[5:7] for line in lines[2:] if line.split(" ")[4] == address)
    return operation == "0" or admin != "0"


def _envoy_is_out(proxy: Envoy) -> bool:
    (flags,) = (
        line.rpartition("::")[2]
        for line in proxy.ask("clusters").splitlines()
        if line.startswith(f"inventory::{FIRST}::health_flags::")
    )
    return flags != "healthy"


def _own(story: Story, proxy: str) -> Contender:
    """Start another proxy of the kind before the same endpoints, which detects by itself."""
    if proxy == "haproxy":
        servers = "\n".join(f"    server s{number} {at}" for number, at in enumerate(INVENTORY))
        haproxy = Haproxy(story.gateway, "own", _HAPROXY.format(port=OWN_PORT, failures=FAILURES, servers=servers))
        way = story.way._replace(port=OWN_PORT)
        return Contender(way, lambda: _haproxy_is_out(haproxy))
    detection = {
        "consecutive_5xx": FAILURES,
        "interval": "1s",
        "base_ejection_time": "0.5s",
        "max_ejection_time": "0.5s",
        "max_ejection_percent": 100,
    }
    parts = [endpoint.partition(":") for endpoint in INVENTORY]
    endpoints = [(address, int(port)) for address, _, port in parts]
    envoy = Envoy(story.gateway, [Cluster("inventory", OWN_PORT, endpoints, detection)])
    return Contender(story.way._replace(port=OWN_PORT), lambda: _envoy_is_out(envoy))


def _reaction(name: str, found: dict[Load, Found]) -> Figure:
    told = {load: [each.told for each in of.reactions] for load, of in found.items()}
    return Figure(
        f"Third 503 to the pool changed, {name}",
        _by_load({load: _in_ms([each.seen for each in of.reactions]) for load, of in found.items()}),
        "30 ms",
        f"from the third 503 in the endpoint's log (ms, rounded down) until the proxy says that it is out, asked "
        f"each ms; by the agent's own record {_by_load({load: _in_ms(of) for load, of in told.items()})}; the "
        f"agent is on the same two cores as proxy, endpoints and clients; {_loads(found)}",
    )


def _loads(found: dict[Load, Found]) -> str:
    return "; ".join(
        f"{load.name}: {load.rounds} rounds, {load.workers} clients"
        f"{f' that pause {load.pause * 1000:.0f} ms' if load.pause else ''}, {of.rate:,.0f} requests a second, "
        f"{of.others} failed otherwise"
        for load, of in found.items()
    )


def _beside(name: str, ours: dict[Load, Found], theirs: dict[Load, Found]) -> Figure:
    def both(of: Callable[[Found], str]) -> str:
        return _by_load({load: f"{of(ours[load])} by Tidegate, {of(theirs[load])} by its own" for load in ours})

    own = {
        "HAProxy": f"observe layer7 error-limit {FAILURES} on-error mark-down",
        "Envoy": f"consecutive_5xx {FAILURES}, interval 1s",
    }
    return Figure(
        f"503s that clients see until it is out, {name}",
        both(lambda found: _count([each.failed for each in found.reactions])),
        "none",
        f"the same failures seen by Tidegate and by {name}'s own detection ({own[name]}), which judges where the "
        "answer passes; from the third 503 to the last request at the endpoint, "
        f"{both(lambda found: _in_ms([each.last for each in found.reactions]))}",
    )


def _by_load(words: dict[Load, str]) -> str:
    return "; ".join(f"{load.name} load: {word}" for load, word in words.items())


def _in_ms(seconds: list[float]) -> str:
    found = sorted(1000 * each for each in seconds)
    return f"median {statistics.median(found):.1f} ms, longest {found[-1]:.1f} ms"


def _count(counts: list[int]) -> str:
    return f"median {statistics.median(counts):.0f}, most {max(counts)}"
