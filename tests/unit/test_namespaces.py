# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path

import pytest

from tidegate.kernel.namespaces import network_namespaces, run_in_each

pytestmark = pytest.mark.unit


def fake_proc(directory: Path, processes: dict[str, str], mounted: dict[str, Path]) -> Path:
    """A /proc with the given process -> namespace, and namespaces that are mounted."""
    for process, name in processes.items():
        (directory / process / "ns").mkdir(parents=True)
        (directory / name).touch()
        os.link(directory / name, directory / process / "ns/net")
    lines = [f"1 1 0:4 net:[{n}] {path} rw shared:1 - nsfs nsfs rw" for n, path in enumerate(mounted.values())]
    lines += ["22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw"]
    (directory / "self/mountinfo").write_text("\n".join(lines))
    for path in mounted.values():
        path.touch()
    return directory


def test_each_namespace_once_and_ones_own_first(tmp_path: Path) -> None:
    (tmp_path / "mounted").mkdir()
    mounted = {"spare": tmp_path / "mounted/spare"}
    processes = {"self": "host", "1": "host", "7": "pod-a", "8": "pod-a", "30": "pod-b"}
    proc = fake_proc(tmp_path / "proc", processes, mounted)
    by_inode = network_namespaces(proc)
    found = list(by_inode.values())
    assert list(by_inode) == [path.stat().st_ino for path in found]
    assert found[0] == proc / "self/ns/net"
    assert {os.stat(path).st_ino for path in found} == {
        (proc / "host").stat().st_ino,
        (proc / "pod-a").stat().st_ino,
        (proc / "pod-b").stat().st_ino,
        mounted["spare"].stat().st_ino,
    }
    assert len(found) == 4


def test_what_is_no_process_or_has_ended_is_left_out(tmp_path: Path) -> None:
    proc = fake_proc(tmp_path, {"self": "host"}, {})
    (proc / "99").mkdir()  # its namespace is gone
    (proc / "net").mkdir()
    assert list(network_namespaces(proc).values()) == [proc / "self/ns/net"]


def test_a_namespace_that_may_not_be_looked_at_is_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proc = fake_proc(tmp_path, {"self": "host", "1": "init", "7": "pod-a", "8": "pod-b"}, {})
    stat = Path.stat

    def refuse(path: Path, **options: bool) -> os.stat_result:
        if path.parts[-3] in {"1", "8"} and path.name == "net":
            raise PermissionError(path)
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", refuse)
    assert set(network_namespaces(proc).values()) == {proc / "self/ns/net", proc / "7/ns/net", proc / "8/ns/net"}


def test_ones_own_needs_no_entering_and_what_can_not_be_entered_says_why(tmp_path: Path) -> None:
    calls: list[int] = []
    (tmp_path / "file").touch()
    gone = tmp_path / "gone/ns/net"
    refused = run_in_each([Path("/proc/self/ns/net"), tmp_path / "file", gone], lambda: calls.append(1))
    assert calls == [1]
    assert refused == [f"{tmp_path / 'file'}: setns: Invalid argument"]
