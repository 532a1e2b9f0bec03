# SPDX-License-Identifier: Apache-2.0
"""Opens connections at a fixed rate and closes each at once; run as ``python -m lab.churn``.

Arguments: address, port, connections a second, and the most seconds. Prints a line when it is ready, and begins
when it is given one. Prints what became of the connections as a line of JSON:
connects that succeeded, those that found no port, and when the first of these came (CLOCK_MONOTONIC). It ends a
second after that, or when nobody reads its output any more.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import time

_ENOUGH = 1.0


def churn(address: str, port: int, rate: float, seconds: float) -> dict[str, float | int | None]:
    """Open and close; the connections of a second are spread evenly over it."""
    made = failed = 0
    first_failure: float | None = None
    began = time.monotonic()
    while (now := time.monotonic()) - began < seconds:
        if first_failure is not None and now - first_failure > _ENOUGH:
            break
        due = began + (made + failed) / rate
        if due > now:
            time.sleep(due - now)
        connection = socket.socket()
        error = connection.connect_ex((address, port))
        connection.close()
        if error == errno.EADDRNOTAVAIL:
            failed += 1
            first_failure = first_failure or time.monotonic()
        elif error:
            raise OSError(error, f"connect to {address}:{port}")
        else:
            made += 1
    return {"began": began, "connected": made, "exhausted": failed, "first_failure": first_failure}


if __name__ == "__main__":
    os.setpriority(os.PRIO_PROCESS, 0, -20)  # a steady rate also on a busy machine
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(churn(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))))
