# SPDX-License-Identifier: Apache-2.0
"""What the disk programs cost: a run of them for each request, and requests a second that a device does less."""

from __future__ import annotations

import json
import statistics
import subprocess
from pathlib import Path

from bench.report import Figure
from lab.disk import MIB, Device, memory_device
from tidegate.kernel.objects import statistics_on
from tidegate.signals.disk import DiskSignal

ROUNDS, SECONDS, SIZE = 9, 2, 256 * MIB
ROWS, REQUESTS = 2048, 8192


def fio(device: Device, jobs: int = 1) -> float:
    """Read and write blocks of 4 KiB at random for some seconds; return requests a second."""
    command = [
        "fio", "--name=bench", f"--filename={device.path}", "--rw=randrw", "--bs=4k", "--direct=1",
        "--ioengine=psync", f"--numjobs={jobs}", f"--size={SIZE}", f"--runtime={SECONDS}", "--time_based",
        "--group_reporting", "--output-format=json",
    ]  # fmt: skip
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    (job,) = json.loads(output)["jobs"]
    return float(job["read"]["iops"]) + float(job["write"]["iops"])


def figures(_: Path) -> list[Figure]:
    """Measure both."""
    with memory_device(SIZE) as device:
        fill = ["dd", "if=/dev/zero", f"of={device.path}", "bs=1M", f"count={SIZE // MIB}", "oflag=direct"]
        subprocess.run(fill, check=True, capture_output=True)
        fio(device)
        return [iops(device), run_time(device)]


def iops(device: Device) -> Figure:
    """Compare requests a second with the programs and without, by turns."""
    without, within = [], []
    for round_ in range(ROUNDS):
        # Each is first in every second round: a device gets faster or slower with the machine around it.
        for attached in (False, True) if round_ % 2 else (True, False):
            signal = DiskSignal.start(ROWS, REQUESTS) if attached else None
            try:
                (within if attached else without).append(fio(device))
            finally:
                if signal is not None:
                    signal.close()
    ratios = [b / a - 1 for a, b in zip(without, within, strict=True)]
    return Figure(
        "Random 4 KiB requests a second, disk programs attached",
        f"{statistics.median(ratios):+.1%}",
        "-3 %",
        f"{ROUNDS} interleaved rounds of {SECONDS} s of fio (psync, direct) on a loop device in memory; medians "
        f"{statistics.median(without):.0f} and {statistics.median(within):.0f} a second, "
        f"ratios {min(ratios):+.1%} to {max(ratios):+.1%}",
    )


def run_time(device: Device) -> Figure:
    """Measure the mean time of all disk programs for one request, statistics included."""
    with statistics_on():
        signal = DiskSignal.start(ROWS, REQUESTS)
        try:
            fio(device)
            info = {p.name: p.info() for p in signal.bpf.programs.values() if p.is_loaded and p.info().runs}
        finally:
            signal.close()
    requests = info["disk_issued"].runs
    total = sum(i.run_time_ns for i in info.values())
    each = ", ".join(f"{name} {i.run_time_ns / i.runs:.0f} ns x {i.runs}" for name, i in info.items())
    return Figure(
        "Run time of the disk programs per request",
        f"{total / requests:.0f} ns",
        "300 ns",
        f"run time of all of them over {requests} requests, BPF_ENABLE_STATS included, which is some 40 ns of "
        f"each run: {each}",
    )
