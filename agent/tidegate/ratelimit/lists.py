# SPDX-License-Identifier: Apache-2.0
"""Who is always and who is never let in: networks of the config and of files, as keys of the kernel's tries."""

from __future__ import annotations

import codecs
import io
import ipaddress
import os
import stat
import time
from collections.abc import Callable, Iterable

from tidegate.config.limits import RateLimit
from tidegate.config.units import ip_network, size_text
from tidegate.kernel.layouts import RATELIMIT_PREFIX

#: Keys of a trie, each a ``struct ratelimit_prefix``.
Prefixes = frozenset[bytes]
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_IPV4 = ipaddress.IPv6Network("::ffff:0:0/96")
_IPV4_BITS = 96
_IPV4_START = _IPV4.network_address.packed[:12]
_BITS = 128
_ENTRY_BITS = 64  # of IPv6 addresses that share an entry
_LARGEST = 16 << 20
_COMPLAINTS = 20
#: A file that was changed so short a time ago may change once more without another time of change.
_SETTLED = 1.0


def keys_of(network: str) -> list[bytes]:
    """Return the keys of a network; raises ValueError for a text that is none.

    One key, but for IPv6 networks that hold ::ffff:0:0/96: there they leave out what stands for IPv4.
    """
    found = ip_network(network)
    if isinstance(found, ipaddress.IPv4Network):
        return [_key(_IPV4_BITS + found.prefixlen, _IPV4_START + found.network_address.packed)]
    if found.prefixlen < _IPV4_BITS and found.supernet_of(_IPV4):
        parts = found.address_exclude(_IPV4)
        return [_key(part.prefixlen, part.network_address.packed) for part in parts]
    return [_key(found.prefixlen, found.network_address.packed)]


def divides(prefixes: Prefixes) -> bool:
    """Return whether a prefix ends within the IPv6 addresses that share an entry of the limiter's tables."""
    return any(
        RATELIMIT_PREFIX.unpack(key)[0] > _ENTRY_BITS and not key[4:].startswith(_IPV4_START) for key in prefixes
    )


def holds(prefixes: Prefixes, address: Address) -> bool:
    """Return whether an address is in one of the networks, as the kernel would find it."""
    packed = address.packed if address.version == 6 else _IPV4_START + address.packed
    number = int.from_bytes(packed, "big")
    masked = (number >> _BITS - length << _BITS - length for length in range(_BITS + 1))
    return any(_key(length, bits.to_bytes(16, "big")) in prefixes for length, bits in enumerate(masked))


def read(text: bytes, name: str, most: int) -> tuple[Prefixes, list[str]]:
    """Read a network a line, with comments after ``#``; returns them and complaints as ``NAME:LINE: message``."""
    keys: set[bytes] = set()
    complaints: list[str] = []
    for number, line in enumerate(io.BytesIO(text.removeprefix(codecs.BOM_UTF8)), 1):
        entry = line.partition(b"#")[0].strip()
        if not entry:
            continue
        try:
            keys.update(keys_of(entry.decode("utf-8", "backslashreplace")))
        except ValueError as error:
            complaints.append(f"{name}:{number}: {error}")
        if len(keys) > most:
            complaints.append(f"{name}:{number}: expected at most {most} networks (max_prefixes), found more")
        if len(keys) > most or len(complaints) >= _COMPLAINTS:
            break
    return frozenset(keys), complaints


class ListFile:
    """A file of networks. While it is wrong or gone, its last good content stays in force."""

    def __init__(self, path: str, most: int, clock: Callable[[], float] = time.time) -> None:
        self._path, self._most, self._clock = path, most, clock
        self._seen: tuple[int, ...] | None = None
        self.prefixes: Prefixes = frozenset()
        self.complaints: list[str] = []

    def refresh(self) -> bool:
        """Read the file if it is another one than before; returns whether its content is."""
        before = self.prefixes
        try:
            if self._seen is None or _identity(os.stat(self._path)) != self._seen:
                self._read()
        except OSError as error:
            self._seen, self.complaints = None, [f"{self._path}: can't be read: {error.strerror}"]
        return self.prefixes is not before

    def _read(self) -> None:
        # Without waiting: the path may lead to a pipe that nobody writes.
        with open(os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            is_file = stat.S_ISREG(status.st_mode)
            text = file.read(_LARGEST + 1) if is_file else b""
        settled = abs(self._clock() - status.st_mtime) >= _SETTLED
        self._seen = _identity(status) if settled else None
        if not is_file:
            self.complaints = [f"{self._path}: expected a regular file, found another kind"]
        elif len(text) > _LARGEST:
            self.complaints = [f"{self._path}: expected at most {size_text(_LARGEST)}, found more"]
        else:
            prefixes, self.complaints = read(text, self._path, self._most)
            if not self.complaints and prefixes != self.prefixes:
                self.prefixes = prefixes


class AddressList:
    """One of the two lists, called ``name``: networks of the config and of files, at most so many keys."""

    def __init__(
        self,
        name: str,
        networks: Iterable[str],
        files: Iterable[str],
        most: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._name, self._most = name, most
        self._own = frozenset(key for network in networks for key in keys_of(network))
        self._files = [ListFile(path, most, clock) for path in dict.fromkeys(files)]
        self._further: frozenset[str] | None = None
        self._excess: list[str] = []
        self.prefixes: Prefixes = frozenset()

    def refresh(self, further: Iterable[str] = ()) -> bool:
        """Read the files that have changed; returns whether :attr:`prefixes` has.

        ``further`` are networks that are on the list without being written down: what this node needs, what was
        allowed by hand.
        """
        now = frozenset(further)
        changed = [file.refresh() for file in self._files]
        if now == self._further and not any(changed):
            return False
        self._further = now
        needed = frozenset(key for network in now for key in keys_of(network))
        parts = [part for part in (self._own, needed, *(file.prefixes for file in self._files)) if part]
        found = parts[0] if len(parts) == 1 else frozenset().union(*parts)  # one long file is kept once
        if len(found) > self._most:
            wanted = f"expected at most {self._most} networks with those of files (max_prefixes)"
            self._excess = [f"rate_limit.{self._name}: {wanted}, found {len(found)}; the list stays as it was"]
            return False
        self._excess = []
        before, self.prefixes = self.prefixes, found
        return found != before

    @property
    def complaints(self) -> list[str]:
        """What is wrong with the files, each as ``FILE:LINE: message``, or with all of the list."""
        return [complaint for file in self._files for complaint in file.complaints] + self._excess


def allow_list(rate_limit: RateLimit) -> AddressList:
    """Return the list of those who are never limited, not yet read."""
    networks = [*rate_limit.allow, *rate_limit.management]
    return AddressList("allow", networks, rate_limit.allow_files, rate_limit.max_prefixes)


def deny_list(rate_limit: RateLimit) -> AddressList:
    """Return the list of those who are always refused, not yet read."""
    return AddressList("deny", rate_limit.deny, rate_limit.deny_files, rate_limit.max_prefixes)


def complaints_of(rate_limit: RateLimit) -> list[str]:
    """Read both lists; returns all that is wrong with them."""
    lists = [allow_list(rate_limit), deny_list(rate_limit)]
    for found in lists:
        found.refresh()
    return [complaint for found in lists for complaint in found.complaints]


def _key(length: int, address: bytes) -> bytes:
    return RATELIMIT_PREFIX.pack(length, address)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
