# SPDX-License-Identifier: Apache-2.0
"""A flood of spoofed source addresses into a host, sent and received on one CPU as if a network card had it.

Run as ``python -m lab.flood PLAN`` in the switch's namespace; ends after ``count`` packets, or when a line comes
on stdin; prints ``{"sent": n, "seconds": s}``. The program lab/flood.bpf.c makes the packets, in live runs
(BPF_F_TEST_XDP_LIVE_FRAMES): they go by XDP past the bridge into the host's veth, which takes them in the same
thread's softirq. With ``preempts``, that comes before all processes on its CPU, as a card's interrupt does.
"""

from __future__ import annotations

import json
import math
import os
import select
import socket
import struct
import subprocess
import sys
import time
from enum import StrEnum
from ipaddress import IPv4Address
from typing import NamedTuple

import msgspec

from lab.lab import ROOT, Host
from lab.lifeline import end_with_the_lab
from lab.network import enter
from tidegate.kernel.objects import BpfObject, Program

OBJECT = ROOT / "build/flood.bpf.o"
#: Offsets in a frame, as in lab/flood.bpf.c.
_IP, _SEGMENT = 14, 34
_SMALLEST = 60
#: A card gives its packets in bursts: so many a second.
_BURSTS = 500
#: What is later than this isn't made up for.
_LATE = 0.01
_FULL_SPEED = 1 << 16


class Kind(StrEnum):
    """What the packets are."""

    SYN = "syn"
    ACK = "ack"
    UDP = "udp"


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """``count`` packets, ``rate`` a second (None: as many as go), from ``sources`` addresses in turn.

    They go to ``address`` and ``port``, whose hardware address is ``mac``, out of ``interface``. ``cpu`` sends and
    receives: only one, as the program counts without care for others.
    """

    interface: str
    mac: str
    address: str
    port: int
    kind: Kind = Kind.SYN
    first: str = "172.16.0.0"
    sources: int = 1_000_000
    count: int = 1_000_000
    rate: float | None = None
    cpu: int
    preempts: bool = False


class Sent(NamedTuple):
    """What has been sent, and in how long."""

    packets: int
    seconds: float


class Flood:
    """The program with a plan's template; a context manager."""

    def __init__(self, plan: Plan) -> None:
        self.frame = template(plan)
        self._bpf = BpfObject(OBJECT)
        segment = self.frame[_SEGMENT:]
        pseudo = self.frame[_IP + 12 : _SEGMENT] + struct.pack("!HH", self.frame[_IP + 9], len(segment))
        checksum = _SEGMENT + (6 if plan.kind is Kind.UDP else 16)
        for name, value in {
            "interface": socket.if_nametoindex(plan.interface),
            "first": int(IPv4Address(plan.first)),
            "sources": plan.sources,
            "step": step(plan.sources),
            "checksum": checksum,
            "ip_sum": _sum(self.frame[_IP:_SEGMENT]),
            "sum": _sum(pseudo + segment),
        }.items():
            self._bpf.set_constant(name, struct.pack("=I", value))
        self._bpf.load()
        # A run of a program that is attached nowhere begins and ends with a grace period (kernel: dispatcher.c).
        self._bpf.links.append(self.program().attach_xdp(socket.if_nametoindex("lo")))

    @property
    def sent(self) -> int:
        """How many packets the program has made, by its own count."""
        return self._bpf.variable("sent")

    def program(self, name: str = "flood") -> Program:
        """Return one of the programs."""
        return self._bpf.programs[name]

    def judged_by(self, program: Program, count: int) -> int:
        """Have another program judge so many frames that go nowhere; return the ns of one, its making included."""
        self._bpf.maps["target"][bytes(4)] = struct.pack("=I", program.fd)
        return self.program("to_program").test_run(self.frame, repeat=count).duration_ns

    def send(self, count: int) -> None:
        """Send as fast as it goes; returns when all has been received."""
        self.program().live_run(self.frame, repeat=count)

    def close(self) -> None:
        """Unload the program; twice is harmless."""
        self._bpf.close()

    def __enter__(self) -> Flood:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Flooding:
    """A flood that goes on in a process of its own, into a host of the lab."""

    def __init__(self, host: Host, plan: Plan) -> None:
        cgroup = host.lab.cgroup / f"flood{host.lab.tag}.service"
        cgroup.mkdir(exist_ok=True)
        argv = [sys.executable, "-m", "lab.flood", msgspec.json.encode(plan).decode()]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = host.lab.popen(
            enter(host.lab.switch.name, argv, cgroup), {**pipes, "cwd": ROOT, "start_new_session": True}
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        for pipe in (self._process.stdin, self._process.stdout):
            host.lab.stack.callback(pipe.close)
        if self._process.stdout.readline() != "ready\n":
            raise RuntimeError(f"lab: the flood has ended, exit code {self._process.wait()}")

    def stop(self) -> None:
        """End before all is sent."""
        assert self._process.stdin is not None
        self._process.stdin.write("stop\n")
        self._process.stdin.flush()

    def results(self) -> Sent:
        """Wait for the end; return what was sent."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"lab: the flood has ended, exit code {self._process.wait()}")
        return Sent(**json.loads(line))


def into(host: Host, port: int, **options: object) -> Plan:
    """Return a plan of a flood into a host's only interface; ``options`` as in :class:`Plan`."""
    shown = subprocess.run(
        enter(host.namespace, ["ip", "-json", "link", "show", "eth0"]), capture_output=True, text=True, check=True
    )
    mac = json.loads(shown.stdout)[0]["address"]
    return Plan(interface=f"port{host.number}", mac=mac, address=host.v4, port=port, **options)  # type: ignore[arg-type]


def template(plan: Plan) -> bytes:
    """Return the frame, without what differs from packet to packet: source address, source port, checksums."""
    mac = bytes.fromhex(plan.mac.replace(":", ""))
    ethernet = mac + bytes.fromhex("020000000001") + struct.pack("!H", 0x0800)
    room = _SMALLEST - _SEGMENT
    if plan.kind is Kind.UDP:
        segment = struct.pack("!HHHH", 0, plan.port, room, 0).ljust(room, b"\0")
    else:
        flags, payload = (0x02, b"") if plan.kind is Kind.SYN else (0x18, bytes(room - 20))
        segment = struct.pack("!HHIIBBHHH", 0, plan.port, 1, 0, 5 << 4, flags, 65535, 0, 0) + payload
    protocol = socket.IPPROTO_UDP if plan.kind is Kind.UDP else socket.IPPROTO_TCP
    address = IPv4Address(plan.address).packed
    ip = struct.pack("!BBHHHBBH4x4s", 0x45, 0, 20 + len(segment), 1, 0, 64, protocol, 0, address)
    return ethernet + ip + segment


def step(sources: int) -> int:
    """Return a step with which all sources have their turn, in an order without sense."""
    found = max(int(sources * 0.618), 1)
    while math.gcd(found, sources) > 1:
        found += 1
    return found


def _sum(data: bytes) -> int:
    """Add up words in the machine's byte order, which a one's complement sum leaves open (RFC 1071)."""
    return sum(struct.unpack(f"={len(data) // 2}H", data))


def run(plan: Plan, flood: Flood) -> Sent:
    """Send until all is sent or a line comes on stdin."""
    began = due = time.monotonic()
    burst = _FULL_SPEED if plan.rate is None else max(round(plan.rate / _BURSTS), 1)
    while (left := plan.count - flood.sent) > 0:
        if select.select([sys.stdin], [], [], max(due - time.monotonic(), 0))[0]:
            break
        flood.send(min(burst, left))
        if plan.rate is not None:
            due = max(due + burst / plan.rate, time.monotonic() - _LATE)
    return Sent(flood.sent, time.monotonic() - began)


def main() -> None:
    """Do what the plan says."""
    plan = msgspec.json.decode(sys.argv[1], type=Plan)
    os.sched_setaffinity(0, {plan.cpu})
    end_with_the_lab()
    with Flood(plan) as flood:
        if plan.preempts:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sent = run(plan, flood)
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    sys.stdout.write(json.dumps(sent._asdict()) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
