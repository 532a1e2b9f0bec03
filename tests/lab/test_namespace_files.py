# SPDX-License-Identifier: Apache-2.0
"""The counters of a real network namespace, from inside and from outside, against what was done in it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lab.lab import Host, Lab
from lab.network import RUN, enter
from tidegate.kernel.namespaces import run_in_each
from tidegate.signals.namespace_files import NamespaceFiles, read

pytestmark = pytest.mark.lab
OPEN, FULL, CONNECTIONS, REFUSED = 9000, 9001, 5, 4
#: Tracks connections, and counts the SYNs to the port whose queue is full.
RULES = f"""\
table inet t {{
    counter syns {{ }}
    chain c {{
        type filter hook input priority 0
        ct state new tcp dport {FULL} tcp flags & (syn | ack) == syn counter name syns
    }}
}}
"""
#: Closes its connections first, so that they wait in TIME_WAIT; then SYNs that find a full queue.
WORK = f"""\
import socket, sys
server = socket.create_server(("127.0.0.1", {OPEN}))
for _ in range({CONNECTIONS}):
    client = socket.create_connection(("127.0.0.1", {OPEN}))
    accepted = server.accept()[0]
    client.shutdown(socket.SHUT_WR)
    accepted.recv(1)
    accepted.close()
    client.recv(1)
    client.close()
full = socket.create_server(("127.0.0.1", {FULL}), backlog=1)
held = [socket.create_connection(("127.0.0.1", {FULL})) for _ in range(2)]
print("full", flush=True)
sys.stdin.readline()
for _ in range({REFUSED}):
    held.append(socket.socket())
    held[-1].setblocking(False)
    held[-1].connect_ex(("127.0.0.1", {FULL}))
print("sent", flush=True)
sys.stdin.readline()
for client in held[2:]:
    client.close()
print("closed", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def host(lab: Lab) -> Host:
    return lab.host("busy", 6, {"net.core.somaxconn": "77", "net.ipv4.tcp_tw_reuse": "1"})


def inside(host: Host) -> NamespaceFiles:
    """Read the files by a thread that has entered the namespace."""
    found: list[NamespaceFiles] = []
    assert run_in_each([Path("/proc/self/ns/net"), RUN / host.namespace], lambda: found.append(read())) == []
    return found[1]


def syns(host: Host) -> int:
    """Return how many SYNs came to the port whose queue is full."""
    listing = ["nft", "-j", "list", "counter", "inet", "t", "syns"]
    done = subprocess.run(enter(host.namespace, listing), check=True, capture_output=True, text=True)
    return next(
        int(each["counter"]["packets"]) for each in json.loads(done.stdout)["nftables"] if "counter" in each
    )


def test_a_namespace_says_what_was_done_in_it(host: Host) -> None:
    before = inside(host)
    assert before[:7] == (0, 0, 0, 0, 77, 1, 1)
    assert before.conntrack_entries in (None, 0)
    subprocess.run(enter(host.namespace, ["nft", "-f", "-"]), input=RULES, text=True, check=True)
    process = host.popen([sys.executable, "-c", WORK], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        assert process.stdout.readline() == "full\n"
        found = inside(host)
        assert (found.time_wait, found.conntrack_entries) == (CONNECTIONS, CONNECTIONS + 2)
        assert (found.listen_overflows, found.listen_drops) == (0, 0)
        assert found.conntrack_limit is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "sent\n"
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "closed\n"
        # Nobody sends any more: each SYN but the two that found room was dropped.
        found = inside(host)
        assert found.listen_overflows == found.listen_drops == syns(host) - 2 >= REFUSED
        snmp = host.snmp()
        assert found.syn_cookies == snmp["TcpExt.SyncookiesSent"]
        outside = read(Path(f"/proc/{process.pid}/net"), None)
        assert outside[:4] == found[:4]
        assert outside[4:] == (None,) * 5
    finally:
        process.kill()
        process.communicate()
    gone = read(Path(f"/proc/{process.pid}/net"), None)
    assert gone == NamespaceFiles(*[None] * 9)
