# SPDX-License-Identifier: Apache-2.0
"""What the agent says of itself: its ticks, its process, its programs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tidegate.health import Usage, program_health, share, usage
from tidegate.kernel.objects import ProgramInfo
from tidegate.model.snapshot import ProgramHealth, Ticks
from tidegate.schedule import Schedule

pytestmark = pytest.mark.unit


def test_ticks_that_are_on_time_keep_their_beat() -> None:
    schedule = Schedule(10.25)
    for n, now in enumerate((10.25, 11.26, 12.34), start=1):
        ticks = schedule.begin(now, 1.0)
        assert (ticks.taken, ticks.late, ticks.skipped) == (n, 0, 0)
    assert ticks.late_seconds == pytest.approx(0.09)
    assert schedule.due == pytest.approx(13.25)


def test_a_late_tick_is_counted_and_the_next_is_on_the_old_beat() -> None:
    schedule = Schedule(0.0)
    schedule.begin(0.0, 1.0)
    assert schedule.begin(1.5, 1.0) == Ticks(taken=2, late=1, skipped=0, late_seconds=0.5)
    assert schedule.due == 2.0


def test_what_was_due_during_a_long_tick_is_skipped_and_counted() -> None:
    schedule = Schedule(0.0)
    schedule.begin(0.0, 0.5)
    ticks = schedule.begin(2.25, 0.5)  # due at 0.5; 1.0, 1.5 and 2.0 are gone
    assert (ticks.late, ticks.skipped, ticks.late_seconds) == (1, 3, 1.75)
    assert schedule.due == 2.5


def test_the_first_tick_waits_for_the_start_and_is_not_late() -> None:
    assert Schedule(0.0).begin(0.4, 1.0).late == 0


def test_the_interval_may_change_meanwhile() -> None:
    schedule = Schedule(0.0)
    schedule.begin(0.0, 1.0)
    schedule.begin(1.0, 0.1)
    assert schedule.due == pytest.approx(1.1)


def test_usage_is_of_this_process(tmp_path: Path) -> None:
    statm = tmp_path / "statm"
    statm.write_text("7000 1024 300 1 0 200 0\n", encoding="ascii")
    assert usage(statm).rss_bytes == 1024 * os.sysconf("SC_PAGE_SIZE")
    assert usage(tmp_path / "none").rss_bytes is None
    rss = usage().rss_bytes
    assert rss is not None
    assert rss > 5 << 20


def test_share_of_a_cpu_is_of_the_interval() -> None:
    before, now = Usage(10.0, 3.0, None), Usage(12.0, 3.5, None)
    assert share(before, now) == 0.25
    assert share(before, before) is None


@pytest.mark.parametrize(
    ("runs", "statistics", "expected"),
    [
        (0, False, ProgramHealth(runs=None, seconds=None, misses=2)),
        (0, True, ProgramHealth(runs=0, seconds=0.0, misses=2)),
        (5, False, ProgramHealth(runs=5, seconds=1e-6, misses=2)),  # another process holds BPF_ENABLE_STATS
    ],
)
def test_runs_are_unmeasured_where_nobody_has_them_counted(
    runs: int, statistics: bool, expected: ProgramHealth
) -> None:
    info = ProgramInfo(id=1, run_time_ns=200 * runs, runs=runs, recursion_misses=2)
    assert program_health({"tcp_state": info}, statistics) == {"tcp_state": expected}


def test_a_program_that_did_not_run_has_zero_where_others_are_counted() -> None:
    infos = {"a": ProgramInfo(1, 90, 3, None), "b": ProgramInfo(2, 0, 0, None)}
    assert program_health(infos, False)["b"] == ProgramHealth(runs=0, seconds=0.0, misses=None)
