# SPDX-License-Identifier: Apache-2.0
"""Clients that each send the next HTTP/1.1 request once the last is answered, over a connection that they keep.

Run as ``python -m lab.closedloop PLAN`` with ``{host, port, path, workers, patience, count, pause}``; ends when
``count`` requests are done (0: never), or when stdin is closed. Then it prints each request as a line of JSON, by
its end: ``[start, end, status, body]`` with times of CLOCK_MONOTONIC; status 0 for what wasn't answered, with the
reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
import time
from typing import NamedTuple

from lab.lab import ROOT, Host
from lab.network import enter


class Request(NamedTuple):
    """One request, as its client saw it; ``status`` 0 where no answer came, and ``body`` says why."""

    start: float
    end: float
    status: int
    body: str


class ClosedLoop:
    """Clients on a host, in a process of their own, from now until :meth:`stop`.

    Each waits ``pause`` seconds before its next request.
    """

    def __init__(
        self,
        host: Host,
        server: str,
        port: int,
        *,
        workers: int = 20,
        count: int = 0,
        patience: float = 10.0,
        pause: float = 0.0,
    ) -> None:
        plan = {
            "host": server,
            "port": port,
            "path": "/",
            "workers": workers,
            "patience": patience,
            "count": count,
            "pause": pause,
        }
        argv = [sys.executable, "-m", "lab.closedloop", json.dumps(plan)]
        self._process: subprocess.Popen[str] = host.lab.popen(
            enter(host.namespace, argv, host.lab.cgroup),
            {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "cwd": ROOT, "start_new_session": True},
        )
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            host.lab.stack.callback(pipe.close)

    def stop(self) -> list[Request]:
        """Have each client end after the request that it has sent; return all requests by their ends."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self.results()

    def results(self) -> list[Request]:
        """Wait until all is done, and return all requests by their ends."""
        assert self._process.stdout is not None
        text = self._process.stdout.read()
        if self._process.wait():
            raise RuntimeError(f"lab: the closed loop has ended, exit code {self._process.returncode}")
        return [Request(*json.loads(line)) for line in text.splitlines()]


class _Clients:
    def __init__(
        self, host: str, port: int, path: str, workers: int, patience: float, count: int, pause: float
    ) -> None:
        self._server, self._workers, self._patience, self._pause = (host, port), workers, patience, pause
        self._request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        self._left = count or sys.maxsize
        self._ended = asyncio.Event()
        self._requests: list[Request] = []

    def end(self) -> None:
        self._ended.set()

    async def run(self) -> list[Request]:
        await asyncio.gather(*(self._work() for _ in range(self._workers)))
        return self._requests

    async def _work(self) -> None:
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while self._left > 0 and not self._ended.is_set():
            self._left -= 1
            start = time.monotonic()
            try:
                async with asyncio.timeout(self._patience):
                    streams = streams or await asyncio.open_connection(*self._server)
                    status, body, is_kept = await self._call(*streams)
            except (OSError, EOFError, ValueError) as error:
                status, body, is_kept = 0, f"{type(error).__name__}: {error}", False
            self._requests.append(Request(start, time.monotonic(), status, body))
            if streams is not None and not is_kept:
                streams[1].close()
                streams = None
            if not status:
                await asyncio.sleep(0.01)  # or a proxy that is away would be called without a pause
            if self._pause:
                await asyncio.sleep(self._pause)
                if streams is not None and streams[0].at_eof():
                    streams[1].close()  # by the server meanwhile, as any client sees before it sends
                    streams = None
        if streams is not None:
            streams[1].close()
            with contextlib.suppress(OSError):
                await streams[1].wait_closed()

    async def _call(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[int, str, bool]:
        writer.write(self._request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        status = int(head.split(" ", 2)[1])
        headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        if "content-length" in headers:
            body = await reader.readexactly(int(headers["content-length"]))
            is_kept = headers.get("connection") != "close"
        else:
            body, is_kept = await reader.read(), False
        return status, body.decode("utf-8", "replace").strip(), is_kept


async def _main(plan: str) -> list[Request]:
    clients = _Clients(**json.loads(plan))
    loop = asyncio.get_running_loop()

    def watch() -> None:
        sys.stdin.read()
        with contextlib.suppress(RuntimeError):  # all was done before
            loop.call_soon_threadsafe(clients.end)

    threading.Thread(target=watch, name="stdin", daemon=True).start()
    return await clients.run()


def main() -> None:
    """Do what the plan says."""
    for request in asyncio.run(_main(sys.argv[1])):
        sys.stdout.write(json.dumps(request) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
