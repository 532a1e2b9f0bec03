# SPDX-License-Identifier: Apache-2.0
"""The agent's end of the control socket: bounded in clients and queues, never waiting for a reader."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from tidegate.control.protocol import MAX_REQUEST, PROTOCOL, Failure, Hello, Reply, Request
from tidegate.errors import TidegateError, UnavailableError
from tidegate.model.snapshot import View

_PEER = struct.Struct("iII")  # struct ucred: pid, uid, gid
_WRITE_BUFFER = 64 * 1024
_NOTHING = msgspec.Raw()


class Peer(NamedTuple):
    """Who has connected, as the kernel saw it then; pid 0 is a process of another pid namespace."""

    pid: int
    uid: int
    gid: int


Method = Callable[[Mapping[str, Any], Peer], Any]


class ControlServer:
    """Serves ``snapshot``, ``watch``, ``version`` and ``methods`` to root and to the agent's own user.

    A method takes the request's params and who asks, and returns what msgspec can encode; a TidegateError becomes
    an error reply. Each call is in a thread. ``queue`` is how many snapshots a watching client may be behind
    before it is dropped. Raises UnavailableError from :meth:`start` where the path can't be used.
    """

    def __init__(
        self, path: Path, *, version: str, methods: Mapping[str, Method], max_clients: int, queue: int
    ) -> None:
        self._path, self._queue_length, self._max_clients = path, queue, max_clients
        self._hello = _line(Hello(tidegate=version, protocol=PROTOCOL))
        self._own: dict[str, Method] = {
            "snapshot": self._snapshot,
            "version": lambda _params, _peer: {"version": version},
        }
        self._methods = methods
        self._view: View | None = None
        self._encoded: msgspec.Raw | None = None
        self._watchers: dict[asyncio.Queue[bytes], asyncio.StreamWriter] = {}
        self._clients: set[asyncio.Task[None]] = set()
        self._losses: Counter[str] = Counter(clients_slow=0, clients_refused=0, peers_refused=0)
        self._server: asyncio.Server | None = None
        self._inode: int | None = None

    async def start(self) -> None:
        """Begin to listen; a socket file that a dead agent left is replaced."""
        listener = _listen(self._path)
        self._inode = self._path.stat().st_ino
        self._server = await asyncio.start_unix_server(self._accept, sock=listener, limit=MAX_REQUEST)

    def publish(self, view: View) -> None:
        """Show this view from now on; watching clients get it, and one that is too far behind is dropped."""
        self._view, self._encoded = view, None
        for queue, writer in list(self._watchers.items()):
            try:
                queue.put_nowait(self._current())
            except asyncio.QueueFull:
                self._losses["clients_slow"] += 1
                del self._watchers[queue]
                writer.transport.abort()

    def losses(self) -> dict[str, int]:
        """Return how many clients were dropped or refused, by reason."""
        return {f"control_{reason}": count for reason, count in self._losses.items()}

    async def close(self) -> None:
        """End all clients and remove the socket file, if it is still this server's."""
        if self._server is not None:
            self._server.close()
        for task in self._clients:
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        with contextlib.suppress(FileNotFoundError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()

    def _current(self) -> bytes:
        """Encode the view, once however many want it."""
        if self._encoded is None:
            self._encoded = msgspec.Raw(msgspec.json.encode(self._view))
        return bytes(self._encoded)

    def _snapshot(self, _params: Mapping[str, Any], _peer: Peer) -> msgspec.Raw:
        if self._view is None:
            raise TidegateError("no snapshot yet: the agent has just started; ask again in a second")
        return msgspec.Raw(self._current())

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        writer.transport.set_write_buffer_limits(high=_WRITE_BUFFER)
        peer = _peer_of(writer)
        refusal = self._refusal(peer)
        self._clients.add(task)
        try:
            writer.write(self._hello)
            if refusal is not None:
                writer.write(_line(Reply(error=refusal)))
                await writer.drain()
            else:
                await self._serve(reader, writer, peer)
        except (ConnectionError, asyncio.CancelledError):
            pass  # the client has gone, or the agent ends
        finally:
            self._clients.discard(task)
            writer.close()

    def _refusal(self, peer: Peer) -> Failure | None:
        if peer.uid not in (0, os.geteuid()):
            self._losses["peers_refused"] += 1
            return Failure(
                message=f"control socket: expected uid 0 or {os.geteuid()}, found uid {peer.uid}; run as root",
                exit_code=3,
            )
        if len(self._clients) >= self._max_clients:
            self._losses["clients_refused"] += 1
            return Failure(
                message=f"control socket: {self._max_clients} clients are connected already; "
                "end one, or raise control.max_clients"
            )
        return None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: Peer) -> None:
        while True:
            try:
                line = await reader.readline()
            except ValueError:  # longer than the limit; what follows can't be told from its rest
                writer.write(_line(Reply(error=Failure(message=f"request: longer than {MAX_REQUEST} bytes"))))
                await writer.drain()
                return
            if not line:
                return
            if line.strip():
                await self._answer(line, reader, writer, peer)

    async def _answer(
        self, line: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: Peer
    ) -> None:
        try:
            request = msgspec.json.decode(line, type=Request)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            writer.write(_line(Reply(error=Failure(message=f"request: not understood: {error}", exit_code=2))))
            await writer.drain()
            return
        if request.method == "watch":
            await self._watch(request, reader, writer)
            return
        try:
            result = await self._call(request, peer)
            reply = Reply(id=request.id, result=msgspec.Raw(msgspec.json.encode(result)))
        except TidegateError as error:
            reply = Reply(id=request.id, error=Failure(message=str(error), exit_code=error.exit_code))
        writer.write(_line(reply))
        await writer.drain()

    async def _call(self, request: Request, peer: Peer) -> Any:
        if (own := self._own.get(request.method)) is not None:
            return own(request.params, peer)
        method = self._methods.get(request.method)
        if method is None:
            known = ", ".join(sorted([*self._own, *self._methods, "watch"]))
            raise TidegateError(f"method {request.method}: not known; known here: {known}")
        # In a thread: it may wait for a tick that is under way, while others are served.
        return await asyncio.to_thread(method, request.params, peer)

    async def _watch(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Send each view that is published, until the client closes its side."""
        queue: asyncio.Queue[bytes] = asyncio.Queue(self._queue_length)
        if self._view is not None:
            queue.put_nowait(self._current())
        self._watchers[queue] = writer
        head = b'{"id":' + msgspec.json.encode(request.id) + b',"result":'
        gone = asyncio.create_task(self._gone(reader))
        following = asyncio.create_task(queue.get())
        try:
            while True:
                await asyncio.wait((following, gone), return_when=asyncio.FIRST_COMPLETED)
                if not following.done():
                    return
                writer.write(head + following.result() + b"}\n")
                following = asyncio.create_task(queue.get())
                await writer.drain()
        finally:
            gone.cancel()
            following.cancel()
            self._watchers.pop(queue, None)

    @staticmethod
    async def _gone(reader: asyncio.StreamReader) -> None:
        """Return when the client is gone; what it sends while it watches is read and dropped."""
        with contextlib.suppress(ConnectionError):
            while await reader.read(4096):
                pass


def _peer_of(writer: asyncio.StreamWriter) -> Peer:
    connection = writer.get_extra_info("socket")
    return Peer(*_PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)))


def _line(message: msgspec.Struct) -> bytes:
    fields = {
        name: value for name, value in msgspec.structs.asdict(message).items() if value not in (None, _NOTHING)
    }
    return msgspec.json.encode(fields) + b"\n"


def _listen(path: Path) -> socket.socket:
    """Bind with mode 0600 from the first instant: in a directory of root's own, under a closed umask."""
    if len(os.fsencode(path)) > 107:
        raise UnavailableError(
            f"control.socket {path}: expected at most 107 bytes, found {len(os.fsencode(path))}; shorten it"
        )
    if _is_alive(path):
        raise UnavailableError(
            f"control.socket {path}: another agent listens there; stop it, or set control.socket to another path"
        )
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    before = os.umask(0o177)
    try:
        os.umask(0o026)  # the feed's socket may be in it, which nginx's workers must reach
        path.parent.mkdir(parents=True, exist_ok=True)
        os.umask(0o177)
        path.unlink(missing_ok=True)
        listener.bind(os.fspath(path))
        listener.listen(16)
    except OSError as error:
        listener.close()
        raise UnavailableError(
            f"control.socket {path}: {error.strerror}; run as root, or set control.socket to a path of your own"
        ) from error
    finally:
        os.umask(before)
    listener.setblocking(False)
    return listener


def _is_alive(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except OSError:
            return False
        return True
