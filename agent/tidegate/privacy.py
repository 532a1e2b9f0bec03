# SPDX-License-Identifier: Apache-2.0
"""How client addresses are shown and written down, and handles by which they can be named without being shown."""

from __future__ import annotations

import base64
import hashlib
import os
import threading
from collections import OrderedDict
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Literal

Source = IPv4Address | IPv6Address | IPv4Network | IPv6Network
Mode = Literal["truncate", "hash", "plain"]
_NARROW = {4: 32, 6: 64}  # a source of the limiter
_SHOWN = {4: 24, 6: 48}
_HASH = 16  # characters of base32: 80 bits
_HANDLE = 10


class Addresses:
    """Shows client addresses in one of the modes of ``privacy.client_addresses``; handles are in a bounded table,
    and any thread may ask.

    ``key`` is of the hashes. By default it is a new one with each start and in no file: who holds it finds every
    IPv4 address in minutes by trying all of them, and a backup would keep it beside the audit trail. So hashes are
    the same for as long as the agent runs, and never comparable across its runs.
    """

    def __init__(self, mode: Mode, key: bytes | None = None, *, most: int = 4096) -> None:
        self._mode, self._most = mode, most
        self._key = os.urandom(32) if key is None else key
        self._handle_key = os.urandom(32)
        self._sources: OrderedDict[str, Source] = OrderedDict()  # by handle, least recently shown first
        self._handles: dict[Source, str] = {}
        self._turn = threading.Lock()

    def shown(self, source: Source) -> str:
        """Return what may be shown of an address or a network: its /24 or /48, its keyed hash, or itself."""
        network = _narrow(source)
        if self._mode == "hash":
            return "hash-" + _digest(str(network), self._key)[:_HASH]
        if self._mode == "truncate" and network.prefixlen > _SHOWN[network.version]:
            return str(network.supernet(new_prefix=_SHOWN[network.version]))
        if isinstance(source, IPv4Address | IPv6Address):
            return str(source)
        return str(network.network_address if network.prefixlen == network.max_prefixlen else network)

    def handle(self, source: Source) -> str:
        """Return ten characters that stand for a source while this process runs.

        They are a keyed hash, so that they are the same again once a full table has forgotten them.
        """
        network = _narrow(source)
        with self._turn:
            handle = self._handles.get(network)
            if handle is None:
                digest = _digest(str(network), self._handle_key)
                length = next(n for n in range(_HANDLE, len(digest) + 1) if digest[:n] not in self._sources)
                handle = self._handles[network] = digest[:length]
                self._sources[handle] = network
                if len(self._sources) > self._most:
                    _, forgotten = self._sources.popitem(last=False)
                    del self._handles[forgotten]
            else:
                self._sources.move_to_end(handle)
            return handle

    def source_of(self, handle: str) -> Source | None:
        """Return the source (a network, as the limiter has it) that a handle stands for; None if unknown."""
        return self._sources.get(handle.strip().lower())


def _narrow(source: Source) -> IPv4Network | IPv6Network:
    """Return the limiter's source of an address; a network stays what it is, if it isn't narrower."""
    if isinstance(source, IPv6Address) and source.ipv4_mapped is not None:
        source = source.ipv4_mapped
    if isinstance(source, IPv4Address):
        return IPv4Network(source)
    network = IPv6Network(int(source)) if isinstance(source, IPv6Address) else source
    if network.prefixlen > _NARROW[network.version]:
        return network.supernet(new_prefix=_NARROW[network.version])
    return network


def _digest(text: str, key: bytes) -> str:
    digest = hashlib.blake2s(text.encode("ascii"), key=key).digest()
    return base64.b32encode(digest).decode("ascii").rstrip("=").lower()
