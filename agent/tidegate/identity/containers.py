# SPDX-License-Identifier: Apache-2.0
"""Names of containers outside of Kubernetes, from the files that their engines keep; no engine is asked."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Self, TypeVar

import msgspec

from tidegate.identity.services import is_name
from tidegate.identity.workload import Kind, Workload

_CONFIG_MAX = 1024 * 1024  # bytes; a container's own file
_INDEX_MAX = 16 * 1024 * 1024  # bytes; a file about all containers, about 1 KiB each
_NAMES_MAX = 4096  # entries of a directory
_STORES_MAX = 64  # directories of names

_T = TypeVar("_T")
#: What tells whether a file or directory is still what was read: device, inode, time of change, size.
_Version = tuple[int, int, int, int]


class _DockerDaemon(msgspec.Struct, rename="kebab"):
    data_root: str = "/var/lib/docker"


class _DockerConfig(msgspec.Struct, rename="pascal"):
    name: str = ""


class _PodmanContainer(msgspec.Struct):
    id: str = ""
    names: list[str] | None = None


class ContainerNames:
    """What Docker, podman and nerdctl call their containers.

    ``docker`` is the directory ``containers`` of its data root, ``podman`` ``overlay-containers`` of its storage,
    ``nerdctl`` its data root. Only root's own engines are read: a user's home may be on a file system that hangs.
    A file that is missing, unreadable, too large, garbled, a link or not a plain file gives no name.
    """

    def __init__(self, docker: Path, podman: Path, nerdctl: Path) -> None:
        self._docker = docker
        self._podman = podman
        self._nerdctl = nerdctl
        self._podman_names: tuple[list[_Version], dict[str, str]] = ([], {})
        self._nerdctl_names: tuple[list[_Version], dict[str, str]] = ([], {})

    @classmethod
    def below(cls, root: Path) -> Self:
        """Look in the engines' default places, seen from ``root``; Docker's as its ``daemon.json`` has it."""
        daemon = _decoded(_read(root / "etc/docker/daemon.json", _CONFIG_MAX), _DockerDaemon)
        data_root = (daemon or _DockerDaemon()).data_root
        state = root / "var/lib"
        return cls(
            docker=root / data_root.lstrip("/") / "containers",
            podman=state / "containers/storage/overlay-containers",
            nerdctl=state / "nerdctl",
        )

    def name_of(self, workload: Workload) -> str:
        """Return the name of a container, or an empty string as long as none is known; reads files."""
        if workload.kind is not Kind.CONTAINER:
            return ""
        match workload.runtime:
            case "docker":
                name = self._of_docker(workload.container_id)
            case "podman":
                name = self._of_podman(workload.container_id)
            case "containerd":
                name = self._of_nerdctl(workload.container_id)
            case _:
                name = ""
        return name if is_name(name) else ""

    def _of_docker(self, container_id: str) -> str:
        data = _read(self._docker / container_id / "config.v2.json", _CONFIG_MAX)
        config = _decoded(data, _DockerConfig)
        return config.name.removeprefix("/") if config else ""

    def _of_podman(self, container_id: str) -> str:
        """Look in both files: containers of ``podman run --rm`` are in the volatile one (containers/storage)."""
        files = [self._podman / name for name in ("containers.json", "volatile-containers.json")]
        versions = _versions(files)
        if versions != self._podman_names[0]:
            lists = [_decoded(_read(file, _INDEX_MAX), list[_PodmanContainer]) or [] for file in files]
            names = {each.id: each.names[0] for containers in lists for each in containers if each.names}
            self._podman_names = (versions, names)
        return self._podman_names[1].get(container_id, "")

    def _of_nerdctl(self, container_id: str) -> str:
        """Look through ``ADDRESS/names/NAMESPACE/NAME``, which hold the id (nerdctl, docs/dir.md)."""
        stores = [store for address in _entries(self._nerdctl) for store in _entries(address / "names")]
        stores = sorted(stores)[:_STORES_MAX]
        versions = _versions(stores)
        if versions != self._nerdctl_names[0]:
            files = [file for store in stores for file in _entries(store)]
            ids = {_read(file, 128).strip(): file.name for file in files[:_NAMES_MAX]}
            self._nerdctl_names = (versions, {id_.decode("ascii", "replace"): name for id_, name in ids.items()})
        return self._nerdctl_names[1].get(container_id, "")


def _decoded(data: bytes, type_: type[_T]) -> _T | None:
    try:
        return msgspec.json.decode(data, type=type_)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _versions(paths: list[Path]) -> list[_Version]:
    versions = []
    for path in paths:
        try:
            found = path.lstat()
        except OSError:
            versions.append((0, 0, 0, 0))
        else:
            versions.append((found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size))
    return versions


def _entries(directory: Path) -> Iterator[Path]:
    try:
        with os.scandir(directory) as entries:
            yield from [directory / entry.name for entry in islice(entries, _NAMES_MAX)]
    except OSError:
        return


def _read(path: Path, limit: int) -> bytes:
    """Return the content of a regular file of at most ``limit`` bytes, else nothing."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return b""
            data = file.read(limit + 1)
    except OSError:
        return b""
    return data if len(data) <= limit else b""
