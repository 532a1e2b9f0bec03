# SPDX-License-Identifier: Apache-2.0
"""What the disk programs cost: a run of them for each request, and requests a second that a device does less."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.report import Figure
from lab.disk import MIB, Device, memory_device
from tidegate.kernel.objects import BpfObject, ProgramInfo, statistics_on
from tidegate.signals.disk import DiskSignal

PAIRS, SETTLING, SLICE, SIZE = 40, 0.3, 0.4, 256 * MIB
ROWS, REQUESTS = 2048, 8192
EMPTY = Path(__file__).parents[1] / "build/empty.bpf.o"
#: How fio has requests under way: one at a time, as it does unless told otherwise, and enough for all CPUs.
LOADS = {
    "one at a time (psync)": ["--ioengine=psync"],
    "32 at a time (libaio)": ["--ioengine=libaio", "--iodepth=32"],
}


def figures(_: Path) -> list[Figure]:
    """Measure both under each load."""
    found = []
    with memory_device(SIZE) as device:
        fill = ["dd", "if=/dev/zero", f"of={device.path}", "bs=1M", f"count={SIZE // MIB}", "oflag=direct"]
        subprocess.run(fill, check=True, capture_output=True)
        for name, options in LOADS.items():
            with load(device, options, 200):
                found += [iops(device, name), run_time(name)]
    return found


@contextlib.contextmanager
def load(device: Device, options: Sequence[str], seconds: float) -> Iterator[None]:
    """Read and write blocks of 4 KiB at random meanwhile, for some seconds at most."""
    command = [
        "fio", "--name=bench", f"--filename={device.path}", "--rw=randrw", "--bs=4k", "--direct=1",
        f"--size={SIZE}", f"--runtime={seconds}", "--time_based", *options,
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


def iops(device: Device, name: str) -> Figure:
    """Compare requests a second with the programs and without, by turns.

    Programs are loaded and attached before each slice, and where the slice is without them, detached: that work
    alone has the scheduler move fio to another CPU, which is worth more than the programs.
    """
    without: list[float] = []
    within: list[float] = []
    for pair in range(PAIRS):
        # Each is first in every second pair: a device gets faster or slower with the machine around it.
        for attached in (False, True) if pair % 2 else (True, False):
            signal = DiskSignal.start(ROWS, REQUESTS)
            try:
                if not attached:
                    signal.close()
                time.sleep(SETTLING)
                (within if attached else without).append(rate(device))
            finally:
                signal.close()
    ratios = sorted(b / a - 1 for a, b in zip(without, within, strict=True))
    return Figure(
        f"Random 4 KiB requests a second, {name}, disk programs attached",
        f"{statistics.median(ratios):+.1%}",
        "-3 %",
        f"{PAIRS} pairs of {SLICE} s by turns during one fio (direct) on a loop device in memory; medians "
        f"{statistics.median(without):.0f} and {statistics.median(within):.0f} a second, "
        f"quarter to three quarters of the ratios {ratios[PAIRS // 4]:+.1%} to {ratios[3 * PAIRS // 4]:+.1%}",
    )


def run_time(name: str) -> Figure:
    """Measure the mean time of all disk programs for one request, without what measuring it takes."""
    with statistics_on():
        measuring = empty_run()
        signal = DiskSignal.start(ROWS, REQUESTS)
        try:
            time.sleep(5)
            info = infos(signal.bpf)
        finally:
            signal.close()
    count = info["disk_issued"].runs
    total = sum(i.run_time_ns - i.runs * measuring for i in info.values())
    each = ", ".join(f"{program} {i.run_time_ns / i.runs:.0f} ns x {i.runs}" for program, i in info.items())
    return Figure(
        f"Run time of the disk programs per request, {name}",
        f"{total / count:.0f} ns",
        "300 ns",
        f"run time of all of them (BPF_ENABLE_STATS) over {count} requests, less the {measuring:.0f} ns that a "
        f"program which does nothing shows for each run: {each}",
    )


def empty_run() -> float:
    """Return the ns that the kernel says a run takes of programs that do nothing, at the same events."""
    bpf = BpfObject(EMPTY).load().attach()
    try:
        time.sleep(2)
        info = infos(bpf).values()
        return sum(i.run_time_ns for i in info) / sum(i.runs for i in info)
    finally:
        bpf.close()


def infos(bpf: BpfObject) -> dict[str, ProgramInfo]:
    """Return the counts of the programs that have run."""
    found = {p.name: p.info() for p in bpf.programs.values() if p.is_loaded}
    return {name: info for name, info in found.items() if info.runs}
