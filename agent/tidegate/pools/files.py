# SPDX-License-Identifier: Apache-2.0
"""Files of proxies that others own and read while they are written: replaced whole, or left as they were."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

from tidegate.errors import DriverError

_LARGEST = 16 << 20
#: What decides who may read a file besides its mode: its access list, and SELinux's label.
_ATTRIBUTES = ("system.posix_acl_access", "security.selinux")
#: The file or the filesystem has no such attribute, or this process may not set it.
_WITHOUT = (errno.ENOTSUP, errno.ENODATA, errno.EPERM, errno.EACCES, errno.EINVAL)


def read(path: Path) -> bytes:
    """Return what a file holds; raises FileNotFoundError where there is none, else DriverError."""
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DriverError(
            f"{path}: can't be read: {error.strerror or error}; the agent needs to read and write it"
        ) from error
    if len(data) > _LARGEST:
        raise DriverError(
            f"{path}: expected {_LARGEST >> 20} MiB at most, found more; check that this is the file"
        )
    return data


def changed_at(path: Path) -> float:
    """Return when what a file holds, or its name, was changed last, in seconds since 1970; 0 if it isn't there.

    Unlike the time of its last modification nobody can set that back.
    """
    try:
        return path.stat().st_ctime
    except FileNotFoundError:
        return 0.0
    except OSError as error:
        raise DriverError(
            f"{path}: can't be looked at: {error.strerror or error}; let the agent read it"
        ) from error


def replace(path: Path, data: bytes, like: Path | None = None, expected: bytes | None = None) -> None:
    """Have a file hold these bytes: readers see all of the old or all of the new, also after a crash.

    Mode, owner and access list are those of ``like``: by default the file's own; where there is none, 0644 and
    this process's. A symbolic link stays one, and the file that it leads to is replaced. ``expected`` is what the
    file must hold until then, or somebody else has written it meanwhile. Raises DriverError; nothing has changed
    then, but where the disk fails after the exchange itself.
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}.tidegate")  # matched by no include of "*" or "*.conf"
    try:
        temporary.unlink(missing_ok=True)  # of one that was killed
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(temporary, flags, 0o600)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                _copy_rights(path if like is None else like, file.fileno())
                os.fsync(file.fileno())
            if expected is not None and read(path) != expected:
                raise DriverError(f"{path}: somebody else has just written it; it is looked at again")
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise DriverError(
            f"{path}: can't be written: {error.strerror or error}; it is as it was: make room, and let the agent "
            f"write in {path.parent}"
        ) from error
    try:
        _sync(path.parent)
    except OSError as error:
        raise DriverError(
            f"{path}: is written, but may be lost in a crash: {error.strerror or error}; look at the disk"
        ) from error


def _copy_rights(like: Path, to: int) -> None:
    """Give an open file the owner, the mode and the access list of another one."""
    try:
        source = os.open(like, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        os.fchmod(to, 0o644)
        return
    try:
        wanted, is_so = os.fstat(source), os.fstat(to)
        if (wanted.st_uid, wanted.st_gid) != (is_so.st_uid, is_so.st_gid):
            os.fchown(to, wanted.st_uid, wanted.st_gid)
        os.fchmod(to, stat.S_IMODE(wanted.st_mode))
    finally:
        os.close(source)
    for name in _ATTRIBUTES:
        try:
            os.setxattr(to, name, os.getxattr(like, name))
        except OSError as error:
            if error.errno not in _WITHOUT:
                raise


def _sync(directory: Path) -> None:
    """Have a rename in a directory survive a crash."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
