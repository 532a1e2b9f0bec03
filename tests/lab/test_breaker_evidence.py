# SPDX-License-Identifier: Apache-2.0
"""The table of whose failure it is, by what the real kernel says of real connects."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from lab.lab import Host, Lab
from lab.network import enter
from lab.upstream import Behaviour
from tidegate.breaker.evidence import Evidence, Saw, event_of
from tidegate.model.breaker import Kind
from tidegate.model.outliers import Policy

pytestmark = pytest.mark.lab
PORTS = {
    4001: Behaviour.REFUSE,
    4002: Behaviour.UNREACHABLE,
    4003: Behaviour.DENIED,
    4004: Behaviour.HANG,
    4005: Behaviour.RESET,
    4006: Behaviour.ACCEPT,
    4007: Behaviour.HOLD,
}
#: Connects, and gives up after some seconds; asks for an answer where it is told to. Prints what it saw: where it
#: ended, the errno, its age, how often the SYN was sent again (tcpi_total_retrans), and what was carried.
_CONNECT = """
import errno, json, select, socket, struct, sys, time
address, port, patience, user_timeout, asks, times = json.loads(sys.argv[1])
held, seen = [], []
for _ in range(times):
    s = socket.socket()
    held.append(s)
    s.setblocking(False)
    if user_timeout:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, user_timeout)
    began = time.monotonic()
    found = {"saw": "connect_ended", "error": s.connect_ex((address, port))}
    if found["error"] == errno.EINPROGRESS:
        found["error"] = 0
        if select.select([], [s], [], patience)[1]:
            found["error"] = s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not found["error"]:
                found["saw"] = "connected"
        if found["saw"] != "connected" and not found["error"]:
            info = s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
            found["syn_retransmits"] = struct.unpack_from("I", info, 100)[0]
    found["age"] = time.monotonic() - began
    seen.append(found)
    if found["saw"] == "connected" and asks is not None:
        s.setblocking(True)
        s.settimeout(5)
        if asks:
            s.send(b"x" * asks)
        end = {"saw": "closed", "error": 0, "unanswered": bool(asks), "unused": not asks}
        try:
            s.recv(1)
        except OSError as error:
            end["error"] = error.errno
        seen.append(end)
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    with Lab("-evidence") as lab:
        inventory = lab.host("inventory", 6)
        inventory.service("inventory").upstream(PORTS)
        yield lab.host("gateway", 16), lab.host("full", 17, {"net.ipv4.ip_local_port_range": "40000 40001"})


def connect(
    host: Host, port: int, *, patience: float = 5.0, user_timeout: int = 0, asks: int | None = None, times: int = 1
) -> list[tuple[str, Kind | None]]:
    """Connect from a host; return which rows of the table decide, and what follows."""
    plan = json.dumps(["10.0.0.6", port, patience, user_timeout, asks, times])
    argv = enter(host.namespace, [sys.executable, "-c", _CONNECT, plan])
    found: list[dict[str, Any]] = json.loads(subprocess.run(argv, check=True, capture_output=True).stdout)
    charges = [event_of(Evidence("p", "e", Saw(seen.pop("saw")), **seen), Policy(), 1000.0) for seen in found]
    return [(charge.row, charge.event.kind if charge.event else None) for charge in charges]


CASES: list[tuple[int, dict[str, Any], list[tuple[str, Kind | None]]]] = [
    (4001, {}, [("connect_refused", Kind.CONNECT_REFUSED)]),
    (4002, {}, [("connect_unreachable", Kind.CONNECT_UNREACHABLE)]),
    (4003, {}, [("connect_unreachable", Kind.CONNECT_UNREACHABLE)]),
    (4004, {"patience": 0.05}, [("connect_given_up_early", None)]),
    # The kernel sends a SYN again after a second.
    (4004, {"patience": 1.3}, [("connect_given_up_late", Kind.CONNECT_TIMEOUT)]),
    (4004, {"user_timeout": 500}, [("connect_timed_out", Kind.CONNECT_TIMEOUT)]),
    (4005, {"asks": 1}, [("connected", Kind.CONNECT_OK), ("reset_before_the_answer", Kind.RESET)]),
    (4006, {"asks": 0}, [("connected", Kind.CONNECT_OK), ("closed", None)]),
    (4007, {}, [("connected", Kind.CONNECT_OK)]),
]


@pytest.mark.parametrize(("port", "how", "wanted"), CASES, ids=str)
def test_the_table_by_the_kernel(
    port: int, how: dict[str, Any], wanted: list[tuple[str, Kind | None]], hosts: tuple[Host, Host]
) -> None:
    assert connect(hosts[0], port, **how) == wanted


def test_a_node_without_ports_charges_nobody(hosts: tuple[Host, Host]) -> None:
    assert connect(hosts[1], 4007, times=3) == [
        ("connected", Kind.CONNECT_OK), ("connected", Kind.CONNECT_OK), ("own_error", Kind.LOCAL_FAULT),
    ]  # fmt: skip
