# SPDX-License-Identifier: Apache-2.0
"""Which programs a service runs, and of which version, read from their files and never by running them."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tidegate.identity.cgroups import text_of
from tidegate.identity.services import Service
from tidegate.model.resources import Executable

#: A service's processes are looked at again after so many seconds, and so many services and files at a time.
KEPT = 60.0
_SERVICES_AT_A_TIME = 20
_FILES_AT_A_TIME = 4
#: Of a service so many processes are looked at, of a file so many bytes.
_MOST_PROCESSES = 256
_MOST_BYTES = 256 << 20
_CHUNK = 1 << 20
#: No version with what stands around it is longer.
_OVERLAP = 256
_FILES_KEPT = 1024
_GO = b"\xff Go buildinf:"


class Known(NamedTuple):
    """A program that is known by the name of its file.

    ``version`` finds its version in the file; ``sign`` is what that begins with, if it is always the same, to be
    found fast. Without ``version`` the file's name has it. Where what ``version`` finds might be another's (of a
    library), it counts only if the whole file has nothing else like it: ``sole``.
    """

    name: str
    file: re.Pattern[str]
    version: re.Pattern[bytes] | None = None
    sign: bytes = b""
    sole: bool = False


KNOWN = (
    Known(
        "nginx",
        re.compile(r"nginx(-debug)?|openresty"),
        re.compile(rb"nginx version: (?:nginx|openresty|freenginx)/(\d+\.\d+\.\d+)"),
        b"nginx version: ",
    ),
    Known(
        "haproxy",
        re.compile(r"haproxy"),
        re.compile(rb" version (\d\.\d+(?:\.\d+|-dev\d+))[^\0, ]*, released "),
        b" version ",
    ),
    Known(
        "envoy",
        re.compile(r"envoy(-static)?(\.stripped)?"),
        re.compile(rb"\0(1\.\d\d\.\d+)(?:-dev)?\0"),
        b"\x001.",
        sole=True,
    ),
    Known("python", re.compile(r"python(?P<version>\d+(\.\d+)?)?")),
    Known("node", re.compile(r"node(js)?"), re.compile(rb"node\.js/v(\d+\.\d+\.\d+)"), b"node.js/v"),
    Known("java", re.compile(r"java"), re.compile(rb"\0(\d+(?:\.\d+)*(?=\+)|1\.\d\.0_\d+)[-+~.\w]*\0")),
    Known("php", re.compile(r"php(-fpm|-cgi)?\d*(\.\d+)?"), re.compile(rb"PHP/(\d+\.\d+\.\d+)"), b"PHP/"),
    Known("ruby", re.compile(r"ruby(?P<version>\d+(\.\d+)*)?")),
)


class Program(NamedTuple):
    """What a file is: the program's name and its version."""

    name: str
    version: str | None


class Executables:
    """The programs of the services that are asked for.

    ``processes`` says which processes are in a cgroup; ``proc`` is where /proc is. ``by_service`` is filled by and
    by.
    """

    def __init__(self, processes: Callable[[str], Sequence[int]], proc: Path = Path("/proc")) -> None:
        self._processes, self._proc = processes, str(proc)
        self._looked_at: dict[Service, float] = {}
        self._files: dict[tuple[int, int, int, int], Program] = {}
        self.by_service: dict[Service, tuple[Executable, ...]] = {}
        self._skipped = 0

    def look(self, cgroups: Mapping[Service, Sequence[str]], wanted: Collection[Service], now: float) -> None:
        """Look at some of the ``wanted`` services whose turn it is; ``now`` is monotonic seconds."""
        for service in [service for service in self._looked_at if service not in wanted or service not in cgroups]:
            del self._looked_at[service]
            self.by_service.pop(service, None)
        due = [
            service
            for service in wanted
            if service in cgroups and now - self._looked_at.get(service, -KEPT) >= KEPT
        ]
        files = _FILES_AT_A_TIME
        for service in due[:_SERVICES_AT_A_TIME]:
            found, scanned, is_complete = self._programs(cgroups[service], files)
            files -= scanned
            self.by_service[service] = found
            if is_complete:
                self._looked_at[service] = now

    def skipped(self) -> dict[str, int]:
        """Return how many processes ended while they were looked at, or have a file that may not be read."""
        return {"processes": self._skipped}

    def _programs(self, paths: Sequence[str], files: int) -> tuple[tuple[Executable, ...], int, bool]:
        """Return the programs of some cgroups, how many files were read for that, and whether no more need be."""
        pids = [pid for path in paths for pid in self._processes(path)][:_MOST_PROCESSES]
        found: dict[Executable, None] = {}
        scanned, is_complete = 0, True
        for pid in pids:
            place = f"{self._proc}/{pid}/exe"
            try:
                path, status = os.readlink(place), os.stat(place)
                key = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
                program = self._files.get(key)
                if program is None:
                    if scanned == files:
                        is_complete = False
                        continue
                    scanned += 1
                    program = program_of(place, os.path.basename(path.removesuffix(" (deleted)")))
                    self._keep(key, program)
            except OSError as error:
                # A thread of the kernel has no file; it is there, but its link leads nowhere.
                is_thread = not isinstance(error, PermissionError) and os.path.exists(f"{self._proc}/{pid}")
                self._skipped += not is_thread
                continue
            path = text_of(os.fsencode(path.removesuffix(" (deleted)")))
            found[Executable(name=program.name, version=program.version, path=path)] = None
        return tuple(sorted(found, key=lambda each: each.path)), scanned, is_complete

    def _keep(self, key: tuple[int, int, int, int], program: Program) -> None:
        self._files[key] = program
        while len(self._files) > _FILES_KEPT:
            del self._files[next(iter(self._files))]


def program_of(place: str, file_name: str) -> Program:
    """Tell a program by the name of its file, and its version by what is in the file at ``place``.

    Any program that Go's compiler made is ``go`` with the version of that.
    """
    for known in KNOWN:
        match = known.file.fullmatch(file_name)
        if match is None:
            continue
        version = match.groupdict().get("version")
        if known.version is not None:
            version = _search(place, known.version, known.sign, sole=known.sole)
        return Program(known.name, version)
    with open(place, "rb", buffering=0) as file:
        go = _go_version(file.fileno())
    return Program(text_of(os.fsencode(file_name)), None) if go is None else Program("go", go or None)


def _search(place: str, pattern: re.Pattern[bytes], sign: bytes, *, sole: bool) -> str | None:
    """Search a file for a version, a part at a time, as it may be larger than the agent."""
    versions: set[bytes] = set()
    rest = b""
    with open(place, "rb", buffering=0) as file:
        for _ in range(_MOST_BYTES // _CHUNK):
            part = file.read(_CHUNK)
            if not part:
                break
            text = rest + part
            for version in _matches(text, pattern, sign):
                if not sole:
                    return version.decode("ascii")
                versions.add(version)
            rest = text[-_OVERLAP:]
    return versions.pop().decode("ascii") if len(versions) == 1 else None


def _matches(text: bytes, pattern: re.Pattern[bytes], sign: bytes) -> Iterator[bytes]:
    if not sign:
        yield from (match[1] for match in pattern.finditer(text))
        return
    at = text.find(sign)
    while at >= 0:
        if match := pattern.match(text, at):
            yield match[1]
        at = text.find(sign, at + 1)


def _go_version(file: int) -> str | None:
    """Return the version of Go that made an ELF file, empty where it doesn't say; None for any other file.

    Source: debug/buildinfo of Go. The blob stands at the begin of the first segment with data.
    """
    head = os.pread(file, 4096, 0)
    if head[:6] != b"\x7fELF\x02\x01" or len(head) < 64:  # 64 bits, little-endian
        return None
    (table,) = struct.unpack_from("<Q", head, 32)
    size, count = struct.unpack_from("<HH", head, 54)
    headers = os.pread(file, min(size * count, 1 << 16), table)
    for at in range(0, len(headers) - 55, max(size, 56)):
        kind, flags, offset = struct.unpack_from("<IIQ", headers, at)
        if kind != 1 or flags & 3 != 2:  # PT_LOAD, written and not executed
            continue
        blob = os.pread(file, 1 << 16, offset)
        if (found := blob.find(_GO)) < 0:
            return None
        if not blob[found + 15] & 2 or found + 33 > len(blob):  # before Go 1.18 the version stands elsewhere
            return ""
        length = blob[found + 32]
        return blob[found + 33 : found + 33 + length].decode("ascii", "replace").removeprefix("go")
    return None
