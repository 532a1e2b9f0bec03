# SPDX-License-Identifier: Apache-2.0
"""A client and a server of the lab with exchanges between them, and what forces each kind of retransmission."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lab.lab import Host, Lab, Service
from lab.loss import Loss, Segment
from lab.upstream import Behaviour
from tests.lab.remains import wait_until

#: TCP keeps what it learned of a path for the next connection; here each is to begin alike.
FORGET = {"net.ipv4.tcp_no_metrics_save": "1"}
#: On a busy machine ACKs are late, and the probes would be the only retransmissions without a loss.
NO_PROBES = {"net.ipv4.tcp_early_retrans": "0"}
PORTS = range(5000, 5010)
ADDRESSES = ["10.0.0.6", "fd00::6"]
#: Requests and responses below and above what a socket's buffers hold, and how often.
SIZES = ((9, 0, 3), (100, 1_500_001, 2), (1_000_003, 10, 2), (20_000, 50_000, 3), (1448, 1448, 5))


@dataclass(frozen=True)
class Pair:
    """A client and a server."""

    server: Host
    client: Host
    upstream: Service
    shop: Service

    def settle(self) -> None:
        """Wait until both sides have closed everything."""
        wait_until(lambda: self.server.sockets() + self.client.sockets() == 0, "without open sockets", 30)

    def grown(self, act: Callable[[], object]) -> tuple[dict[str, int], dict[str, int]]:
        """Return what the kernel's counters of the client and of the server have grown by."""
        hosts = (self.client, self.server)
        before = [host.snmp() for host in hosts]
        act()
        self.settle()
        after = [host.snmp() for host in hosts]
        client, server = ({k: n - b[k] for k, n in a.items()} for b, a in zip(before, after, strict=True))
        return client, server


def pair_of(lab: Lab, sysctls: dict[str, str]) -> Pair:
    server, client = (
        lab.host(name, number, {**FORGET, **sysctls}, steady=True)
        for name, number in (("inventory", 6), ("client", 16))
    )
    upstream = server.service("inventory_service")
    upstream.upstream(dict.fromkeys(PORTS, Behaviour.SERVE))
    return Pair(server, client, upstream, client.service("shop"))


@dataclass(frozen=True)
class Forced:
    """What is lost, of which exchange, and what it makes the side that sends again count."""

    lose: Callable[[Pair, int], list[Loss]]
    request: int
    response: int
    dropped: int
    sender: str
    counts: dict[str, int]


SEGMENT = 1428  # bytes of payload that fit a segment of either family
KINDS = {
    "syn": Forced(
        lambda pair, port: [pair.server.drop(Segment.SYN, port, first=1)],
        10,
        10,
        dropped=1,
        sender="client",
        counts={"RetransSegs": 1, "TCPSynRetrans": 1, "TCPTimeouts": 1},
    ),
    # The client's second SYN is lost too, or it would make the server send a second SYN-ACK besides the timer's.
    "synack": Forced(
        lambda pair, port: [
            pair.client.drop(Segment.SYNACK, port, first=1),
            pair.server.drop(Segment.SYN, port, only=2),
        ],
        10,
        10,
        dropped=1,
        sender="server",
        counts={"RetransSegs": 1, "TCPSynRetrans": 1, "TCPTimeouts": 1},
    ),
    "fast, request": Forced(
        lambda pair, port: [pair.server.drop(Segment.DATA, port, only=40)],
        200_000,
        10,
        dropped=1,
        sender="client",
        counts={"RetransSegs": 1, "TCPFastRetrans": 1},
    ),
    "fast, response": Forced(
        lambda pair, port: [pair.client.drop(Segment.DATA, port, only=40)],
        100,
        200_000,
        dropped=1,
        sender="server",
        counts={"RetransSegs": 1, "TCPFastRetrans": 1},
    ),
    # All ten and the probe: the first is sent again by the timer, the others as the window opens.
    "timeout": Forced(
        lambda pair, port: [pair.server.drop(Segment.DATA, port, first=11)],
        10 * SEGMENT,
        10,
        dropped=11,
        sender="client",
        counts={"RetransSegs": 11, "TCPTimeouts": 1, "TCPLossProbes": 1, "TCPSlowStartRetrans": 9},
    ),
    "probe": Forced(
        lambda pair, port: [pair.client.drop(Segment.DATA, port, only=10)],
        100,
        10 * SEGMENT,
        dropped=1,
        sender="server",
        counts={"RetransSegs": 1, "TCPLossProbes": 1, "TCPLossProbeRecovery": 1},
    ),
}
