# SPDX-License-Identifier: Apache-2.0
"""What a scrape of 10,000 series takes, and what it does to the tick."""

from __future__ import annotations

import gzip
import http.client
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from bench.agent import Agent
from bench.report import Figure
from lab.lab import Lab
from lab.results import Plan, Step
from lab.upstream import Behaviour
from tidegate.control.client import ControlClient
from tidegate.export import text
from tidegate.export.prometheus import Exporter
from tidegate.identity.services import Service
from tidegate.measurement import TABLES
from tidegate.model.fields import Role
from tidegate.model.snapshot import EndpointRow, Health, Node, View
from tidegate.rates import Rates
from tidegate.signals.tcp_fields import COUNTERS, HISTOGRAMS
from tidegate.totals import Row, RowKey

SCRAPES, SERIES = 15, 10_000
ROUNDS, TICKS, INTERVAL = 4, 40, "250ms"
NODE = Node(name="bench", kernel="6", cpus=2, uptime=1.0)
#: What Prometheus 3 asks for.
ACCEPT = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


def figures(directory: Path) -> list[Figure]:
    """Measure both."""
    return [scrape(gzipped=False), scrape(gzipped=True), tick(directory)]


def scrape(*, gzipped: bool) -> Figure:
    """Measure one scrape over HTTP, with the client in a process of its own."""
    exporter = Exporter("127.0.0.1", 0, TABLES)
    exporter.collector.show(view(SERIES))
    try:
        client = subprocess.run(
            [sys.executable, "-m", "bench.scrape", str(exporter.port), str(SCRAPES), "gzip" if gzipped else ""],
            check=True,
            capture_output=True,
            text=True,
        )
    finally:
        exporter.close()
    found = json.loads(client.stdout)
    seconds = found["seconds"]
    return Figure(
        f"Scrape of {found['samples']:,} series{', gzip' if gzipped else ''}",
        f"{statistics.median(seconds) * 1e3:.0f} ms",
        "100 ms",
        f"GET of {found['bytes']:,} bytes as Prometheus 3 asks, client in another process, median of {SCRAPES}, "
        f"{min(seconds) * 1e3:.0f} to {max(seconds) * 1e3:.0f} ms",
    )


def tick(directory: Path) -> Figure:
    """Measure how ticks of a real agent begin and what they take, with and without a scraper in a loop."""
    ports = range(6000, 6500)
    late: dict[bool, list[float]] = {False: [], True: []}
    took: dict[bool, list[float]] = {False: [], True: []}
    with Lab() as lab, Agent(directory, f"signals: {{interval: {INTERVAL}}}\n", rows=1000) as agent:
        lab.host("inventory", 6).service("inventory").upstream(dict.fromkeys(ports, Behaviour.ACCEPT))
        agent.wait_for("tidegate_build_info")
        lab.host("client", 16).service("shop").generate(Plan(tuple(Step("10.0.0.6", port, 2) for port in ports)))
        agent.wait_for('endpoint=":6499"')
        scrapes = 0
        for round_ in range(2 * ROUNDS):
            scraped = bool(round_ % 2)
            scraper = _scraper(agent.port) if scraped else None
            for health in _ticks(directory / "control.sock"):
                late[scraped].append(health.late_seconds)
                took[scraped].append(health.tick_seconds)
            if scraper is not None:
                scraper.terminate()
                scrapes += int(scraper.communicate()[0].count("\n"))
        samples = sum(len(f.samples) for f in text_string_to_metric_families(agent.metrics()))
    return Figure(
        "Lateness of a tick, scraped in a loop",
        f"p99 {_p99(late[True]) * 1e3:.1f} ms, max {max(late[True]) * 1e3:.1f} ms",
        "as without",
        f"{ROUNDS} rounds by turns of {TICKS} ticks of {INTERVAL}, {samples:,} series, {scrapes} scrapes; without "
        f"p99 {_p99(late[False]) * 1e3:.1f}, max {max(late[False]) * 1e3:.1f} ms; the measurement takes "
        f"{statistics.median(took[True]) * 1e3:.1f} ms (p99 {_p99(took[True]) * 1e3:.1f}), without "
        f"{statistics.median(took[False]) * 1e3:.1f} ms (p99 {_p99(took[False]) * 1e3:.1f})",
    )


def _p99(values: list[float]) -> float:
    return sorted(values)[math.ceil(len(values) * 0.99) - 1]


def _scraper(port: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bench.scrape", str(port), "forever", "gzip"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _ticks(socket: Path) -> Iterable[Health]:
    with ControlClient(socket) as client:
        for n, shown in enumerate(client.watch()):
            if n > 1:  # the first is of before, and during the second the scraper starts
                yield shown.health
            if n == TICKS + 1:
                return


def view(series: int) -> View:
    """Make a view with at least ``series`` samples of the declared fields, half of its rows a client's."""
    pair = sum(not line.startswith("#") for line in text.write(TABLES, _view(_rows(1))).splitlines())
    return _view(_rows(-(-series // pair)))


def _view(rows: tuple[EndpointRow, ...]) -> View:
    health = Health(
        version="0", pid=1, loader="libbpf", maps={}, programs={}, statistics_refused=None, events_lost={},
        losses={}, rows=len(rows), rows_limit=len(rows), ticks=1, ticks_late=0, ticks_skipped=0, late_seconds=0.0,
        tick_seconds=0.01, cpu=0.01, cpu_seconds=1.0, program_cpu=None,
        rss_bytes=1,
    )  # fmt: skip
    return View(time=1.0, interval=1.0, node=NODE, services=(), endpoints=rows, health=health)


def _rows(pairs: int) -> tuple[EndpointRow, ...]:
    """Make rows whose counters and histograms all hold something."""
    histograms = tuple({slot: slot for slot in range(0, h.slots, 9)} for h in HISTOGRAMS)
    sample = {
        RowKey(
            Service(f"namespace-{n % 7}/workload-{n // 8}", f"container-{n % 3}"),
            role,
            f"10.{n >> 8}.{n & 255}.6:5000" if role is Role.CLIENT else f":{n}",
        ): Row(tuple(range(n, n + COUNTERS)), histograms)
        for n in range(pairs)
        for role in Role
    }
    return Rates().snapshot(sample, time=1.0, interval=1.0, node=NODE).endpoints


def _client(port: int, count: str, encoding: str) -> None:
    """Scrape ``count`` times; print what it took, or with ``forever`` a line for each scrape."""
    seconds: list[float] = []
    body = b""
    while count == "forever" or len(seconds) < int(count):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        began = time.perf_counter()
        connection.request("GET", "/metrics", headers={"Accept": ACCEPT, "Accept-Encoding": encoding})
        body = connection.getresponse().read()
        seconds.append(time.perf_counter() - began)
        connection.close()
        if count == "forever":
            print(flush=True)
    plain = gzip.decompress(body) if encoding else body
    samples = sum(1 for line in plain.splitlines() if line and not line.startswith(b"#"))
    print(json.dumps({"seconds": seconds, "bytes": len(body), "samples": samples}))


if __name__ == "__main__":
    _client(int(sys.argv[1]), sys.argv[2], sys.argv[3])
