# SPDX-License-Identifier: Apache-2.0
"""The guest's root file system: this Python, what the agent depends on, the agent, and the code of tests.vm.

Every file has the path that it has here, so nothing is installed or configured: the same interpreter finds the
same packages and shared libraries.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from packaging.requirements import Requirement

PROJECT = Path(__file__).parents[2]
#: Folders of the standard library that are no part of a running agent and half of its size.
LEFT_OUT = frozenset(
    {"test", "tests", "idlelib", "tkinter", "lib2to3", "ensurepip", "site-packages", "turtledemo"}
)

_INIT = """\
#!{python} -B
import sys
sys.path[:0] = {path!r}
from tests.vm.guest import main
main()
"""


def build(target: Path) -> None:
    """Write the archive to ``target``."""
    files = set(filter(_is_used, chain(_standard_library(), _dependencies("tidegate"), _project())))
    python = Path(sys.executable).resolve()
    files.add(python)
    files |= _shared_libraries(sorted(f for f in files if f == python or ".so" in f.suffixes))
    path = [str(PROJECT), str(PROJECT / "agent"), *_package_folders()]
    with target.open("wb") as output:
        archive = Archive(output)
        for folder in ("dev", "proc", "sys", "tmp", "run"):
            archive.folder(f"/{folder}")
        archive.device("/dev/console", 5, 1)  # the kernel opens it for init before devtmpfs is mounted
        archive.file("/init", _INIT.format(python=python, path=path).encode(), 0o755)
        for file in sorted(files):
            status = file.stat()  # with the time of each source its compiled form stays valid
            archive.file(str(file), file.read_bytes(), stat.S_IMODE(status.st_mode), int(status.st_mtime))
        archive.end()


class Archive:
    """Writes a cpio archive in the format newc.

    Source: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel.
    """

    def __init__(self, output: BinaryIO) -> None:
        self._output = output
        self._folders: set[str] = set()
        self._count = 0

    def folder(self, path: str) -> None:
        """Add a directory with those that it is in; one that is there already stays."""
        if path in self._folders or path == "/":
            return
        self.folder(os.path.dirname(path))
        self._folders.add(path)
        self._add(path, stat.S_IFDIR | 0o755)

    def file(self, path: str, content: bytes, mode: int, mtime: int = 0) -> None:
        """Add a regular file; ``mtime`` is in seconds."""
        self.folder(os.path.dirname(path))
        self._add(path, stat.S_IFREG | mode, content, mtime=mtime)

    def device(self, path: str, major: int, minor: int) -> None:
        """Add a character device."""
        self.folder(os.path.dirname(path))
        self._add(path, stat.S_IFCHR | 0o600, device=(major, minor))

    def end(self) -> None:
        """Write the trailer."""
        self._add("TRAILER!!!", 0)

    def _add(
        self, path: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0), mtime: int = 0
    ) -> None:
        name = os.fsencode(path.lstrip("/")) + b"\0"
        self._count += 1
        # ino, mode, uid, gid, nlink, mtime, filesize, maj, min, rmaj, rmin, namesize, chksum
        fields = (self._count, mode, 0, 0, 1, mtime, len(content), 0, 0, *device, len(name), 0)
        header = b"070701" + b"".join(b"%08x" % field for field in fields)
        self._output.write(_padded(header + name))
        self._output.write(_padded(content))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _standard_library() -> Iterator[Path]:
    for folder, folders, names in os.walk(sysconfig.get_path("stdlib")):
        folders[:] = [name for name in folders if name not in LEFT_OUT]
        yield from (Path(folder, name) for name in names)


def _is_used(file: Path) -> bool:
    if file.suffix == ".pyc":  # those of other interpreters and optimisation levels stay here
        return file.name.endswith(f".{sys.implementation.cache_tag}.pyc")
    # _tkinter would bring the shared libraries of a desktop.
    return file.suffix != ".a" and not file.name.startswith("_tkinter.")


def _dependencies(name: str) -> Iterator[Path]:
    """Yield the files of all that a distribution requires, directly or not."""
    pending, seen = [name], {name}
    while pending:
        distribution = importlib.metadata.distribution(pending.pop())
        if distribution.name != name:
            located = (Path(str(file.locate())).resolve() for file in distribution.files or ())
            yield from (file for file in located if file.is_file())
        for requirement in map(Requirement, distribution.requires or ()):
            wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if wanted and requirement.name not in seen:
                seen.add(requirement.name)
                pending.append(requirement.name)


def _project() -> Iterator[Path]:
    yield PROJECT / "tests/__init__.py"
    for folder in ("agent/tidegate", "tests/vm"):
        for pattern in ("*.py", "*.pyc", "*.so", "*.bpf.o"):
            yield from (PROJECT / folder).rglob(pattern)


def _package_folders() -> list[str]:
    return list(dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib")))


def _shared_libraries(files: Iterable[Path]) -> set[Path]:
    """Return what the dynamic loader takes for ``files``, itself and its cache included."""
    listing = subprocess.run(["ldd", *files], capture_output=True, text=True, check=True).stdout
    if missing := re.findall(r"(\S+) => not found", listing):
        raise FileNotFoundError(f"shared libraries {missing} that the agent or Python needs are not installed")
    found = {Path(path) for path in re.findall(r"(?:=> |^\t)(/\S+) \(0x", listing, re.MULTILINE)}
    return found | {Path("/etc/ld.so.cache")}
