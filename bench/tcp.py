# SPDX-License-Identifier: Apache-2.0
"""What a TCP connection costs with the programs attached, and what one of their runs takes."""

from __future__ import annotations

import os
import statistics
import subprocess
from pathlib import Path

from bench.report import Figure
from tidegate.kernel.objects import statistics_on
from tidegate.measurement import Bounds, Measurement

ROUNDS, CONNECTIONS = 7, 20_000
HERE = Path(__file__).parent


def build(directory: Path) -> Path:
    """Compile the connection loop."""
    program = directory / "connect"
    subprocess.run(["gcc", "-O2", "-o", program, HERE / "connect.c"], check=True)
    return program


def cost(program: Path, connections: int = CONNECTIONS) -> float:
    """Return the CPU time of one connection in ns, on the last CPU alone."""
    cpu = str(max(os.sched_getaffinity(0)))
    command = ["taskset", "-c", cpu, str(program), str(connections)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def figures(directory: Path) -> list[Figure]:
    """Measure both."""
    program = build(directory)
    cost(program)
    without, within = [], []
    for _ in range(ROUNDS):
        without.append(cost(program))
        with Measurement(Bounds()):
            within.append(cost(program))
    ratios = [b / a - 1 for a, b in zip(without, within, strict=True)]
    return [
        Figure(
            "CPU per loopback connection, programs attached",
            f"{statistics.median(ratios):+.1%}",
            "+8 %",
            f"{ROUNDS} interleaved rounds of {CONNECTIONS} connections in one thread, thread CPU clock; medians "
            f"{statistics.median(without):.0f} and {statistics.median(within):.0f} ns, "
            f"ratios {min(ratios):+.1%} to {max(ratios):+.1%}",
        ),
        run_time(program),
    ]


def run_time(program: Path) -> Figure:
    """Measure the mean time of all programs for one state event, statistics included."""
    with statistics_on(), Measurement(Bounds()) as measurement:
        cost(program)
        info = {p.name: p.info() for p in measurement.programs}
    events = info["tcp_state"].runs + (info["tcp_state"].recursion_misses or 0)
    total = sum(i.run_time_ns for i in info.values())
    each = ", ".join(f"{name} {i.run_time_ns / max(i.runs, 1):.0f} ns x {i.runs}" for name, i in info.items())
    return Figure(
        "Run time per TCP state event",
        f"{total / events:.0f} ns",
        "250 ns",
        f"run time of all TCP programs over {events} events, BPF_ENABLE_STATS included: {each}",
    )
