# SPDX-License-Identifier: Apache-2.0
"""The audit trail, in real files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tidegate import audit
from tidegate.audit import Action, Actor, Audit

pytestmark = pytest.mark.unit
DAY = 86_400.0
START = 1_795_600_000.25
ROOT = Actor(uid=0, pid=4711, name="alice")


class Clock:
    """A clock that stands until it's set."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def opened(tmp_path: Path, clock: Clock) -> Callable[..., Audit]:
    def make(max_size: int = 1 << 20, files: int = 3, retention: float = 30 * DAY) -> Audit:
        return Audit(
            tmp_path / "log" / "audit.jsonl", max_size=max_size, files=files, retention=retention, now=clock
        )

    return make


def ban(trail: Audit, number: int = 0) -> bool:
    return trail.record(Action.BAN, by=ROOT, subject="198.51.100.0/24", reason="by hand", details={"n": number})


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def numbers(path: Path) -> list[int]:
    return [line["details"]["n"] for line in lines(path)]


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_record_is_one_line_with_fixed_fields(tmp_path: Path, opened: Callable[..., Audit]) -> None:
    trail, path = opened(), tmp_path / "log" / "audit.jsonl"
    assert ban(trail)
    assert trail.record(Action.MODE, by=ROOT, reason="two\nlines")
    assert lines(path) == [
        {
            "time": "2026-11-25T09:46:40.250Z",
            "action": "ban",
            "by": {"uid": 0, "pid": 4711, "name": "alice"},
            "subject": "198.51.100.0/24",
            "reason": "by hand",
            "details": {"n": 0},
        },
        {
            "time": "2026-11-25T09:46:40.250Z",
            "action": "mode",
            "by": {"uid": 0, "pid": 4711, "name": "alice"},
            "subject": None,
            "reason": "two\nlines",
            "details": {},
        },
    ]
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o750
    assert trail.health() == audit.AuditHealth(2, 0, None)


def test_text_that_is_not_unicode_is_on_the_record(tmp_path: Path, opened: Callable[..., Audit]) -> None:
    trail = opened()
    assert trail.record(Action.POOL, by=ROOT, reason="failed", details={"error": "cluster \ud800"})
    assert lines(tmp_path / "log" / "audit.jsonl")[0]["details"] == {"error": "cluster \ud800"}


def test_a_file_that_would_grow_too_large_is_moved_on(tmp_path: Path, opened: Callable[..., Audit]) -> None:
    trail, directory = opened(max_size=600), tmp_path / "log"
    for number in range(20):
        assert ban(trail, number)
    assert names(directory) == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]
    kept = [numbers(directory / name) for name in reversed(names(directory))]
    assert all((directory / name).stat().st_size <= 600 for name in names(directory))
    assert [number for part in kept for number in part] == list(range(20 - sum(map(len, kept)), 20))
    assert all(len(part) >= 2 for part in kept[:2])
    assert trail.health() == audit.AuditHealth(20, 0, None)


def test_one_file_alone_begins_anew(tmp_path: Path, opened: Callable[..., Audit]) -> None:
    trail = opened(max_size=300, files=1)
    for number in range(5):
        ban(trail, number)
    assert names(tmp_path / "log") == ["audit.jsonl"]
    assert numbers(tmp_path / "log" / "audit.jsonl")[-1] == 4


def test_no_record_is_older_than_the_retention(tmp_path: Path, opened: Callable[..., Audit], clock: Clock) -> None:
    trail, directory = opened(files=100), tmp_path / "log"
    directory.mkdir()
    (directory / "audit.jsonl.bak").write_text("somebody's", encoding="ascii")
    for day in range(100):
        clock.now = START + day * DAY
        ban(trail, day)
        trail.tidy()
        kept = sorted(number for path in directory.glob("audit.json*[!k]") for number in numbers(path))
        # None is older than 30 days, and what goes early is at most the tenth that a file covers.
        assert kept == list(range(kept[0], day + 1))
        assert max(0, day - 30) <= kept[0] <= max(0, day - 30 + 4)
    assert (directory / "audit.jsonl.bak").exists()
    clock.now += 100 * DAY
    trail.tidy()  # nothing was recorded for long
    assert names(directory) == ["audit.jsonl.bak"]
    assert ban(trail, 7)
    assert numbers(directory / "audit.jsonl") == [7]


def test_a_new_agent_goes_on_where_the_last_one_ended(
    tmp_path: Path, opened: Callable[..., Audit], clock: Clock
) -> None:
    first, path = opened(), tmp_path / "log" / "audit.jsonl"
    ban(first, 1)
    first.close()
    ban(opened(), 2)
    assert numbers(path) == [1, 2]
    clock.now += 3.5 * DAY  # past the tenth of the retention, by the file's first record
    ban(opened(), 3)
    assert (numbers(path.with_name("audit.jsonl.1")), numbers(path)) == ([1, 2], [3])


@pytest.mark.parametrize("moved", [True, False])
def test_a_file_that_logrotate_takes_away_is_made_anew(
    tmp_path: Path, opened: Callable[..., Audit], moved: bool
) -> None:
    trail, path = opened(), tmp_path / "log" / "audit.jsonl"
    ban(trail, 1)
    if moved:
        path.rename(tmp_path / "taken")
        path.touch(0o640)  # logrotate's create
    else:
        path.unlink()
    ban(trail, 2)
    assert numbers(path) == [2]
    assert path.stat().st_mode & 0o777 == (0o640 if moved else 0o600)
    path.write_bytes(b"")  # copytruncate
    ban(trail, 3)
    assert numbers(path) == [3]


def test_what_cannot_be_written_is_counted_and_said(tmp_path: Path, opened: Callable[..., Audit]) -> None:
    trail, directory = opened(), tmp_path / "log"
    directory.write_text("no directory", encoding="ascii")
    assert not ban(trail)
    assert not ban(trail)
    health = trail.health()
    assert (health.written, health.lost) == (0, 2)
    assert health.error is not None
    assert health.error.startswith(f"audit.file {directory / 'audit.jsonl'}: ")
    directory.unlink()
    assert ban(trail, 5)
    assert trail.health() == audit.AuditHealth(1, 2, None)


@pytest.mark.parametrize("kind", ["fifo", "link", "directory"])
def test_only_a_regular_file_is_written(tmp_path: Path, opened: Callable[..., Audit], kind: str) -> None:
    trail, path = opened(), tmp_path / "log" / "audit.jsonl"
    path.parent.mkdir()
    other = tmp_path / "other"
    other.touch()
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "link":
            path.symlink_to(other)
        case _:
            path.mkdir()
    assert not ban(trail)
    assert trail.health().lost == 1
    assert other.read_bytes() == b""


def test_a_line_without_its_end_is_left_alone(tmp_path: Path, opened: Callable[..., Audit]) -> None:
    path = tmp_path / "log" / "audit.jsonl"
    path.parent.mkdir()
    path.write_bytes(b'{"time":"2026')
    trail = opened()
    ban(trail, 1)
    ban(trail, 2)
    torn, *rest = path.read_bytes().splitlines()
    assert torn == b'{"time":"2026'
    assert [json.loads(line)["details"]["n"] for line in rest] == [1, 2]


WRITER = """
import sys
from pathlib import Path
from tidegate.audit import Action, Audit, agent
trail = Audit(Path(sys.argv[1]), max_size=int(sys.argv[2]), files=900, retention=1e9)
sys.stdin.read(1)
for number in range(300):
    trail.record(Action.BAN, by=agent(), details={"n": number, "pad": "x" * (number % 50 * 20)})
assert trail.health().written == 300, trail.health()
"""


@pytest.mark.parametrize("max_size", [1 << 30, 20_000])
def test_records_of_several_processes_do_not_mix(tmp_path: Path, max_size: int) -> None:
    """Neither in one file, nor while both begin new ones: each record is there once."""
    path = tmp_path / "audit.jsonl"
    argv = [sys.executable, "-c", WRITER, str(path), str(max_size)]
    writers = [subprocess.Popen(argv, stdin=subprocess.PIPE) for _ in range(3)]
    try:
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write(b"\n")
            writer.stdin.flush()
        assert [writer.wait(30) for writer in writers] == [0, 0, 0]
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    found = [line for file in tmp_path.iterdir() for line in lines(file)]
    assert sorted((line["by"]["pid"], line["details"]["n"]) for line in found) == sorted(
        (writer.pid, number) for writer in writers for number in range(300)
    )
    # How many files is open: one that finds another writer at it writes on, and moves on later.
    assert (len(names(tmp_path)) > 1) == (max_size == 20_000)


def test_who_is_behind_a_peer(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "loginuid").write_text("65534", encoding="ascii")
    assert audit.actor(7, 0, tmp_path) == Actor(uid=0, pid=7, name="nobody")  # past sudo
    (tmp_path / "7" / "loginuid").write_text("4294967295", encoding="ascii")
    assert audit.actor(7, 0, tmp_path) == Actor(uid=0, pid=7, name="root")
    assert audit.actor(8, 0, tmp_path) == Actor(uid=0, pid=8, name="root")  # gone
    assert audit.actor(8, 3_999_999_999, tmp_path).name == "3999999999"
    assert audit.agent() == Actor(uid=os.geteuid(), pid=os.getpid(), name="agent")
