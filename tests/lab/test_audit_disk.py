# SPDX-License-Identifier: Apache-2.0
"""The audit trail on a disk that is full: what is lost is counted, and what is written can be read."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tidegate.audit import Action, Audit, agent

pytestmark = pytest.mark.lab
_LIBC = ctypes.CDLL(None, use_errno=True)
SIZE = 128 * 1024


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    mounted = tmp_path / "disk"
    mounted.mkdir()
    if _LIBC.mount(b"tmpfs", os.fsencode(mounted), b"tmpfs", 0, f"size={SIZE}".encode()):
        raise OSError(ctypes.get_errno(), "mount of a tmpfs")
    try:
        yield mounted
    finally:
        _LIBC.umount2(os.fsencode(mounted), 2)  # MNT_DETACH


@pytest.mark.parametrize("max_size", [1 << 30, 20_000])
def test_a_full_disk_loses_records_and_counts_them(disk: Path, max_size: int) -> None:
    trail = Audit(disk / "audit.jsonl", max_size=max_size, files=900, retention=1e9)
    ballast = disk / "ballast"
    ballast.write_bytes(b"x" * (SIZE // 2))
    done = [trail.record(Action.BAN, by=agent(), details={"n": number, "pad": "x" * 300}) for number in range(400)]
    health = trail.health()
    assert health.written == sum(done)
    assert health.lost == 400 - sum(done)
    assert 100 < health.written < 300  # half of the disk, at some 450 bytes
    assert health.error is not None
    assert "No space left on device" in health.error
    ballast.unlink()
    assert trail.record(Action.BAN, by=agent(), details={"n": 400})
    assert trail.health().error is None
    trail.close()

    found, torn = [], 0
    for file in disk.iterdir():
        for line in file.read_bytes().splitlines():
            try:
                found.append(json.loads(line)["details"]["n"])
            except json.JSONDecodeError:
                torn += 1
    assert sorted(found) == [number for number, was in enumerate(done) if was] + [400]
    assert torn <= health.lost
