# SPDX-License-Identifier: Apache-2.0
"""How soon an endpoint that is to be out gets no requests any more, and what that costs other requests."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bench import own_detection
from bench.report import Figure
from lab.closedloop import ClosedLoop, Request
from lab.gateway import CURRENT_NGINX, NGINX, Nginx
from lab.lab import Lab
from lab.network import enter
from lab.story import INVENTORY, Story
from tests.lab.remains import wait_until
from tests.lab.rigs.dns import DnsRig
from tests.lab.rigs.nginx import MINIMUM, NginxRig
from tidegate.config.reader import parse
from tidegate.model.driver import Result
from tidegate.pools import making
from tidegate.pools.direct import Direct
from tidegate.pools.driver import Driver, Wanted
from tidegate.pools.failfast import Refusals, load
from tidegate.pools.journal import Journal, Kept
from tidegate.pools.keeper import Keeper, Mode
from tidegate.pools.updates import Told

ROUNDS, WORKERS, RELOADS, SYNCS = 20, 20, 20, 50
FIRST = INVENTORY[0]
PATIENCE = 15.0
#: An endpoint stays out for so long, in which the last request comes to it; old workers of nginx end after 0.3 s.
STAYS = 0.4
#: nginx is reloaded once a second at most; after so many seconds more the next one is at once.
QUIET = (0.65, 0.75)
#: A log tells of a request by the ms in which it came, rounded down.
MS = 0.001
#: Every request is a connection of its own.
_UNKEPT = """\
upstream inventory {{ {servers} }}
server {{
    listen {port};
    keepalive_requests 1000000;
    location / {{ proxy_pass http://inventory; }}
}}
"""
#: Connects some thousand times a second; prints when each first one began that was refused.
_PROBE = """
import errno, json, socket, struct, sys, threading, time
address, ended = (sys.argv[1], int(sys.argv[2])), threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
found, count, is_refused, start = [], 0, False, time.monotonic()
while not ended.is_set():
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.setblocking(False)
        began, before, count = time.monotonic(), is_refused, count + 1
        is_refused = client.connect_ex(address) == errno.ECONNREFUSED
        if is_refused and not before:
            found.append(began)
    time.sleep(0.00005)
print(json.dumps([count / (time.monotonic() - start), found]))
"""


class Round(NamedTuple):
    """Whom it was decided to take out and when, the seconds until the proxy said so, and until when it stayed out.

    Times of CLOCK_MONOTONIC.
    """

    endpoint: str
    decided: float
    said: float
    until: float


class Asked:
    """A keeper of the inventory's driver, asked from here."""

    def __init__(self, driver: Driver, journal: Journal) -> None:
        self._told: queue.SimpleQueue[Told] = queue.SimpleQueue()
        mode = Mode(reads=True, acts=True, least=1)
        self._keeper = Keeper("inventory", "bench", driver, journal, mode, self._told.put)

    def have(self, out: Wanted) -> tuple[float, float]:
        """Have these be out and no others; return when that was asked, and the seconds until the proxy said so."""
        decided = time.monotonic()
        self._keeper.want(out, decided)
        told = self._told.get(timeout=PATIENCE)
        assert told.result is Result.OK, told
        return decided, told.seconds

    def __enter__(self) -> Asked:
        self._keeper.start()
        wait_until(lambda: bool(self._keeper.row().uses), "a proxy that answers")
        return self

    def __exit__(self, *_: object) -> None:
        self._keeper.end(restore=True)
        assert self._keeper.join(PATIENCE)


class Taken(NamedTuple):
    """Seconds from each decision until the last request came to the endpoint, and until the proxy said so.

    ``statuses`` are those of all requests.
    """

    last: list[float]
    said: list[float]
    statuses: Counter[int]

    @property
    def failed(self) -> str:
        """How many failed among how many."""
        return f"{self.statuses.total() - self.statuses[200]:,} of {self.statuses.total():,} requests failed"


def figures(directory: Path) -> Iterator[Figure]:
    """Measure all."""
    told = f"told by the endpoint's own log (ms, rounded up); the journal on a disk {_synced(directory)}"
    for proxy, name in (("haproxy", "HAProxy"), ("envoy", "Envoy")):
        with Lab() as lab:
            taken = by_story(Story(lab, proxy), directory / proxy, (0.0, 0.1))
        yield _taken(name, "15 ms", taken, told)
    for name, target, idle, count in (
        ("nginx reload", "150 ms", 0.0, ROUNDS),
        ("nginx reload, clients that pause 200 ms", "none", 0.2, ROUNDS // 2),
    ):
        with Lab() as lab:
            taken = by_story(Story(lab, "nginx"), directory / name, QUIET, idle=idle, count=count, rotates=True)
        yield _taken(name, target, taken, f"more than a second after the last reload; {told}")
    yield resolved()
    yield refused()
    yield from reloads()
    yield from own_detection.figures()


def _taken(name: str, target: str, taken: Taken, more: str) -> Figure:
    return Figure(
        f"Decision to last request at the endpoint, {name}",
        in_ms(taken.last),
        target,
        f"{len(taken.last)} rounds, {WORKERS} clients over three endpoints, each with the next request once the "
        f"last is answered; {more}; the proxy says so after {in_ms(taken.said)}; {taken.failed}",
    )


def in_ms(seconds: Sequence[float]) -> str:
    """Return median, 90th percentile and maximum."""
    found = sorted(1000 * value for value in seconds)
    p90 = found[max(len(found) * 9 // 10 - 1, 0)]
    return f"median {statistics.median(found):.1f} ms, p90 {p90:.1f} ms, longest {found[-1]:.1f} ms"


def _synced(directory: Path) -> str:
    took = []
    with (directory / "synced").open("wb") as file:
        for _ in range(SYNCS):
            file.write(b"x" * 500)
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            took.append(time.perf_counter() - began)
    return f"whose fsync takes {statistics.median(took) * 1000:.2f} ms"


def by_story(
    story: Story,
    directory: Path,
    pause: tuple[float, float],
    *,
    idle: float = 0.0,
    count: int = ROUNDS,
    rotates: bool = False,
) -> Taken:
    """Take endpoints out of the story's gateway and put them back; clients are ``idle`` before each request."""
    pool = parse(story.config.encode(), "story").pools["inventory"]
    section = pool.drivers[0]
    journal = making.journal_of(directory, "inventory", "bench", section, INVENTORY)
    with Asked(making.make(section, INVENTORY, journal), journal) as asked:
        ahead = time.time() - time.monotonic()
        loop = ClosedLoop(story.way.host, story.way.address, story.way.port, workers=WORKERS, pause=idle)
        time.sleep(1.0)
        done = rounds(asked, pause, count, rotates=rotates)
        requests = loop.stop()
    arrivals = {name: [at - ahead + MS for at, _ in story.statuses(name)] for name in INVENTORY}
    return taken_of(done, arrivals, requests)


def rounds(asked: Asked, pause: tuple[float, float], count: int, *, rotates: bool) -> list[Round]:
    """Take one endpoint after the other out, and put it back before the next, or at once with it (``rotates``).

    The pauses before are spread evenly, in no order.
    """
    done = []
    low, high = pause
    pauses = [low + (high - low) * (number + 0.5) / count for number in range(count)]
    random.shuffle(pauses)
    for number, seconds in enumerate(pauses):
        endpoint = INVENTORY[number % len(INVENTORY)]
        time.sleep(seconds)
        decided, said = asked.have({endpoint: 0})
        time.sleep(STAYS)
        done.append(Round(endpoint, decided, said, time.monotonic()))
        if not rotates:
            asked.have({})
    return done


def taken_of(done: Sequence[Round], arrivals: Mapping[str, Sequence[float]], requests: Sequence[Request]) -> Taken:
    """Find what came last to the endpoint in each round; 0 where that was before the decision."""
    last = []
    for each in done:
        seconds = max(at for at in arrivals[each.endpoint] if at < each.until) - each.decided
        assert seconds > -STAYS, f"{each.endpoint} was not in use"
        last.append(max(seconds, 0.0))
    return Taken(last, [each.said for each in done], Counter(request.status for request in requests))


def resolved() -> Figure:
    """Have nginx ask for a name, and leave endpoints out of the answers."""
    with Lab() as lab, tempfile.TemporaryDirectory() as directory:
        rig = DnsRig(lab)
        kept = Kept(pool="inventory", driver="dns", endpoints=INVENTORY, config={})
        journal = Journal(Path(directory) / "dns.json", kept)
        with Asked(rig.driver(journal), journal) as asked:
            loop = ClosedLoop(rig.client, rig.gateway.v4, 80, workers=WORKERS, pause=0.005)
            time.sleep(1.0)
            # At any time of the seconds between nginx's questions, one of which has just been.
            done = rounds(asked, (0.0, 2.0), ROUNDS, rotates=True)
            requests = loop.stop()
    arrivals = {name: [request.end for request in requests if request.body == name] for name in INVENTORY}
    return _taken(
        "nginx resolve",
        "1.2 s",
        taken_of(done, arrivals, requests),
        "told by the clients, who pause 5 ms; decided at times spread evenly over two seconds, in each of "
        "which nginx asks once",
    )


def refused() -> Figure:
    """Have the kernel refuse connects, of a gateway without keepalive and of one who connects all the time."""
    with Lab() as lab, contextlib.ExitStack() as stack:
        story = Story(lab, "nginx")
        servers = " ".join(f"server {endpoint} max_fails=0;" for endpoint in INVENTORY)
        Nginx(story.gateway, "unkept", _UNKEPT.format(servers=servers, port=81), CURRENT_NGINX)
        bpf, _ = load()
        for name in ("failfast_4", "failfast_6"):
            bpf.links.append(bpf.programs[name].attach_cgroup(lab.cgroup))
        refusals = Refusals(bpf)
        stack.callback(refusals.close)
        told: list[Told] = []
        direct = Direct("inventory", refusals, INVENTORY, told.append)
        loop = ClosedLoop(story.visitors, story.gateway.v4, 81, workers=WORKERS)
        probe = lab.popen(
            enter(story.gateway.namespace, [sys.executable, "-c", _PROBE, *FIRST.split(":")], lab.cgroup),
            {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE},
        )
        time.sleep(0.5)
        done = list[float]()
        for _ in range(ROUNDS):
            refusals.renew()
            time.sleep(random.uniform(0.05, 0.15))
            done.append(time.monotonic())
            direct.want({FIRST: 0}, done[-1])
            time.sleep(0.05)
            direct.want({}, time.monotonic())
        rate, refused_at = json.loads(probe.communicate()[0])
        statuses = Counter(request.status for request in loop.stop())
    took = [at - decided for at, decided in zip(refused_at, done, strict=True)]
    taken = Taken(took, [each.seconds for each in told[::2]], statuses)
    return Figure(
        "Decision to first refused connect, kernel",
        in_ms(taken.last),
        "1 ms",
        f"{ROUNDS} rounds; of one who connects to the endpoint {rate:,.0f} times a second, beside "
        f"{WORKERS} clients of an nginx without keepalive; written after {in_ms(taken.said)}; {taken.failed}",
    )


def reloads() -> Iterator[Figure]:
    """Reload nginx while clients keep their connections."""
    for what, program, http, target in (
        ("with `keepalive_min_timeout 300ms`", CURRENT_NGINX, MINIMUM, "0"),
        ("without it", CURRENT_NGINX, "", "none"),
        ("Debian's 1.22", NGINX, "", "none"),
    ):
        with Lab() as lab:
            rig = NginxRig(lab, program, http)
            loop = ClosedLoop(rig.client, rig.host.v4, 80, workers=WORKERS)
            time.sleep(0.5)
            for _ in range(RELOADS):
                rig.proxy.reload()
                time.sleep(0.2)
            requests = loop.stop()
        failed = Counter(request.status for request in requests if request.status != 200)
        kinds = ", ".join(f"{n} {status or 'without an answer'}" for status, n in sorted(failed.items()))
        yield Figure(
            f"Requests that fail at a reload of nginx, {what}",
            f"{failed.total() / RELOADS:.2f}",
            target,
            f"{failed.total()} of {len(requests):,} in {RELOADS} reloads{f' ({kinds})' if kinds else ''}, "
            f"{WORKERS} clients over kept connections",
        )
