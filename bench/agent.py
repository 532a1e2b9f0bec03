# SPDX-License-Identifier: Apache-2.0
"""What the agent itself takes: seconds to its first metric, CPU, memory with a thousand rows."""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from bench import tcp
from bench.report import Figure
from lab.lab import Lab
from lab.results import Plan, Step
from lab.upstream import Behaviour

PROGRAM = str(Path(sys.executable).with_name("tidegate"))
ROUNDS, DEADLINE = 7, 60.0
RATE, SECONDS = 10_000, 20


class Agent:
    """``tidegate run`` with metrics on a free port; a context manager."""

    def __init__(self, directory: Path, extra: str = "", rows: int = 2000) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = int(probe.getsockname()[1])
        config = directory / "bench.yaml"
        config.write_text(
            f"metrics: {{listen: '127.0.0.1:{self.port}'}}\ncontrol: {{socket: '{directory}/control.sock'}}\n"
            f"services: {{max_rows: {rows}, max_endpoints: 1000}}\n{extra}",
            encoding="utf-8",
        )
        self.began = time.monotonic()
        self.process = subprocess.Popen([PROGRAM, "run", "-c", str(config)], stderr=subprocess.DEVNULL)

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()

    def metrics(self) -> str:
        """Scrape once; empty while nobody listens."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    def wait_for(self, text: str) -> float:
        """Return the seconds from the start until a scrape holds ``text``."""
        while text not in self.metrics():
            if time.monotonic() - self.began > DEADLINE:
                raise TimeoutError(f"bench: no {text} in the metrics after {DEADLINE} s")
            time.sleep(0.005)
        return time.monotonic() - self.began

    def cpu(self) -> float:
        """Return the CPU seconds of the process, to the ns: of all its threads that live."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/schedstat")
        return sum(int(path.read_text(encoding="ascii").split()[0]) for path in tasks) / 1e9

    def memory(self) -> int:
        """Return the resident bytes."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("no VmRSS")


def figures(directory: Path) -> list[Figure]:
    """Measure all."""
    starts = []
    for _ in range(ROUNDS):
        with Agent(directory) as agent:
            starts.append(agent.wait_for("tidegate_build_info"))
    return [
        Figure(
            "Start to first metric",
            f"{statistics.median(starts):.2f} s",
            "1 s",
            f"median of {ROUNDS} starts of `tidegate run` until a scrape has metrics, "
            f"{min(starts):.2f} to {max(starts):.2f} s",
        ),
        *cpu(directory),
        memory(directory),
    ]


def cpu(directory: Path) -> Iterator[Figure]:
    """Measure the agent's CPU with its default interval, without traffic of the benchmark and with much of it."""
    program = tcp.build(directory)
    with Agent(directory) as agent:
        agent.wait_for("tidegate_build_info")
        time.sleep(2)  # the start is measured above
        before = agent.cpu()
        time.sleep(SECONDS)
        idle = (agent.cpu() - before) / SECONDS
        yield Figure(
            "Agent CPU, idle", f"{idle:.2%}", "0.5 %", f"of one CPU over {SECONDS} s, interval 1 s, nobody scrapes"
        )
    for ports in (1, 60):
        with Agent(directory) as agent:
            agent.wait_for("tidegate_build_info")
            command = [str(program), str(RATE), str(RATE), str(ports)]
            subprocess.run(command, check=True, capture_output=True)
            before, began = agent.cpu(), time.monotonic()
            command[1] = str(RATE * SECONDS)
            reached = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            taken = (agent.cpu() - before) / (time.monotonic() - began)
            rows = agent.metrics().count("\ntidegate_tcp_open_connections{")
        yield Figure(
            f"Agent CPU at {RATE:,} connections/s, {rows:,} rows",
            f"{taken:.2%}",
            "5 %",
            f"of one CPU over {SECONDS} s, interval 1 s; {reached:,.0f} loopback connections/s were reached, "
            f"from one thread to 16 addresses at {ports} port{'s' if ports > 1 else ''}",
        )


def memory(directory: Path) -> Figure:
    """Measure the agent after it has seen a thousand rows, half of them a client's and half a server's."""
    ports = range(6000, 6500)
    with Lab() as lab, Agent(directory) as agent:
        lab.host("inventory", 6).service("inventory").upstream(dict.fromkeys(ports, Behaviour.ACCEPT))
        agent.wait_for("tidegate_build_info")
        shop = lab.host("client", 16).service("shop")
        for _ in range(5):
            shop.generate(Plan(tuple(Step("10.0.0.6", port, 2) for port in ports)))
        agent.wait_for('endpoint=":6499"')
        text = agent.metrics()
        samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
        rows = next(s.value for s in samples if s.name == "tidegate_rows")
        maps = sum(s.value for s in samples if s.name == "tidegate_bpf_map_bytes")
        return Figure(
            "Resident memory with 1,000 rows",
            f"{agent.memory() / 2**20:.1f} MiB + maps {maps / 2**20:.1f} MiB",
            "48 MiB",
            f"VmRSS of the agent with {rows:.0f} rows after 5,000 connections and a scrape of "
            f"{len(samples)} samples; maps: memlock of fdinfo",
        )
