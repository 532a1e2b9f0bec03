# SPDX-License-Identifier: Apache-2.0
"""What the disk programs cost: a run of them for each request, and requests a second that a device does less."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from bench.report import Figure
from lab.disk import MIB, Device, memory_device
from tidegate.kernel.objects import statistics_on
from tidegate.signals.disk import DiskSignal

PAIRS, SLICE, SIZE = 60, 0.4, 256 * MIB
ROWS, REQUESTS = 2048, 8192


@contextlib.contextmanager
def load(device: Device, seconds: float) -> Iterator[None]:
    """Read and write blocks of 4 KiB at random meanwhile, for some seconds at most."""
    command = [
        "fio", "--name=bench", f"--filename={device.path}", "--rw=randrw", "--bs=4k", "--direct=1",
        "--ioengine=psync", f"--size={SIZE}", f"--runtime={seconds}", "--time_based",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            time.sleep(1)  # fio's own start
            yield
        finally:
            process.terminate()


def requests(device: Device) -> int:
    """Return how many reads and writes the kernel has counted."""
    fields = (device.sys / "stat").read_text(encoding="ascii").split()
    return int(fields[0]) + int(fields[4])


def rate(device: Device) -> float:
    """Return requests a second over a slice of time."""
    count, began = requests(device), time.perf_counter()
    time.sleep(SLICE)
    return (requests(device) - count) / (time.perf_counter() - began)


def figures(_: Path) -> list[Figure]:
    """Measure both."""
    with memory_device(SIZE) as device:
        fill = ["dd", "if=/dev/zero", f"of={device.path}", "bs=1M", f"count={SIZE // MIB}", "oflag=direct"]
        subprocess.run(fill, check=True, capture_output=True)
        with load(device, 120):
            return [iops(device), run_time()]


def iops(device: Device) -> Figure:
    """Compare requests a second with the programs and without, by turns."""
    without: list[float] = []
    within: list[float] = []
    for pair in range(PAIRS):
        # Each is first in every second pair: a device gets faster or slower with the machine around it.
        for attached in (False, True) if pair % 2 else (True, False):
            signal = DiskSignal.start(ROWS, REQUESTS) if attached else None
            try:
                (within if attached else without).append(rate(device))
            finally:
                if signal is not None:
                    signal.close()
    ratios = sorted(b / a - 1 for a, b in zip(without, within, strict=True))
    return Figure(
        "Random 4 KiB requests a second, disk programs attached",
        f"{statistics.median(ratios):+.1%}",
        "-3 %",
        f"{PAIRS} pairs of {SLICE} s by turns during one fio (psync, direct) on a loop device in memory; medians "
        f"{statistics.median(without):.0f} and {statistics.median(within):.0f} a second, "
        f"quarter to three quarters of the ratios {ratios[PAIRS // 4]:+.1%} to {ratios[3 * PAIRS // 4]:+.1%}",
    )


def run_time() -> Figure:
    """Measure the mean time of all disk programs for one request, statistics included."""
    with statistics_on():
        signal = DiskSignal.start(ROWS, REQUESTS)
        try:
            time.sleep(5)
            info = {p.name: p.info() for p in signal.bpf.programs.values() if p.is_loaded and p.info().runs}
        finally:
            signal.close()
    count = info["disk_issued"].runs
    total = sum(i.run_time_ns for i in info.values())
    each = ", ".join(f"{name} {i.run_time_ns / i.runs:.0f} ns x {i.runs}" for name, i in info.items())
    return Figure(
        "Run time of the disk programs per request",
        f"{total / count:.0f} ns",
        "300 ns",
        f"run time of all of them over {count} requests, BPF_ENABLE_STATS included, which is some 40 ns of "
        f"each run: {each}",
    )
