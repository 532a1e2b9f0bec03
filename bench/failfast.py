# SPDX-License-Identifier: Apache-2.0
"""How soon an endpoint that fails is refused, and what watching endpoints costs others."""

from __future__ import annotations

import errno
import os
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from bench import tcp
from bench.report import Figure
from lab.gateway import Nginx, Visitors
from lab.lab import Lab
from tests.lab.agent import RunningAgent
from tidegate.control.client import ControlClient
from tidegate.http.watch import HttpWatch
from tidegate.kernel.endpoints import Endpoint
from tidegate.kernel.objects import BpfObject, Program, statistics_on
from tidegate.kernel.probe import probe
from tidegate.pools.failfast import Refusals
from tidegate.signals.tcp import TcpSignal

TRIALS, ROUNDS, EXCHANGES, CONNECTS, REQUESTS = 200, 9, 20_000, 20_000, 4000
HERE = Path(__file__).parent
ROOT = Path(probe().cgroup2 or "/")
_FAILED = b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"
_REQUEST = b"GET / HTTP/1.1\r\n\r\n"


def figures(directory: Path) -> list[Figure]:
    """Measure all."""
    return [*reaction(), *packets(directory), connects(directory), request()]


def reaction() -> list[Figure]:
    """Let an endpoint fail three times and connect until that is refused, again and again."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as server:
        threading.Thread(target=_fail, args=(server,), daemon=True).start()
        return _reactions(server.getsockname()[1])


def _fail(server: socket.socket) -> None:
    while True:
        try:
            client, _ = server.accept()
        except OSError:
            return
        with client:
            client.recv(4096)
            client.sendall(_FAILED)


def _request(port: int) -> bool:
    with socket.socket() as client:
        if client.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED:
            return False
        client.sendall(_REQUEST)
        client.recv(4096)
        return True


def _reactions(port: int) -> list[Figure]:
    pool = (
        f'pools: {{p: {{endpoints: ["127.0.0.1:{port}"], mode: enforce, min_healthy: 0, outlier_detection: '
        "{consecutive_5xx: 3, interval: 60s, max_ejection_percent: 100}, drivers: [{failfast: {}}]}}"
    )
    took, refusals = list[float](), list[float]()
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        extra = f"{pool}\naudit: {{file: {directory}/audit.jsonl}}\nlogging: {{level: error}}\n"
        with (
            RunningAgent(directory, 19474, interval="1s", extra=extra) as agent,
            ControlClient(agent.socket) as control,
        ):
            for _ in range(TRIALS):
                for _ in range(3):
                    _request(port)
                began = time.perf_counter()
                while _request(port):
                    pass
                took.append(time.perf_counter() - began)
                refusals += _refusals(port, 50)
                control.request("breaker.reset", {"pool": "p", "endpoint": f"127.0.0.1:{port}"})
                time.sleep(0.02)
            agent.stop()
    took.sort()
    refusals.sort()
    return [
        Figure(
            "Third failure to refused connects, p99",
            f"{took[TRIALS * 99 // 100 - 1] * 1e3:.1f} ms",
            "10 ms",
            f"{TRIALS} trials, the agent in its own process with a tick each second: from the third 503 until one "
            f"of the connects that follow is refused; median {took[TRIALS // 2] * 1e3:.2f} ms, longest "
            f"{took[-1] * 1e3:.1f} ms",
        ),
        Figure(
            "connect() to an endpoint that is out, p99",
            f"{refusals[len(refusals) * 99 // 100] * 1e6:.1f} us",
            "100 us",
            f"{len(refusals)} calls from Python; median {statistics.median(refusals) * 1e6:.1f} us",
        ),
    ]


def _refusals(port: int, count: int) -> list[float]:
    found = []
    for _ in range(count):
        with socket.socket() as client:
            began = time.perf_counter()
            error = client.connect_ex(("127.0.0.1", port))
            found.append(time.perf_counter() - began)
            assert error == errno.ECONNREFUSED
    return found


class Runs(NamedTuple):
    """Runs of a program, and their time in ns."""

    number: int
    ns: int

    def since(self, before: Runs) -> Runs:
        """Return what came after."""
        return Runs(self.number - before.number, self.ns - before.ns)

    @property
    def mean(self) -> float:
        """Of one run."""
        return self.ns / self.number


def _runs(programs: Iterable[Program]) -> dict[str, Runs]:
    return {each.name.rpartition("_")[2]: Runs(each.info().runs, each.info().run_time_ns) for each in programs}


def packets(directory: Path) -> list[Figure]:
    """Exchange requests beside the programs, watched by them, and beside programs that do nothing."""
    program = directory / "exchange"
    subprocess.run(["gcc", "-O2", "-o", program, HERE / "exchange.c"], check=True)
    others, watched, empty = _by_way(), _by_way(), _by_way()
    signal = TcpSignal.start(256, 4096)
    watch = HttpWatch(signal.bpf.maps, ROOT, 256)
    try:
        watch.watch({Endpoint(ip_address("192.0.2.1"), 80): 0.0})
        with statistics_on(), BpfObject(HERE.parent / "build/pass.bpf.o") as passing:
            passing.load()
            for each in passing.programs.values():
                passing.links.append(each.attach_cgroup(ROOT))
            for _ in range(ROUNDS):
                before, empty_before = _runs(watch.programs), _runs(passing.programs.values())
                _exchange(program, None)
                between = _runs(watch.programs)
                _exchange(program, watch)
                after, empty_after = _runs(watch.programs), _runs(passing.programs.values())
                for way in ("out", "in"):
                    beside = between[way].since(before[way])
                    # Of the packets of a watched connection the other socket sees as many, which isn't watched.
                    both = after[way].since(between[way])
                    others[way].append(beside.mean)
                    watched[way].append((both.ns - beside.mean * both.number / 2) / (both.number / 2))
                    empty[way].append(empty_after[way].since(empty_before[way]).mean)
    finally:
        watch.watch({})
        watch.close()
        signal.close()
    return [_figure("a watched connection", "200 ns", watched, empty), _figure("others", "60 ns", others, empty)]


def _by_way() -> dict[str, list[float]]:
    return {"out": [], "in": []}


def _figure(whose: str, target: str, runs: dict[str, list[float]], empty: dict[str, list[float]]) -> Figure:
    mean = {way: statistics.median(values) for way, values in runs.items()}
    less = {way: mean[way] - statistics.median(empty[way]) for way in mean}
    return Figure(
        f"HTTP programs, a packet of {whose}, in and out",
        f"{less['in']:.0f} and {less['out']:.0f} ns",
        target,
        f"{ROUNDS} rounds of {EXCHANGES} requests and responses over a loopback connection; medians of the "
        f"kernel's mean run times, {mean['in']:.0f} and {mean['out']:.0f} ns, less those of programs that do "
        f"nothing, {statistics.median(empty['in']):.0f} and {statistics.median(empty['out']):.0f} ns",
    )


def _exchange(program: Path, watch: HttpWatch | None) -> float:
    """Exchange on the last CPU alone, watched or not; return the CPU time of one exchange in ns."""
    cpu = str(max(os.sched_getaffinity(0)))
    command = ["taskset", "-c", cpu, str(program), str(EXCHANGES)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        port = int(running.stdout.readline())
        if watch is not None:
            watch.watch({Endpoint(ip_address("127.0.0.1"), port): 0.0})
        running.stdin.write("\n")
        running.stdin.flush()
        found = float(running.stdout.readline())
    assert running.returncode == 0
    if watch is not None:
        assert next(iter(watch.endpoints.seen().values())).answered == EXCHANGES
    return found


def connects(directory: Path) -> Figure:
    """Let connects pass that are to somewhere else than an endpoint that is out."""
    program = tcp.build(directory)
    signal = TcpSignal.start(256, 4096)
    try:
        driver = Refusals.start(signal.bpf.maps, ROOT)
        try:
            driver.renew()
            driver.apply({Endpoint(ip_address("192.0.2.1"), 80): 0}, ())
            with statistics_on():
                tcp.cost(program, CONNECTS)
                info = next(each for each in driver.programs if each.name == "failfast_4").info()
        finally:
            driver.close()
    finally:
        signal.close()
    return Figure(
        "Failfast, a connect to somewhere else",
        f"{info.run_time_ns / info.runs:.0f} ns",
        "200 ns",
        f"mean run time over {info.runs} connects, BPF_ENABLE_STATS included",
    )


def request() -> Figure:
    """Have the lab's gateway pass requests on, watched and not, by turns."""
    with Lab() as lab:
        gateway, inventory, visitors = lab.host("gateway", 16), lab.host("inventory", 6), lab.host("visitors", 4)
        Nginx(inventory, "inventory", "server { listen 5000; access_log off; location / { return 200 fine; } }")
        nginx = Nginx(
            gateway,
            "gateway",
            "upstream inventory { server 10.0.0.6:5000; keepalive 16; } "
            "server { listen 80; access_log off; location / { proxy_pass http://inventory; "
            'proxy_http_version 1.1; proxy_set_header Connection ""; } }',
        )

        def cost() -> float:
            before = _cpu(nginx.unit)
            assert Visitors(visitors, gateway.v4, ["/"], 2000.0, REQUESTS).results() == {"/": {"200": REQUESTS}}
            return (_cpu(nginx.unit) - before) / REQUESTS

        cost()
        without, watched = list[float](), list[float]()
        signal = TcpSignal.start(256, 4096)
        try:
            for _ in range(ROUNDS):
                without.append(cost())
                watch = HttpWatch(signal.bpf.maps, ROOT, 256)
                try:
                    watch.watch({Endpoint(ip_address("10.0.0.6"), 5000): 0.0})
                    watched.append(cost())
                finally:
                    watch.watch({})
                    watch.close()
        finally:
            signal.close()
    ratios = [b / a - 1 for a, b in zip(without, watched, strict=True)]
    return Figure(
        "CPU of nginx a request, its upstream watched",
        f"{statistics.median(ratios):+.1%}",
        "+3 %",
        f"{ROUNDS} rounds by turns of {REQUESTS} requests through the lab's gateway over kept connections, time "
        f"of its processes; medians {statistics.median(without) / 1e3:.1f} and "
        f"{statistics.median(watched) / 1e3:.1f} us, "
        f"ratios {min(ratios):+.1%} to {max(ratios):+.1%}",
    )


def _cpu(unit: str) -> int:
    """Return the run time of all processes of a unit of the lab, in ns."""
    (cgroup,) = ROOT.rglob(unit)
    pids = (cgroup / "cgroup.procs").read_text(encoding="ascii").split()
    return sum(int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[0]) for pid in pids)
