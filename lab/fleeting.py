# SPDX-License-Identifier: Apache-2.0
"""Services that come and go: each is a cgroup, made, with one process that connects and ends, and removed again.

Run as ``python -m lab.fleeting ADDRESS PORT`` in a host's namespace, with ``{cgroup: connects}`` as one line of
JSON on stdin; says ``done`` on stdout once the last one is gone.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from lab.lifeline import end_with_the_lab


class Fleeting:
    """A process that works through a list of cgroups."""

    def __init__(self, process: subprocess.Popen[str], plan: dict[str, int]) -> None:
        self._process = process
        assert process.stdin is not None
        process.stdin.write(json.dumps(plan) + "\n")
        process.stdin.flush()

    def running(self) -> bool:
        """Tell whether there are cgroups still to come."""
        return self._process.poll() is None

    def wait(self) -> None:
        """Wait until the last one is gone."""
        assert self._process.stdout is not None
        said = self._process.stdout.read()
        if self._process.wait() or said != "done\n":
            raise RuntimeError(
                f"lab: expected all fleeting services to connect, found exit {self._process.returncode}"
            )


def live(cgroup: Path, connects: int, address: tuple[str, int]) -> None:
    """Be one service from its first to its last moment."""
    cgroup.mkdir(parents=True)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            (cgroup / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
            for _ in range(connects):
                socket.create_connection(address).close()
            code = 0
        finally:
            os._exit(code)
    if os.waitpid(child, 0)[1]:
        raise RuntimeError(f"lab: expected {cgroup.name} to connect {connects} times to {address}, it failed")
    cgroup.rmdir()


def main() -> None:
    """Live them all, one after the other."""
    plan = json.loads(sys.stdin.readline())
    end_with_the_lab()
    for cgroup, connects in plan.items():
        live(Path(cgroup), connects, (sys.argv[1], int(sys.argv[2])))
    sys.stdout.write("done\n")


if __name__ == "__main__":
    main()
