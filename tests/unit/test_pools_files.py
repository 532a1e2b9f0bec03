# SPDX-License-Identifier: Apache-2.0
"""Files of proxies are replaced whole or left as they were."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from tidegate.errors import DriverError
from tidegate.pools import files

pytestmark = pytest.mark.unit


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_file_is_replaced_with_its_mode_and_owner(tmp_path: Path) -> None:
    path = tmp_path / "servers.conf"
    path.write_bytes(b"old")
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 1234, 4321)
    before = path.stat()
    files.replace(path, b"new")
    after = path.stat()
    assert files.read(path) == b"new"
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert after.st_ino != before.st_ino, "who has it open keeps the old one"
    assert names(tmp_path) == ["servers.conf"]


def test_a_new_file_is_like_another_or_readable_by_all(tmp_path: Path) -> None:
    model = tmp_path / "nginx.conf"
    model.write_bytes(b"")
    model.chmod(0o604)
    files.replace(tmp_path / "first", b"1", like=model)
    files.replace(tmp_path / "second", b"2")
    assert stat.S_IMODE((tmp_path / "first").stat().st_mode) == 0o604
    assert stat.S_IMODE((tmp_path / "second").stat().st_mode) == 0o644


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real/file")
    files.replace(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "file").read_bytes() == b"new"


def test_what_somebody_else_has_written_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "servers.conf"
    path.write_bytes(b"theirs")
    with pytest.raises(DriverError, match="somebody else"):
        files.replace(path, b"ours", expected=b"what we read")
    assert path.read_bytes() == b"theirs"
    files.replace(path, b"ours", expected=b"theirs")
    assert path.read_bytes() == b"ours"
    assert names(tmp_path) == ["servers.conf"]


def test_what_a_killed_writer_left_is_no_obstacle_and_is_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "servers.conf"
    path.write_bytes(b"old")
    (tmp_path / "other").write_bytes(b"other")
    (tmp_path / ".servers.conf.tidegate").symlink_to("other")
    files.replace(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["other", "servers.conf"]
    assert (tmp_path / "other").read_bytes() == b"other"


def test_a_full_disk_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "servers.conf"
    path.write_bytes(b"old")

    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DriverError, match=r"servers\.conf: can't be written: No space left on device"):
        files.replace(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["servers.conf"]


def test_what_is_not_there_or_too_large_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files.read(tmp_path / "none")
    with pytest.raises(DriverError, match="can't be read"):
        files.read(tmp_path)
    with pytest.raises(DriverError, match="can't be written"):
        files.replace(tmp_path / "none" / "file", b"")
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(files._LARGEST + 1)
    with pytest.raises(DriverError, match="16 MiB at most"):
        files.read(large)
