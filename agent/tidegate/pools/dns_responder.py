# SPDX-License-Identifier: Apache-2.0
"""The sockets on which questions for the names of pools are answered: one responder for each address."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import selectors
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

from tidegate.config.units import Listen
from tidegate.errors import DriverError
from tidegate.pools.dns_message import LARGEST_QUESTION, RESULTS, Reply, reply
from tidegate.pools.dns_zone import Asker, Zone

log = logging.getLogger("tidegate")

#: TCP connections at a time, the oldest is closed for a new one; and how long one may be silent, in seconds.
_CONNECTIONS, _IDLE = 16, 30.0
#: What passes before a connection that can't be accepted is tried again, in seconds.
_BREATH = 0.01
#: Datagrams and questions of one turn.
_TURN = 64
_LENGTH = struct.Struct("!H")
#: include/uapi/linux/in.h: struct in_pktinfo is the interface, the address to answer from, the one asked.
_IP_PKTINFO, _PKTINFO = 8, struct.Struct("=I4s4s")


class Sockets(NamedTuple):
    """Where questions arrive: datagrams, and a socket that listens."""

    udp: socket.socket
    tcp: socket.socket


class _Connection:
    """A TCP connection: what of a question has been read, and when something last arrived."""

    def __init__(self, made: socket.socket, asker: Asker, now: float) -> None:
        self.socket, self.asker, self.heard = made, asker, now
        self.read = bytearray()


class Responder:
    """Answers questions for all ``zones`` in a thread of its own until it is closed.

    On a loopback address only this host is answered. Each question gets one answer, or none; ``counts`` has how
    many ended in which way.
    """

    def __init__(self, listen: Listen, sockets: Sockets, clock: Callable[[], float] = time.monotonic) -> None:
        self.listen, self._sockets, self._clock = listen, sockets, clock
        #: Where it listens: the port is the kernel's choice for 0.
        self.address: tuple[str, int] = sockets.udp.getsockname()[:2]
        self._loopback = ipaddress.ip_address(listen.host).is_loopback
        self._zones: dict[str, Zone] = {}
        self._counts: Counter[str] = Counter(dict.fromkeys((*RESULTS, "foreign", "undelivered"), 0))
        self._connections: dict[int, _Connection] = {}
        self._selector = selectors.DefaultSelector()
        self._ends, self._ended = socket.socketpair()
        for one in (*sockets, self._ended):
            one.setblocking(False)
            self._selector.register(one, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name=f"dns {listen}", daemon=True)
        self._thread.start()

    @property
    def counts(self) -> Mapping[str, int]:
        """How many questions were answered, truncated, refused, malformed, of others, or not delivered."""
        return dict(self._counts)

    @property
    def zones(self) -> Mapping[str, Zone]:
        """The pools that it answers for, by name."""
        return self._zones

    def add(self, zone: Zone) -> None:
        """Answer for a pool from now on."""
        self._zones = {**self._zones, zone.name: zone}

    def remove(self, zone: Zone) -> None:
        """Refuse questions for a pool from now on: nginx then keeps the servers that it has."""
        self._zones = {name: other for name, other in self._zones.items() if other is not zone}

    def close(self) -> None:
        """End the thread and close the sockets."""
        self._ends.close()
        self._thread.join()

    # What its thread does.

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        finally:
            self._selector.close()
            for one in (*self._sockets, self._ended, *(held.socket for held in self._connections.values())):
                one.close()

    def _turn(self) -> bool:
        ready = [key.fileobj for key, _ in self._selector.select(_IDLE if self._connections else None)]
        if self._ended in ready:
            return False
        for one in ready:
            assert isinstance(one, socket.socket)
            if one is self._sockets.udp:
                self._datagrams()
            elif one is self._sockets.tcp:
                self._accept()
            elif one.fileno() in self._connections:
                self._stream(self._connections[one.fileno()])
        last = self._clock() - _IDLE
        for held in [held for held in self._connections.values() if held.heard < last]:
            self._drop(held)
        return True

    def _datagrams(self) -> None:
        udp = self._sockets.udp
        for _ in range(_TURN):
            try:
                packet, ancillary, flags, (host, port, *_) = udp.recvmsg(LARGEST_QUESTION, 128)
            except BlockingIOError:
                return
            except OSError:  # what was sent to somebody who is gone
                continue
            found = self._reply(b"" if flags & socket.MSG_TRUNC else packet, (host, port), tcp=False)
            if found.wire:
                try:
                    udp.sendmsg([found.wire], _from_where_asked(ancillary), 0, (host, port))
                except OSError:
                    self._counts["undelivered"] += 1
                else:
                    self._delivered(found, (host, port))

    def _accept(self) -> None:
        try:
            made, (host, port, *_) = self._sockets.tcp.accept()
        except BlockingIOError:
            return
        except OSError:  # it is gone already, or there is no descriptor for it: then not again at once
            time.sleep(_BREATH)
            return
        if len(self._connections) >= _CONNECTIONS:
            self._drop(min(self._connections.values(), key=lambda held: held.heard))
        made.setblocking(False)
        self._connections[made.fileno()] = _Connection(made, (host, port), self._clock())
        self._selector.register(made, selectors.EVENT_READ)

    def _stream(self, held: _Connection) -> None:
        try:
            read = held.socket.recv(_LENGTH.size + LARGEST_QUESTION)
        except BlockingIOError:
            return
        except OSError:
            read = b""
        held.heard = self._clock()
        held.read += read
        going = bool(read)
        for _ in range(_TURN):
            if not going or len(held.read) < _LENGTH.size:
                break
            (length,) = _LENGTH.unpack_from(held.read)
            if length > LARGEST_QUESTION:
                self._counts["malformed"] += 1
                going = False
            elif len(held.read) < _LENGTH.size + length:
                break
            else:
                packet = bytes(held.read[_LENGTH.size : _LENGTH.size + length])
                del held.read[: _LENGTH.size + length]
                going = self._respond(held, packet)
        # More than one turn's questions at once, which no resolver sends, would wait for the next that arrives.
        if not going or len(held.read) > _LENGTH.size + LARGEST_QUESTION:
            self._drop(held)

    def _respond(self, held: _Connection, packet: bytes) -> bool:
        """Answer on a connection; tell whether it may go on."""
        found = self._reply(packet, held.asker, tcp=True)
        if not found.wire:
            return False
        wire = _LENGTH.pack(len(found.wire)) + found.wire
        try:
            sent = held.socket.send(wire)
        except OSError:
            sent = 0
        if sent < len(wire):  # who doesn't read what it has asked for
            self._counts["undelivered"] += 1
            return False
        self._delivered(found, held.asker)
        return True

    def _drop(self, held: _Connection) -> None:
        del self._connections[held.socket.fileno()]
        self._selector.unregister(held.socket)
        held.socket.close()

    def _reply(self, packet: bytes, asker: Asker, *, tcp: bool) -> Reply:
        if self._loopback and not _is_here(asker[0]):
            self._counts["foreign"] += 1
            return Reply(b"", "refused")
        try:
            found = reply(packet, self._zones, asker, self._clock(), tcp=tcp)
        except Exception:  # one message ends no thread on which all pools depend
            log.exception("pools: dns %s: a question of %d bytes", self.listen, len(packet))
            found = Reply(b"", "malformed")
        self._counts[found.result] += 1
        return found

    def _delivered(self, found: Reply, asker: Asker) -> None:
        if found.zone is not None and found.holds is not None:
            found.zone.delivered(found.kind, asker, found.holds, self._clock())


def _is_here(host: str) -> bool:
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback


def _from_where_asked(ancillary: list[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]]:
    """Return what has an answer leave from the address that was asked, of several that a host may have."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            _, local, _ = _PKTINFO.unpack(data)
            return [(level, kind, _PKTINFO.pack(0, local, bytes(4)))]
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            return [(level, kind, data)]
    return []


def bind(listen: Listen) -> Sockets:
    """Bind both sockets at an address; raises OSError."""
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    with contextlib.ExitStack() as stack:
        tcp = stack.enter_context(socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC))
        udp = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC))
        # Not for UDP, where another one with it could bind the same port and take the questions.
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tcp.bind(listen)
        udp.bind(tcp.getsockname()[:2])
        if family == socket.AF_INET6:
            udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            udp.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        tcp.listen()
        stack.pop_all()
    return Sockets(udp, tcp)


#: Opens the sockets of an address.
Opener = Callable[[Listen], Sockets]
_lock = threading.Lock()
_responders: dict[tuple[Listen, Opener], Responder] = {}


def join(zone: Zone, listen: Listen, opener: Opener = bind) -> Responder:
    """Have a pool answered for at an address, by the one responder that this process has there; leave at the end.

    Raises DriverError where the address can't be used, or another pool has this name there.
    """
    with _lock:
        responder = _responders.get((listen, opener))
        if responder is None:
            try:
                responder = Responder(listen, opener(listen))
            except OSError as error:
                raise _refused(listen, zone, error) from error
            _responders[listen, opener] = responder
        elif zone.name in responder.zones:
            raise DriverError(
                f"dns {listen}: expected one pool with the name {zone.name}, found two; give each its own 'name', "
                "or its own 'listen'"
            )
        responder.add(zone)
        return responder


def leave(responder: Responder, zone: Zone) -> None:
    """Have a pool no longer answered for; who leaves as the last closes the responder."""
    with _lock:
        responder.remove(zone)
        if not responder.zones:
            for key in [key for key, other in _responders.items() if other is responder]:
                del _responders[key]
            responder.close()


def _refused(listen: Listen, zone: Zone, error: OSError) -> DriverError:
    remedies = {
        errno.EADDRINUSE: f"see who has it with: ss -lnptu sport = :{listen.port}",
        errno.EADDRNOTAVAIL: "set 'listen' of the driver to an address of this host",
        errno.EACCES: "set 'listen' of the driver to a port of 1024 or above",
    }
    remedy = remedies.get(error.errno or 0, "set 'listen' of the driver to an address that is free")
    return DriverError(
        f"dns {listen}: expected to answer for {zone.name} there, found: {error.strerror or error}; {remedy}",
        away=True,
    )
