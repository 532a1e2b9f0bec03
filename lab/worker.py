# SPDX-License-Identifier: Apache-2.0
"""A process of a service: joins its cgroup before it makes a socket, then serves and generates on request.

Runs in its network namespace already. Lines on stdin, one answer line each on stdout:
``listen {port: behaviour}``, ``accepted``, ``resets``, ``transferred``, ``generate PLAN``, ``exchange EXCHANGE``
(over held connections), ``release`` (closes held connections).
"""

from __future__ import annotations

import json
import os
import resource
import selectors
import sys
from collections.abc import Callable
from pathlib import Path

from lab.generator import Generator
from lab.lifeline import end_with_the_lab
from lab.results import Results, dump, load_exchange, load_plan
from lab.upstream import Behaviour, Upstream


class Worker:
    """One worker process."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._upstreams: list[Upstream] = []
        self._generators: list[Generator] = []
        self._running = True

    def run(self) -> None:
        """Serve until stdin ends."""
        self._selector.register(sys.stdin, selectors.EVENT_READ, self._command)
        while self._running:
            for key, _ in self._selector.select():
                handler: Callable[[], None] = key.data
                handler()

    def _command(self) -> None:
        command, _, argument = sys.stdin.readline().rstrip("\n").partition(" ")
        if not command:
            self._running = False
            return
        sys.stdout.write(self._answer(command, argument) + "\n")
        sys.stdout.flush()

    def _answer(self, command: str, argument: str) -> str:
        answer = "{}"
        match command:
            case "listen":
                ports = {int(port): Behaviour(behaviour) for port, behaviour in json.loads(argument).items()}
                self._upstreams.append(Upstream(ports, self._selector))
            case "accepted":
                for upstream in self._upstreams:
                    upstream.accept_waiting()
                answer = json.dumps({p: n for upstream in self._upstreams for p, n in upstream.accepted.items()})
            case "resets":
                answer = json.dumps({p: n for upstream in self._upstreams for p, n in upstream.resets.items()})
            case "transferred":
                for upstream in self._upstreams:
                    upstream.read_waiting()
                answer = dump({p: t for upstream in self._upstreams for p, t in upstream.transferred.items()})
            case "generate":
                generator = Generator(load_plan(argument))
                self._generators.append(generator)
                answer = dump(generator.run())
            case "exchange":
                exchange = load_exchange(argument)
                answer = dump(Results.sum(generator.exchange(exchange) for generator in self._generators))
            case "release":
                generators, self._generators = self._generators, []
                answer = dump(Results.sum(generator.close() for generator in generators))
            case _:
                raise ValueError(f"worker: unknown command {command}")
        return answer


def main() -> None:
    """Join the cgroup given as the only argument, say so, and run."""
    Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
    end_with_the_lab()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    sys.stdout.write("{}\n")
    sys.stdout.flush()
    Worker().run()


if __name__ == "__main__":
    main()
