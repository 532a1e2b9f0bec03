# SPDX-License-Identifier: Apache-2.0
"""Journals, and the lease that has them put back."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tidegate.config.pools import HaproxyDriver
from tidegate.errors import DriverError
from tidegate.pools import guard
from tidegate.pools.journal import Journal, Kept, file_name, read
from tidegate.pools.lease import Lease
from tidegate.pools.making import from_journal, journal_of, kept_in, names

pytestmark = pytest.mark.unit

A, B = "10.0.0.6:5000", "10.0.0.7:5000"


def kept(pool: str = "inventory", driver: str = "haproxy") -> Kept:
    return Kept(pool=pool, driver=driver, endpoints=(A, B), config={"type": "haproxy", "backend": "b"})


def test_it_is_on_disk_before_it_returns_and_gone_when_all_is_put_back(tmp_path: Path) -> None:
    path = tmp_path / "journals" / "inventory.json"
    journal = Journal(path, kept())
    journal.put({A: {"state": "ready", "weight": 3}})
    assert read(path).entries == {A: {"state": "ready", "weight": 3}}
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    again = Journal(path, kept())
    assert (again[A], A in again, again.get(B)) == ({"state": "ready", "weight": 3}, True, None)
    journal.put({B: None})
    assert (B in again, set(again.entries)) == (False, {A})
    with again.turn():
        assert again.entries.keys() == {A, B}
    again.drop(A, "unknown")
    again.clear()
    assert [file.name for file in path.parent.iterdir()] == [".inventory.json.lock"]
    journal.refresh()
    assert not journal.entries


def test_a_turn_keeps_others_out(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "inventory.json", kept())
    with journal.turn():
        other = os.open(tmp_path / ".inventory.json.lock", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)


def test_what_it_cannot_keep_is_an_error_and_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    journal = Journal(tmp_path / "file" / "inventory.json", kept())
    with pytest.raises(DriverError, match=r"journal .*: can't be written, so the proxy is left as it is: .*"):
        journal.put({A: 1})
    assert not journal.entries


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pool": 1}', '{"pool": "a"}'])
def test_what_is_no_journal_says_so(tmp_path: Path, text: str) -> None:
    path = tmp_path / "inventory.json"
    path.write_text(text, encoding="ascii")
    with pytest.raises(DriverError, match="expected what this program writes"):
        read(path)
    good = Journal(tmp_path / "good.json", kept())
    good.put({A: 1})
    found, complaints = kept_in(tmp_path)
    assert [file.name for file, _ in found] == ["good.json"]
    assert len(complaints) == 1


def test_names_of_files_are_never_the_same_of_two() -> None:
    several = [
        kept("a", "b"), kept("a.b", ""), kept("a/b"), kept("a%2fb"), kept("A"), kept("a", "haproxy:2"), kept("a"),
        Kept(pool="a", driver="haproxy", endpoints=(), config={"type": "haproxy", "backend": "c"}),
    ]  # fmt: skip
    found = [file_name(each) for each in several]
    assert len(set(found)) == len(found)
    assert not any("/" in name for name in found)


def test_a_journal_knows_its_driver(tmp_path: Path) -> None:
    (name, section), (second, _) = names([HaproxyDriver(backend="b", socket="/x"), HaproxyDriver(backend="c")])
    assert (name, second) == ("haproxy", "haproxy:2")
    journal_of(tmp_path, "inventory", name, section, (A, B)).put({A: {}})
    ((path, found),) = kept_in(tmp_path)[0]
    driver, _ = from_journal(path, found)
    assert driver.target == "haproxy /x backend b"
    driver.close()


def run_guard(seconds: float, said: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", f"open({str(said)!r}, 'w').write('put back')"]
    argv = [sys.executable, "-I", "-S", guard.__file__, str(seconds), *command]
    return subprocess.Popen(argv, stdin=subprocess.PIPE)


def test_a_guard_acts_a_lease_after_the_end_of_who_gave_it_word(tmp_path: Path) -> None:
    said = tmp_path / "said"
    child = run_guard(0.3, said)
    assert child.stdin is not None
    os.write(child.stdin.fileno(), guard.WORD)
    began = time.monotonic()
    child.stdin.close()
    assert child.wait(10) == 0
    assert time.monotonic() - began >= 0.25
    assert said.read_text(encoding="ascii") == "put back"


def test_a_guard_acts_when_there_is_no_word(tmp_path: Path) -> None:
    child = run_guard(0.3, tmp_path / "said")
    assert child.wait(10) == 0
    assert (tmp_path / "said").exists()
    assert child.stdin is not None
    child.stdin.close()


def test_a_guard_does_nothing_while_there_is_word_or_when_all_is_done(tmp_path: Path) -> None:
    child = run_guard(1.0, tmp_path / "said")
    assert child.stdin is not None
    for _ in range(15):
        os.write(child.stdin.fileno(), guard.WORD)
        time.sleep(0.1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        child.send_signal(number)
    assert child.poll() is None
    os.write(child.stdin.fileno(), guard.WORD + guard.DONE)
    assert child.wait(10) == 0
    assert not (tmp_path / "said").exists()
    child.stdin.close()


def test_a_lease_starts_its_child_when_it_is_needed_and_anew_when_it_is_gone(tmp_path: Path) -> None:
    lease = Lease(60.0, tmp_path, tmp_path / "lock")
    lease.renew()
    assert lease.child is None
    lease.begin()
    first = lease.child
    assert first is not None
    first.kill()
    first.wait()
    lease.renew()
    second = lease.child
    assert second is not None
    assert second.pid != first.pid
    lease.end(is_whole=True)
    assert second.wait(10) == 0
