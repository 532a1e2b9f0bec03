# SPDX-License-Identifier: Apache-2.0
"""Calls paths of an HTTP server in turn at a steady rate, and counts the answers.

Run as ``python -m lab.visitors PLAN`` with ``{base, paths, rate, count}``; ends after ``count`` calls, or when a
line comes on stdin; prints ``{path: {status: n}}``. Connections are kept, unless ``anew``: then each call makes
its own. ``patience`` is for how many seconds it waits, and ``cpu`` the one on which it runs.
"""

from __future__ import annotations

import http.client
import json
import os
import select
import sys
import time

TIMEOUT = 10.0


def visit(
    base: str,
    paths: list[str],
    rate: float,
    count: int,
    *,
    anew: bool = False,
    patience: float = TIMEOUT,
    cpu: int | None = None,
) -> dict[str, dict[str, int]]:
    """Make the calls, one after the other."""
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    connection = http.client.HTTPConnection(base, timeout=patience)
    answers: dict[str, dict[str, int]] = {path: {} for path in paths}
    began = time.monotonic()
    for n in range(count):
        if select.select([sys.stdin], [], [], max(began + n / rate - time.monotonic(), 0))[0]:
            break
        if anew:
            connection.close()
        path = paths[n % len(paths)]
        try:
            outcome = str(call(connection, path))
        except (OSError, http.client.HTTPException):
            connection.close()
            outcome = "failed"
        answers[path][outcome] = answers[path].get(outcome, 0) + 1
    connection.close()
    return answers


def call(connection: http.client.HTTPConnection, path: str) -> int:
    """Return the status of one call; once more on a new connection where the server has closed the idle one."""
    for is_last in (connection.sock is None, True):
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            return response.status
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            connection.close()
            if is_last:
                raise
    raise AssertionError("not reached")


def main() -> None:
    """Do what the plan says."""
    sys.stdout.write(json.dumps(visit(**json.loads(sys.argv[1]))) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
