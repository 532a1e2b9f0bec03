# SPDX-License-Identifier: Apache-2.0
"""Limits, throttling, stalls and kills of real cgroups, against the kernel's own counts of each."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lab.lab import Lab
from tests.lab.agent import RunningAgent
from tests.lab.limited import HOST, Limited, kernel_kills
from tests.lab.remains import wait_until
from tidegate.identity.services import Service
from tidegate.measurement import Bounds, Measurement
from tidegate.model.resources import NodeResources, ResourceRow
from tidegate.model.snapshot import View
from tidegate.resources.table import Resources
from tidegate.signals.cgroup_files import CgroupFiles
from tidegate.signals.oom import OomSignal

pytestmark = pytest.mark.lab
MIB = 1 << 20
TOP = f"/tglab-resources-{os.getpid()}"
#: Touches memory until it is killed.
HOG = f"block = bytearray({200 * MIB})\nfor i in range(0, len(block), 4096): block[i] = 1"
#: Holds memory, says so, and waits until its stdin ends.
HOLD = "block = b'x' * int(sys.argv[1])\nprint('ready', flush=True)\nsys.stdin.read()"
BUSY = "import time\nend = time.monotonic() + 1\nwhile time.monotonic() < end: pass"
_numbers = iter(range(1000))

Make = Callable[..., Limited]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def make(stack: ExitStack) -> Make:
    def made(name: str, *, only: tuple[str, ...] = ()) -> Limited:
        return stack.enter_context(Limited(f"{TOP}-{next(_numbers)}/{name}", only=only))

    return made


@pytest.fixture
def measurement(stack: ExitStack) -> Measurement:
    return stack.enter_context(Measurement(Bounds(resource_interval=0.1)))


def row_of(view: View, cgroup: Limited) -> ResourceRow | None:
    service = cgroup.path.rpartition("/")[2]
    return next((row for row in view.resources or () if row.service == service), None)


def found(view: View, cgroup: Limited) -> ResourceRow:
    row = row_of(view, cgroup)
    assert row is not None, [each.service for each in view.resources or ()]
    return row


def measured_until(
    measurement: Measurement, cgroup: Limited, done: Callable[[ResourceRow], bool]
) -> tuple[View, ResourceRow]:
    """Measure until the row of a cgroup is there and as wanted."""
    views: list[View] = []

    def is_done() -> bool:
        views.append(measurement.measure())
        row = row_of(views[-1], cgroup)
        return row is not None and done(row)

    wait_until(is_done, "measured as it should be")
    return views[-1], found(views[-1], cgroup)


def node_of(view: View) -> NodeResources:
    assert view.node.resources is not None
    return view.node.resources


def kill(cgroup: Limited, times: int) -> None:
    """Have the kernel kill so many processes of a cgroup, one after the other."""
    for _ in range(times):
        assert cgroup.start(HOG).wait(timeout=60) == -signal.SIGKILL


def test_kills_are_those_of_the_kernels_own_count(make: Make, measurement: Measurement) -> None:
    hungry, other = make("hungry.service"), make("other.service")
    before = kernel_kills(), node_of(measurement.measure()).oom_kills
    for cgroup in (hungry, other):
        cgroup.limit_memory(30 * MIB)
    kill(hungry, 5)
    kill(other, 1)
    killed = other.start("import time; time.sleep(60)")
    killed.kill()  # the same signal, but not by the kernel
    killed.wait()
    view, row = measured_until(measurement, hungry, lambda row: row.oom_kills == 5)
    assert (row.oom_kills, found(view, other).oom_kills) == (5, 1)
    assert (hungry.oom_kills(), other.oom_kills()) == (5, 1)
    assert row.memory_limit == 30 * MIB
    # Others on this machine may lose processes meanwhile; they are in both counts of the node.
    wait_until(
        lambda: node_of(measurement.measure()).oom_kills - before[1] == kernel_kills() - before[0] >= 6,
        "the kernel's count",
    )
    view = measurement.measure()
    assert view.health.losses["oom_unattributed"] == view.health.events_lost["oom_events"] == 0


def test_a_victim_keeps_its_service_when_its_cgroup_is_removed_right_after(
    make: Make, measurement: Measurement
) -> None:
    measurement.measure()
    counts = {"a.service": 1, "b.service": 2, "c.service": 3}
    gone = []
    for name, times in counts.items():
        cgroup = make(name)
        cgroup.limit_memory(30 * MIB)
        kill(cgroup, times)
        cgroup.remove()
        gone.append(cgroup)
    view = measurement.measure()
    assert {row.service: row.oom_kills for row in view.resources or () if row.service in counts} == counts
    assert found(view, gone[0]).memory is None
    assert found(measurement.measure(), gone[2]).oom_kills == 3
    assert view.health.losses["oom_unattributed"] == 0


def test_the_victim_is_reported_and_not_who_asked_for_memory(make: Make) -> None:
    cgroup = make("shared.service")
    cgroup.limit_memory(60 * MIB)
    oom = OomSignal.start()
    try:
        large = cgroup.start(HOLD, str(40 * MIB), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert large.stdout is not None
        assert large.stdout.readline() == "ready\n"
        small = cgroup.start(HOLD, str(25 * MIB), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert large.wait(timeout=60) == -signal.SIGKILL
        wait_until(lambda: cgroup.oom_kills() == 1, "counted by the kernel")
        (event,) = oom.read()
        assert (event.pid, event.comm[:6]) == (large.pid, b"python")
        inode = (Path(HOST.cgroup2 or "") / cgroup.path.lstrip("/")).stat().st_ino
        assert event.cgroup == inode
        assert event.path == (cgroup.path.encode() if "memory" in HOST.controllers else None)
    finally:
        oom.close()
        cgroup.remove()
        for process in (large, small):
            process.communicate()


@pytest.mark.skipif("memory" not in HOST.controllers, reason="needs a v1 memory hierarchy: this host has none")
def test_a_cgroup_that_only_v1_has_is_a_service_too(make: Make, stack: ExitStack) -> None:
    cgroup = make("v1-only.service", only=("memory",))
    cgroup.limit_memory(30 * MIB)
    measurement = stack.enter_context(Measurement(Bounds(resource_interval=0.1)))
    kill(cgroup, 2)
    _, row = measured_until(measurement, cgroup, lambda row: row.oom_kills == 2)
    assert (row.cgroup, row.memory_limit, row.cpu_seconds) == (cgroup.path, 30 * MIB, None)
    assert cgroup.oom_kills() == 2


def test_cpu_time_and_throttling_are_the_kernels(make: Make, measurement: Measurement) -> None:
    cgroup = make("slow.service")
    cgroup.limit_cpu(0.2)
    measured_until(measurement, cgroup, lambda _: True)
    shares, rates = [], []
    process = cgroup.start(BUSY)
    while process.poll() is None:
        row = row_of(measurement.measure(), cgroup)
        if row is not None and row.throttled:
            shares.append(row.throttled)
            rates.append(row.cpu)
        time.sleep(0.1)
    assert shares
    assert max(shares) <= 1
    assert all(rate is not None and rate > 0 for rate in rates)
    # At rest nothing changes any more, the time for which it was stopped at last included.
    _, row = measured_until(measurement, cgroup, lambda row: row.cpu == row.throttled == 0)
    periods, throttled, seconds = cgroup.throttled()
    assert 0 < throttled <= periods
    assert row.throttled_seconds == pytest.approx(seconds, abs=1e-9)
    assert row.cpu_seconds == pytest.approx(cgroup.cpu_seconds(), abs=1e-9)
    assert (row.cpu_limit, row.throttled) == (0.2, 0.0)


def test_memory_is_what_the_kernel_charges(make: Make, measurement: Measurement) -> None:
    cgroup = make("holder.service")
    cgroup.limit_memory(200 * MIB)
    process = cgroup.start(HOLD, str(50 * MIB), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    _, row = measured_until(measurement, cgroup, lambda row: (row.memory or 0) == cgroup.memory())
    assert (row.memory or 0) > 50 * MIB
    assert 50 * MIB < (row.memory_working_set or 0) <= (row.memory or 0)
    assert row.memory_limit == 200 * MIB
    process.communicate()


def test_stalls_are_those_of_the_kernels_files(make: Make, measurement: Measurement) -> None:
    if not HOST.pressure:
        pytest.skip("this kernel keeps no stalls (PSI)")
    cgroup = make("busy.service")
    several = [cgroup.start(BUSY) for _ in range(2 * (os.cpu_count() or 1))]
    for process in several:
        process.wait()
    file = Path(HOST.cgroup2 or "") / cgroup.path.lstrip("/") / "cpu.pressure"
    total = int(file.read_text().split("total=")[1].split()[0]) / 1e6
    _, row = measured_until(measurement, cgroup, lambda row: row.cpu == 0)
    assert row.pressure is not None
    assert row.pressure["cpu"].some_seconds == pytest.approx(total, abs=1e-9) != 0
    before = Path("/proc/pressure/cpu").read_text()
    time.sleep(0.1)
    node = node_of(measurement.measure())
    after = Path("/proc/pressure/cpu").read_text()
    assert node.pressure is not None
    low, high = (int(text.split("total=")[1].split()[0]) / 1e6 for text in (before, after))
    assert low <= node.pressure["cpu"].some_seconds <= high


def test_the_node_is_what_its_files_say(measurement: Measurement) -> None:
    def steal() -> float:
        return int(Path("/proc/stat").read_text().split()[8]) / os.sysconf("SC_CLK_TCK")

    begin, before = time.monotonic(), steal()
    # A clock tick is the unit of these files.
    wait_until(
        lambda: node_of(measurement.measure()).cpu is not None and time.monotonic() > begin + 0.5, "measured"
    )
    node = node_of(measurement.measure())
    after = steal()
    if HOST.virtual:
        assert node.steal_seconds is not None
        assert node.steal is not None
        assert before <= node.steal_seconds <= after
        assert 0 <= node.steal <= 1
    else:
        assert (node.steal, node.steal_seconds) == (None, None)
    assert node.memory_total == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert node.cpu is not None
    assert 0 <= node.cpu <= (os.cpu_count() or 1)


def test_cgroups_that_come_and_go_are_no_error(lab: Lab, measurement: Measurement) -> None:
    for n in range(200):
        cgroup = lab.cgroup / f"fleeting-{n}.service"
        cgroup.mkdir()
        if n % 7 == 0:
            measurement.measure()
        cgroup.rmdir()
        if n % 5 == 0:
            measurement.measure()
    view = measurement.measure()
    assert not [row for row in view.resources or () if row.service.startswith("fleeting-")]


def test_a_cgroup_that_goes_before_it_is_read_is_skipped_and_counted(make: Make) -> None:
    assert HOST.cgroup2 is not None
    files = CgroupFiles(Path(HOST.cgroup2), {name: Path(point) for name, point in HOST.controllers.items()})
    resources = Resources(files, interval=0.1, per_second=100, most=100)
    here, late = make("here.service"), make("late.service")
    services = {Service("here.service"): [here.path], Service("late.service"): [late.path]}
    late.remove()
    resources.read(services, 0.0)
    assert [row.service for row in resources.rows({}, {})] == ["here.service"]
    assert resources.skipped() == {"cgroups": 1}
    here.remove()  # its figures are known: nothing is missing
    resources.read(services, 1.0)
    assert (resources.rows({}, {}), resources.skipped()) == ((), {"cgroups": 1})


def test_metrics_have_kills_limits_and_stalls_of_services_and_the_node(make: Make, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    cgroup = make("hungry.service")
    cgroup.limit_memory(30 * MIB)
    with RunningAgent(tmp_path, port, signals="resources: {interval: 100ms}") as agent:
        kill(cgroup, 2)
        kills = "tidegate_oom_kills_total"
        agent.wait_for("kills", lambda: agent.samples(kills, "service").get("hungry.service") == 2)
        assert agent.samples("tidegate_service_memory_limit_bytes", "service")["hungry.service"] == 30 * MIB
        used = pytest.approx(cgroup.cpu_seconds(), abs=1e-9)  # nothing runs there any more
        cpu = "tidegate_service_cpu_seconds_total"
        agent.wait_for("all CPU time", lambda: agent.samples(cpu, "service").get("hungry.service") == used)
        if HOST.pressure:
            assert set(agent.samples("tidegate_pressure_seconds_total", "resource")) == {"cpu", "memory", "io"}
            assert "hungry.service" in agent.samples("tidegate_service_pressure_seconds_total", "service")
        steal = [
            line for line in agent.metrics().splitlines() if line.startswith("tidegate_cpu_steal_seconds_total ")
        ]
        assert len(steal) == HOST.virtual
        assert agent.samples("tidegate_losses_total", "kind")["oom_unattributed"] == 0
        agent.stop()
        _, log = agent.process.communicate()
        assert log.count("out of memory: the kernel killed python") == 2
