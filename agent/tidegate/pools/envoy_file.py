# SPDX-License-Identifier: Apache-2.0
"""An EDS file is exchanged such that Envoy notices: by a rename, never by writing into it.

Envoy 1.40 reads the file again when something is moved to its name in its directory or, with a
``watched_directory``, to any name in that and to none elsewhere. So there are three layouts:

| layout | what is exchanged |
|---|---|
| a file | the file |
| the path is a symbolic link | the link: it leads to a file of ours beside the one that was found |
| a link in ``watched_directory`` leads to the file's directory | that link: it leads to a copy of the directory |

The last is how Kubernetes mounts a ConfigMap, with ``..data``. In the latter two what was found stays untouched.
The other files of a copied directory are those of when it was copied.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from tidegate.errors import DriverError
from tidegate.pools import files

_MARK = "tidegate-"
_LINKS = 40  # as many as the kernel follows


class Link(msgspec.Struct, frozen=True):
    """The link that is exchanged: where it stands, where it led when found, the file's path below that or ''."""

    at: str
    to: str
    below: str

    @property
    def target(self) -> Path:
        """What it led to when it was found."""
        return Path(os.path.realpath(os.path.join(os.path.dirname(self.at), self.to)))

    @property
    def file(self) -> Path:
        """The file that was found behind it."""
        return self.target / self.below if self.below else self.target

    def named(self, name: str) -> str:
        """Return where a link would lead to something beside its target."""
        return os.path.join(os.path.dirname(self.to), name)

    def beside(self, digest: str) -> Path:
        """Return where a text of this digest is put."""
        name = f"..{_MARK}{digest[:16]}" if self.below else f".{_MARK}{digest[:16]}.{os.path.basename(self.to)}"
        return Path(os.path.realpath(os.path.join(os.path.dirname(self.at), os.path.dirname(self.to)))) / name


class Seen(NamedTuple):
    """What there is: the link, if one is exchanged; what Envoy reads; what was found, where that is ours."""

    link: Link | None
    text: bytes
    found: bytes | None = None


class EdsFile:
    """The file at ``path`` as Envoy has it, and Envoy's ``watched_directory``. Raises DriverError."""

    def __init__(self, path: str, watched: str | None) -> None:
        self.path, self._watched = Path(path), watched
        #: The file without links in the names of its directories: who exchanges those is of no concern here.
        self._own = Path(os.path.realpath(self.path.parent)) / self.path.name

    def look(self, known: Link | None, made: Iterable[str]) -> Seen:
        """Return what there is; ``known`` is the link as it was found, ``made`` what we have put beside it."""
        self._own = Path(os.path.realpath(self.path.parent)) / self.path.name
        link, text = self._link(), _read(self.path)
        if link is None or known is None or link.at != known.at:
            return Seen(link, text)
        if str(link.target) in made:
            return Seen(known, text, _read(known.file))
        return Seen(link, text)

    def refusal(self) -> str | None:
        """Return why Envoy would not notice, or None where it would."""
        link = self._link()
        moved = self._own if link is None else Path(link.at)
        if self._watched is not None and os.path.realpath(self._watched) != str(moved.parent):
            return (
                f"{self.path}: expected it, or a link on the way to it, in watched_directory {self._watched}, "
                f"found it in {moved.parent}: Envoy would not notice a change; set watched_directory as in "
                "Envoy's config"
            )
        others = [other for other in _links(self._own)[1:] if other.is_dir()]
        if link is not None and not link.below and others:
            return (
                f"{self.path}: leads through the link {others[0]} to a directory, and Envoy reads such a file "
                f"again only with 'watched_directory: {{path: {others[0].parent}}}' in its path_config_source; "
                f"set it there, and watched_directory: {others[0].parent} of the driver"
            )
        if not os.access(moved.parent, os.W_OK):
            return f"{self.path}: the agent can't write in {moved.parent}, where it is exchanged; let it"
        return None

    def write(self, seen: Seen, data: bytes, digest: str, made: Iterable[str]) -> None:
        """Have Envoy read these bytes; nothing has changed where this raises. ``made`` as for :meth:`look`."""
        if seen.link is None:
            files.replace(self.path, data, expected=seen.text)
            return
        new = seen.link.beside(digest)
        try:
            if seen.link.below:
                _copy(seen.link.target, new)
                if not (new / seen.link.below).resolve().is_relative_to(new):
                    raise DriverError(f"{self.path}: leads out of {seen.link.target}; name the file itself")
                files.replace(new / seen.link.below, data)
            else:
                files.replace(new, data, like=seen.link.file)
            self._exchange(seen, seen.link, seen.link.named(new.name), made)
        except BaseException:
            with contextlib.suppress(OSError):
                _remove(new)
            raise

    def put_back(self, seen: Seen, data: bytes, made: Iterable[str]) -> None:
        """Have Envoy read the file that was found, with these bytes: its own unless somebody has changed ours."""
        link = seen.link
        if link is None:
            files.replace(self.path, data, expected=seen.text)
            return
        found = seen.text if seen.found is None else seen.found
        if found != data:
            files.replace(link.file, data, expected=found)
            seen = seen._replace(text=data) if seen.found is None else seen._replace(found=data)
        self._exchange(seen, link, link.to, made)

    def remove(self, made: Iterable[str]) -> None:
        """Remove what we have put there."""
        for path in made:
            try:
                _remove(Path(path))
            except OSError as error:
                raise DriverError(
                    f"{path}: can't be removed: {error.strerror or error}; nobody needs it any more, remove it"
                ) from error

    def _link(self) -> Link | None:
        if self._watched is not None:
            watched, real = os.path.realpath(self._watched), os.path.realpath(self.path)
            for link in _links(self.path):
                target = os.path.realpath(link)
                if str(link.parent) == watched and os.path.isdir(link) and real.startswith(target + "/"):
                    return Link(str(link), os.readlink(link), os.path.relpath(real, target))
        return Link(str(self._own), os.readlink(self._own), "") if self._own.is_symlink() else None

    def _exchange(self, seen: Seen, link: Link, to: str, made: Iterable[str]) -> None:
        if self.look(link, made) != seen:
            raise DriverError(f"{self.path}: somebody else has just written it; it is looked at again")
        _swap(Path(link.at), to)


def _read(path: Path) -> bytes:
    try:
        return files.read(path)
    except FileNotFoundError as error:
        raise DriverError(f"{path}: expected an EDS file, found none; write it, or correct 'eds'") from error


def _links(path: Path) -> list[Path]:
    """Return the symbolic links on the way to a file, each by where it really stands."""
    found: list[Path] = []
    here, parts = Path("/"), [*path.parts[1:]]
    while parts:
        part = parts.pop(0)
        if part == "..":
            here = here.parent
            continue
        there = here / part
        if not there.is_symlink():
            here = there
            continue
        found.append(there)
        if len(found) > _LINKS:
            raise DriverError(f"{path}: expected a file, found links that lead to themselves")
        target = Path(os.readlink(there))
        if target.is_absolute():
            here = Path("/")
        parts = [part for part in target.parts if part != "/"] + parts
    return found


def _swap(link: Path, to: str) -> None:
    """Have a link lead elsewhere, in one step."""
    temporary = link.with_name(f".{_MARK}{link.name}")
    try:
        temporary.unlink(missing_ok=True)  # of one that was killed
        temporary.symlink_to(to)
        temporary.replace(link)
        _sync(link.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise DriverError(
            f"{link}: can't be written: {error.strerror or error}; it is as it was: make room, and let the agent "
            f"write in {link.parent}"
        ) from error


def _copy(directory: Path, to: Path) -> None:
    """Copy a directory with all below it, modes and owners too."""
    try:
        _remove(to)  # of one that was killed
        shutil.copytree(directory, to, symlinks=True)
        for path in (to, *to.rglob("*")):
            _own_as(directory / path.relative_to(to), path)
    except OSError as error:  # shutil's own are such
        with contextlib.suppress(OSError):
            _remove(to)
        raise DriverError(
            f"{directory}: can't be copied: {error.strerror or error}; it is as it was: make room, and let the "
            f"agent write in {to.parent}"
        ) from error


def _own_as(like: Path, path: Path) -> None:
    wanted, is_so = like.lstat(), path.lstat()
    if (wanted.st_uid, wanted.st_gid) != (is_so.st_uid, is_so.st_gid):
        os.chown(path, wanted.st_uid, wanted.st_gid, follow_symlinks=False)
    if path.is_file() and not path.is_symlink():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _remove(path: Path) -> None:
    if not path.name.lstrip(".").startswith(_MARK):
        raise DriverError(f"{path}: expected something of this program, found another's; look at the journal")
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(directory: Path) -> None:
    """Have a rename in a directory survive a crash."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def as_link(kept: Any) -> Link | None:
    """Return a link as the journal has it."""
    return None if kept is None else msgspec.convert(kept, type=Link)
