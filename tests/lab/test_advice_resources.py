# SPDX-License-Identifier: Apache-2.0
"""Findings of CPU and memory: real limits that cause each, and near misses."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from lab.lab import Lab
from tests.lab.advised import QUICK, AdvisedLab
from tests.lab.limited import Limited
from tidegate.model.limits import Advice
from tidegate.model.snapshot import View

pytestmark = pytest.mark.lab
MIB = 1 << 20
HOLD = "block = b'x' * int(sys.argv[1])\nprint('ready', flush=True)\nsys.stdin.read()"
HOG = f"block = bytearray({200 * MIB})\nfor i in range(0, len(block), 4096): block[i] = 1"
BUSY = "import time\nend = time.monotonic() + float(sys.argv[1])\nwhile time.monotonic() < end: pass"
PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def limited(stack: ExitStack, lab: Lab, name: str) -> Limited:
    return stack.enter_context(Limited(f"/tglab-advice-{os.getpid()}/{name}{lab.tag}.service"))


def started(stack: ExitStack, cgroup: Limited, code: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a process that says when it is ready; it is ended with the test."""
    process = cgroup.start(code, *arguments, **PIPES)
    stack.callback(process.communicate)
    stack.callback(process.kill)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(("cpus", "is_throttled"), [(0.2, True), (2.0, False)])
def test_a_service_that_its_limit_stops(lab: Lab, stack: ExitStack, cpus: float, is_throttled: bool) -> None:
    greedy = limited(stack, lab, "greedy")
    greedy.limit_cpu(cpus)
    advised = stack.enter_context(AdvisedLab(lab))
    with greedy.start(BUSY, "4"):
        if not is_throttled:
            assert advised.findings(advised.after(3)) == []
            return
        advised.after(2)
        view = advised.until(lambda v: bool(v.findings), "found")
        stopped = greedy.throttled()[2]
    finding = advised.one(view, "cpu_throttled")
    assert 0.5 <= float(finding.evidence["throttled_seconds"]) <= stopped + 0.005
    assert finding.evidence["cpu_limit"] == cpus


@pytest.mark.parametrize(("held", "is_near"), [(60, True), (25, False)])
def test_a_service_near_its_memory_limit(lab: Lab, stack: ExitStack, held: int, is_near: bool) -> None:
    full = limited(stack, lab, "full")
    full.limit_memory(64 * MIB)
    advised = stack.enter_context(AdvisedLab(lab))
    started(stack, full, HOLD, str(held * MIB))
    if not is_near:
        assert advised.findings(advised.after(3)) == []
        return
    finding = advised.one(advised.until(lambda v: bool(v.findings), "found"), "memory_near_limit")
    assert finding.evidence["limit_bytes"] == 64 * MIB
    assert held * MIB <= int(finding.evidence["working_set_bytes"]) <= 64 * MIB


def test_a_kill_by_the_kernel_is_found_and_another_is_not(lab: Lab, stack: ExitStack) -> None:
    hungry = limited(stack, lab, "hungry")
    hungry.limit_memory(30 * MIB)
    advised = stack.enter_context(AdvisedLab(lab))
    other = hungry.start("import time; time.sleep(60)")
    other.kill()
    other.wait()
    assert advised.findings(advised.after(2)) == []
    assert hungry.start(HOG).wait(60) == -signal.SIGKILL
    finding = advised.one(advised.until(lambda v: bool(v.findings), "found"), "oom_killed")
    assert finding.evidence["kills"] == hungry.oom_kills() == 1
    assert finding.evidence["limit_bytes"] == 30 * MIB


UID = "01234567-89ab-4cde-8f01-23456789abcd"
POD = f"/kubepods-pod{UID.replace('-', '_')}.slice"
APP, SHIPPER = ("a" * 64, "b" * 64)

#: The log shipper: works for a few milliseconds on each line before it takes the next one.
SHIP = """
import socket
connection = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("ready", flush=True)
peer, _ = connection.accept()
while peer.recv(1):
    for _ in range(100_000): pass
    peer.send(b".")
"""
#: The app: answers when its line has been taken, or at once.
ANSWER = """
import socket
log = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
server = socket.create_server(("127.0.0.1", int(sys.argv[2])), backlog=200)
print("ready", flush=True)
while True:
    peer, _ = server.accept()
    peer.recv(100)
    log.send(b"x")
    if sys.argv[3] == "waits":
        log.recv(1)
    peer.send(b"answer")
    peer.close()
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def ask(port: int, count: int) -> None:
    for _ in range(count):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.send(b"?" * 100)
            assert connection.recv(100) == b"answer"


@pytest.mark.parametrize("waits", [True, False])
def test_a_log_shipper_at_its_limit_starves_an_app_only_if_that_waits_for_it(
    lab: Lab, stack: ExitStack, waits: bool
) -> None:
    app, shipper = (stack.enter_context(Limited(f"{POD}/cri-containerd-{id_}.scope")) for id_ in (APP, SHIPPER))
    shipper.limit_cpu(2)
    log, port = free_port(), free_port()
    advice = Advice(window=6.0, interval=0.0, hold=1.0, ignore=QUICK.ignore)
    advised = stack.enter_context(AdvisedLab(lab, advice=advice, services=[f"pod/{UID}"]))
    started(stack, shipper, SHIP, str(log))
    started(stack, app, ANSWER, str(log), str(port), "waits" if waits else "goes on")
    end = time.monotonic() + 7  # until a window has a time before it
    while time.monotonic() < end:
        ask(port, 20)
        assert advised.findings(advised.measure()) == []
    shipper.limit_cpu(0.1)
    wanted = "starved_sidecar" if waits else "cpu_throttled"
    seen: list[str] = []

    def is_found(view: View) -> bool:
        ask(port, 30)  # the next view's
        seen.extend(f"{finding.id} {finding.evidence}" for finding in view.findings or ())
        return sum(said.startswith(wanted) for said in seen) > 3

    finding = advised.one(advised.until(is_found, "found"), wanted)
    if waits:
        assert finding.subject == f"pod/{UID}/{SHIPPER[:12]} starves pod/{UID}/{APP[:12]}"
        evidence = finding.evidence
        assert float(evidence["sibling_latency_seconds"]) > 2 * float(evidence["sibling_latency_seconds_before"])
    else:
        assert not [said for said in seen if said.startswith("starved_sidecar")]
        assert finding.subject == f"pod/{UID}/{SHIPPER[:12]}"
    assert float(finding.evidence["throttled_seconds"]) > 0.5
