# SPDX-License-Identifier: Apache-2.0
"""The lab itself: hosts on a switch, services on hosts, all gone when it is closed."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Self

from pyroute2 import netns

from lab.counters import open_sockets, snmp
from lab.delay import DEVICE
from lab.fleeting import Fleeting
from lab.loss import Loss, Segment, by_chance, chosen
from lab.network import (
    DEFAULTS,
    Switch,
    add_addresses,
    cgroup_root,
    enter,
    keep_order,
    lab_name,
    remove_cgroup,
    remove_namespaces,
    send_single_segments,
    set_sysctls,
    sweep,
)
from lab.results import Exchange, Plan, Results, Transfer, dump, load_results, load_transfers
from lab.upstream import Behaviour, ruleset

ROOT = Path(__file__).parents[1]
_numbers = itertools.count()


class Service:
    """A process with a cgroup of its own on a host: an upstream, a client, or both."""

    def __init__(self, host: Host, name: str) -> None:
        self.host, self.name = host, name
        self.unit = f"{name}{host.lab.tag}.service"
        self.cgroup = host.lab.cgroup / self.unit
        self.cgroup.mkdir(parents=True)
        self._process = subprocess.Popen(
            enter(host.namespace, [sys.executable, "-m", "lab.worker", str(self.cgroup)]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            start_new_session=True,  # Ctrl-C is for the lab, which then ends its processes
        )
        self._read()

    def upstream(self, ports: Mapping[int, Behaviour]) -> None:
        """Listen on ports, each with its behaviour."""
        self._ask("listen", json.dumps({port: behaviour.value for port, behaviour in ports.items()}))
        rules = ruleset(dict(ports))
        if rules:
            subprocess.run(enter(self.host.namespace, ["nft", "-f", "-"]), input=rules, text=True, check=True)

    def accepted(self) -> dict[int, int]:
        """Return how many connections each port has accepted."""
        return {int(port): count for port, count in json.loads(self._ask("accepted")).items()}

    def resets(self) -> dict[int, int]:
        """Return how many connections each port has reset after they were established."""
        return {int(port): count for port, count in json.loads(self._ask("resets")).items()}

    def transferred(self) -> dict[int, Transfer]:
        """Return what each port has read and sent until now; what is on its way isn't in it yet."""
        return load_transfers(self._ask("transferred"))

    def generate(self, plan: Plan) -> Results:
        """Run a plan and return what the generator counted."""
        return self.begin(plan)()

    def begin(self, what: Plan | Exchange) -> Callable[[], Results]:
        """Start a plan or an exchange; what is returned waits for its results."""
        self._send("generate" if isinstance(what, Plan) else "exchange", dump(what))
        return lambda: load_results(self._read())

    def exchange(self, exchange: Exchange) -> Results:
        """Carry data over the connections that plans have held; return what this alone has added."""
        return self.begin(exchange)()

    def release(self) -> Results:
        """Close the connections that plans have held; return what this alone has added: lifetimes, who closed."""
        return load_results(self._ask("release"))

    def popen(self, argv: list[str], **options: Any) -> subprocess.Popen[str]:
        """Run any program as part of this service: in its cgroup and its host's namespace; ended with the lab."""
        return self.host.lab.popen(enter(self.host.namespace, argv, self.cgroup), options)

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _ask(self, command: str, argument: str = "") -> str:
        self._send(command, argument)
        return self._read()

    def _send(self, command: str, argument: str) -> None:
        pipe: IO[str] | None = self._process.stdin
        assert pipe is not None
        pipe.write(f"{command} {argument}\n")
        pipe.flush()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"lab: the process of {self.name} has ended, exit code {self._process.wait()}")
        return line


class Host:
    """A network namespace with one interface."""

    def __init__(self, lab: Lab, name: str, number: int, sysctls: Mapping[str, str], steady: bool) -> None:
        self.lab, self.name, self.number = lab, name, number
        self.namespace = f"{lab.name}-{name}"
        self.v4, self.v6 = f"10.0.0.{number}", f"fd00::{number}"
        netns.create(self.namespace)
        set_sysctls(self.namespace, {**DEFAULTS, **sysctls})
        port = f"port{number}"
        lab.switch.plug(self.namespace, port, [f"{self.v4}/24", f"{self.v6}/64"])
        if steady:
            send_single_segments(self.namespace, "eth0")
            keep_order(self.namespace, "eth0")
            keep_order(lab.switch.name, port)
        self._losses: list[Loss] = []
        self._by_chance: Loss | None = None

    def service(self, name: str) -> Service:
        """Start a service on this host; its cgroup ends in its ``unit``."""
        service = Service(self, name)
        self.lab.stack.callback(service.close)
        return service

    def come_and_go(self, connects: Mapping[str, int], address: str, port: int) -> Fleeting:
        """Start services that live one after the other; ``connects`` of each, by cgroup below the lab's."""
        argv = [sys.executable, "-m", "lab.fleeting", address, str(port)]
        process = self.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, start_new_session=True)
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            self.lab.stack.callback(pipe.close)
        return Fleeting(process, {str(self.lab.cgroup / path): n for path, n in connects.items()})

    def popen(self, argv: list[str], **options: Any) -> subprocess.Popen[str]:
        """Run any program in this host's namespace, in no service; it is ended with the lab at the latest."""
        return self.lab.popen(enter(self.namespace, argv, self.lab.cgroup), options)

    def lose(self, percent: float) -> None:
        """Lose this share of the TCP packets that come from other hosts; 0 ends it."""
        if self._by_chance is not None:
            self._by_chance.remove()
        self._by_chance = self._losing(Loss(self.namespace, by_chance(percent))) if percent else None

    def drop(self, segment: Segment, port: int, *, first: int | None = None, only: int | None = None) -> Loss:
        """Lose chosen segments that come from other hosts, to this port or from it, until the loss is removed.

        The ``first`` so many, the one numbered ``only`` (from 1) among all of its kind, or every one.
        """
        return self._losing(Loss(self.namespace, chosen(segment, first, only), port))

    def dropped(self) -> int:
        """Return how many packets this host has lost by all of :meth:`lose` and :meth:`drop`."""
        return sum(loss.dropped() for loss in self._losses)

    def snmp(self) -> dict[str, int]:
        """Return the kernel's own counters of this namespace, by ``Tcp.OutRsts``, ``TcpExt.TCPTimeouts`` etc."""
        return snmp(self._print(["cat", "/proc/self/net/snmp", "/proc/self/net/netstat"]))

    def sockets(self) -> int:
        """Return how many TCP sockets there are, orphans too, but for those that listen or are in TIME_WAIT."""
        return open_sockets(self._print(["ss", "-Htan"]))

    def _losing(self, loss: Loss) -> Loss:
        self._losses.append(loss)
        return loss

    def _print(self, argv: list[str]) -> str:
        return subprocess.run(enter(self.namespace, argv), check=True, capture_output=True, text=True).stdout


class Lab:
    """A context manager around everything that the lab makes; first removes what dead labs left.

    ``tag`` stands in the unit of each service, NAME``tag``.service: two labs of one machine are told apart by it.
    """

    def __init__(self, tag: str = "") -> None:
        sweep()
        self.tag = tag
        self.name = lab_name(next(_numbers))
        self.hosts: dict[str, Host] = {}
        self._pid = os.getpid()
        self.cgroup = cgroup_root() / self.name
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        atexit.register(self.close)
        self.stack.callback(remove_namespaces, self.name)
        self.stack.callback(remove_cgroup, self.cgroup)
        try:
            self.cgroup.mkdir()
            self.switch = Switch(f"{self.name}-switch")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove everything.

        Does nothing in a forked child: pyroute2 forks and ends its children by SIGTERM, and a handler of that
        signal that raises would unwind the stack which the child has inherited, and remove the parent's lab.
        """
        if os.getpid() == self._pid:
            atexit.unregister(self.close)
            self.stack.close()

    def popen(self, command: list[str], options: Mapping[str, Any]) -> subprocess.Popen[str]:
        """Start a command that has been told where to run, and end it with the lab."""
        process: subprocess.Popen[str] = subprocess.Popen(command, text=True, **options)
        self.stack.callback(process.wait)
        self.stack.callback(process.kill)
        return process

    def slow_path(self, one: Host, other: Host, low: float, high: float, seed: int = 1) -> None:
        """Connect two hosts by a path that delays each packet by ``low`` to ``high`` seconds.

        Over it they have the addresses 10.9.0.NUMBER and fd09::NUMBER.
        """
        cgroup = self.cgroup / f"path-{one.number}-{other.number}.service"
        cgroup.mkdir()
        argv = [sys.executable, "-m", "lab.delay", str(cgroup), one.namespace, other.namespace]
        argv += [str(low), str(high), str(seed)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = self.popen(argv, {**pipes, "cwd": ROOT, "start_new_session": True})
        assert process.stdin is not None
        assert process.stdout is not None
        self.stack.callback(process.stdin.close)
        self.stack.callback(process.stdout.close)
        if process.stdout.readline() != "ready\n":
            raise RuntimeError(f"lab: the slow path has ended, exit code {process.wait()}")
        for host in (one, other):
            add_addresses(host.namespace, DEVICE, [f"10.9.0.{host.number}/24", f"fd09::{host.number}/64"])

    def host(
        self, name: str, number: int, sysctls: Mapping[str, str] | None = None, *, steady: bool = False
    ) -> Host:
        """Add a host with the addresses 10.0.0.NUMBER and fd00::NUMBER (hexadecimal there).

        Each packet that a ``steady`` host sends is one TCP segment, so that a chosen one can be lost, and packets
        keep their order. TCP then sends nothing again without a loss but for tail loss probes, when the machine is
        busy and an ACK late; the sysctl tcp_early_retrans=0 leaves them out.
        """
        self.hosts[name] = Host(self, name, number, sysctls or {}, steady)
        return self.hosts[name]
