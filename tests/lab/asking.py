# SPDX-License-Identifier: Apache-2.0
"""Upstreams that answer as they are told, and clients that ask a proxy; runs in its network namespace already.

The argument is JSON: ``answers`` by port are the statuses that it gives in turn, 0 for no answer; ``clients`` are
pairs of a port and the seconds between its requests. A first line on stdin has the clients begin; further ones are
JSON and change ``answers``; the end of stdin ends it.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ANSWERS: dict[int, Iterator[int]] = {}


class Upstream(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        status = next(ANSWERS[self.server.server_port])  # type: ignore[attr-defined]
        if not status:
            self.rfile.read(1)  # no answer, until the other side gives up
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def answer(wanted: dict[str, list[int]]) -> None:
    """Have ports answer with these statuses from now on; a port that is new begins to listen."""
    for port, statuses in wanted.items():
        known = int(port) in ANSWERS
        ANSWERS[int(port)] = itertools.cycle(statuses)
        if not known:
            server = ThreadingHTTPServer(("127.0.0.1", int(port)), Upstream)
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, daemon=True).start()


def ask(port: int, gap: float) -> None:
    """Ask over one connection, until the proxy has gone."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.suppress(http.client.HTTPException, OSError):
        while True:
            connection.request("GET", "/")
            connection.getresponse().read()
            time.sleep(gap)


def main() -> None:
    """Serve and ask until stdin ends."""
    plan = json.loads(sys.argv[1])
    answer(plan["answers"])
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    for port, gap in plan["clients"]:
        threading.Thread(target=ask, args=(port, gap), daemon=True).start()
    for line in sys.stdin:
        answer(json.loads(line))


if __name__ == "__main__":
    main()
