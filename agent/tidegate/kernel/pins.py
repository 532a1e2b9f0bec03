# SPDX-License-Identifier: Apache-2.0
"""The directory in bpffs that keeps links and maps alive beyond the agent, held by one agent at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

from tidegate.errors import KernelError, TidegateError, UnavailableError
from tidegate.kernel.charge import MapShape
from tidegate.kernel.libbpf import check, ffi, lib

#: The source of a bpffs that Tidegate mounted, by which it is known again when it is to be unmounted.
SOURCE = "tidegate"
PINS = Path("/sys/fs/bpf/tidegate")
#: The name of the link in an interface's directory.
LINK = "link"
_INTERFACE = "interface-"
ARRAY_OF_MAPS = 12  # include/uapi/linux/bpf.h: enum bpf_map_type


class PinDirectory:
    """Makes ``path`` in bpffs, for root alone (0700), and holds it locked; a context manager.

    Mounts a bpffs on its parent where there is none, for a kernel without one has no other place for pins:
    ``mounted`` says so. That mount, as any, ends with the mount namespace that the agent is in.
    """

    def __init__(self, path: Path = PINS) -> None:
        self.path, self.mounted = path, False
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _is_bpffs(path.parent):
                _mount(path.parent)
                self.mounted = True
            path.mkdir(mode=0o700, exist_ok=True)
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise UnavailableError(
                f"pins {path}: expected a directory in bpffs, found: {error.strerror}; run as root, and see that "
                f"{path.parent} is mounted: mount -t bpf bpf {path.parent}"
            ) from error
        try:
            self._claim()
        except BaseException:
            self.close()
            raise

    def _claim(self) -> None:
        found = os.fstat(self._fd)
        if found.st_uid != os.geteuid():
            raise UnavailableError(
                f"pins {self.path}: expected to own the directory (uid {os.geteuid()}), it is of uid "
                f"{found.st_uid}; run as that user, or remove the directory"
            )
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TidegateError(
                f"pins {self.path}: another agent limits rates on this node, pid {_holder(found)}; stop it "
                "first, or let one of the two have no rate_limit.interfaces"
            ) from error
        if stat.S_IMODE(found.st_mode) != 0o700:
            os.fchmod(self._fd, 0o700)

    def at_interface(self, ifindex: int) -> Path:
        """Make and return the directory of what belongs to an interface, by its index, which outlives its name."""
        directory = self.path / f"{_INTERFACE}{ifindex}"
        directory.mkdir(mode=0o700, exist_ok=True)
        return directory

    def interfaces(self) -> list[int]:
        """Return the indexes of the interfaces that something is pinned for."""
        names = (path.name.removeprefix(_INTERFACE) for path in self.path.glob(f"{_INTERFACE}*"))
        return sorted(int(name) for name in names if name.isdigit())

    def forget(self, ifindex: int) -> None:
        """Remove what is pinned for one interface; a link should be detached before."""
        _remove(self.path / f"{_INTERFACE}{ifindex}")

    def remove(self) -> None:
        """Remove all pins and the directory, then the bpffs where Tidegate mounted it and nothing else is in it.

        What they held goes with them; links should be detached before, as the kernel gives them up later only.
        """
        _remove(self.path)
        self.close()  # what is open keeps the mount
        # A dot in a name is the kernel's alone: it puts maps.debug and the like into every bpffs.
        others = [path for path in self.path.parent.iterdir() if "." not in path.name]
        if SOURCE in _sources(self.path.parent) and not others:
            lib.tidegate_unmount(os.fsencode(self.path.parent))  # busy: somebody else looks at it

    def close(self) -> None:
        """Give the directory up to the next agent; what is pinned in it stays. Twice is harmless."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class PinnedMap:
    """A map that was pinned, by its descriptor; a context manager."""

    def __init__(self, fd: int, name: str) -> None:
        self.fd = fd
        info = ffi.new("struct tidegate_map_info *")
        check(lib.tidegate_map_info(fd, info), "pinned map: info")
        self.id = int(info.id)
        self.shape = MapShape(name, info.type, info.key_size, info.value_size, info.max_entries, info.flags)

    @classmethod
    def open(cls, path: Path) -> Self | None:
        """Open what is pinned at a path, None where nothing is."""
        fd = lib.bpf_obj_get(os.fsencode(path))
        if fd < 0 and ffi.errno == errno.ENOENT:
            return None
        return cls(check(fd, f"pinned map {path}"), path.name)

    def inner(self) -> set[int]:
        """Return the ids of the maps in an array of maps."""
        found, value = set(), ffi.new("__u32 *")
        for slot in range(self.shape.max_entries):
            if lib.bpf_map_lookup_elem(self.fd, slot.to_bytes(4, "little"), value) == 0:
                found.add(int(value[0]))
        return found

    def elements(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield keys and values one by one, for maps that are small or read once."""
        key, value = ffi.new("char[]", self.shape.key_size), ffi.new("char[]", self.shape.value_size)
        before = ffi.NULL
        while lib.bpf_map_get_next_key(self.fd, before, key) == 0:
            if lib.bpf_map_lookup_elem(self.fd, key, value) == 0:
                yield bytes(ffi.buffer(key)), bytes(ffi.buffer(value))
            before = key

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def unfit(directory: Path, wanted: Mapping[str, MapShape]) -> list[str]:
    """Return the names of the pinned maps with which a program that wants these shapes can't go on.

    Those of another shape, and an array of maps that has another in it than those that are pinned beside it.
    """
    with contextlib.ExitStack() as opened:
        pinned = {}
        for name in wanted:
            found = PinnedMap.open(directory / name)
            if found is not None:
                pinned[name] = opened.enter_context(found)
        other = [name for name, found in pinned.items() if found.shape != wanted[name]]
        kept = {found.id for name, found in pinned.items() if name not in other}
        for name, found in pinned.items():
            if name not in other and found.shape.type == ARRAY_OF_MAPS and not found.inner() <= kept:
                other.append(name)
        return other


def _remove(directory: Path) -> None:
    for path in directory.iterdir() if directory.exists() else ():
        if path.is_dir():
            _remove(path)
        else:
            path.unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        directory.rmdir()


def _is_bpffs(path: Path) -> bool:
    return bool(_sources(path))


def _sources(path: Path) -> list[str]:
    """Return the source of the bpffs that a directory is in, of each of its mounts; none if it is in another."""
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    found = []
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        kind, source, *_rest = right.split()
        if kind == "bpf" and left.split()[2] == number:
            found.append(source)
    return found


def _mount(path: Path) -> None:
    result = lib.tidegate_mount_bpffs(SOURCE.encode(), os.fsencode(path))
    if result < 0:
        raise KernelError(f"bpffs: mount on {path}", -result)


def _holder(directory: os.stat_result) -> str:
    """Return the process that holds the lock of a directory, by /proc/locks."""
    device, inode = directory.st_dev, directory.st_ino
    place = f"{os.major(device):02x}:{os.minor(device):02x}:{inode}"
    with contextlib.suppress(OSError):
        # proc_locks(5): 1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE 0 EOF
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5] == place:
                return fields[4]
    return "unknown"
