# SPDX-License-Identifier: Apache-2.0
"""What is followed of a socket over its life: bytes, who closes, resets, and sockets from before."""

from __future__ import annotations

import errno
import select
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from tests.kernel.tcp_programs import AGAIN, DESTROYED, STATE, Programs, connect
from tidegate.kernel.layouts import TcpCgroup
from tidegate.model.fields import Role
from tidegate.signals.tcp import TcpSignal
from tidegate.signals.tcp_fields import Counter

pytestmark = pytest.mark.kernel
CLIENT, SERVER = Role.CLIENT, Role.SERVER


@pytest.fixture(params=["127.0.0.1", "::1"])
def server(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with socket.create_server((request.param, 0), family=family) as listening:
        yield listening


def send(one: socket.socket, other: socket.socket, size: int) -> None:
    """Send some bytes and have all of them received."""
    one.sendall(bytes(size))
    left = size
    while left:
        left -= len(other.recv(left))


def reset(end: socket.socket) -> None:
    """Close by a reset."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()


def bytes_of(rows: dict[Role, dict[str, int]]) -> list[tuple[int, int]]:
    """Return sent and received bytes of the client's and of the server's row."""
    return [
        (rows.get(role, {}).get("sent_bytes", 0), rows.get(role, {}).get("received_bytes", 0))
        for role in (CLIENT, SERVER)
    ]


def test_bytes_of_an_open_connection_are_those_since_the_last_read(server: socket.socket) -> None:
    port = server.getsockname()[1]
    with Programs() as programs:
        client, accepted = connect(server)
        for size in (1, 1000, 70_000):
            send(client, accepted, size)
            send(accepted, client, 2 * size)
            assert bytes_of(programs.rows(port)) == [(size, 2 * size), (2 * size, size)]
        assert bytes_of(programs.rows(port)) == [(0, 0), (0, 0)]
        send(client, accepted, 5)
        client.close()  # the FIN is no byte, though the kernel counts it as one
        accepted.close()
        assert bytes_of(programs.rows(port)) == [(5, 0), (0, 5)]


def test_segments_are_those_of_the_sockets_own_count(server: socket.socket) -> None:
    port = server.getsockname()[1]
    with Programs() as programs:
        client, accepted = connect(server)
        send(client, accepted, 200_000)
        found = programs.rows(port)
        for role, end in ((CLIENT, client), (SERVER, accepted)):
            # struct tcp_info: tcpi_segs_out and tcpi_segs_in stand at 136 (include/uapi/linux/tcp.h)
            out, into = struct.unpack_from("II", end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 144), 136)
            assert (found[role]["segments_sent"], found[role]["segments_received"]) == (out, into)
        client.close()
        accepted.close()


@pytest.mark.parametrize("first", [CLIENT, SERVER])
def test_who_closes_first(server: socket.socket, first: Role) -> None:
    port = server.getsockname()[1]
    with Programs() as programs:
        ends = dict(zip((CLIENT, SERVER), connect(server), strict=True))
        ends.pop(first).close()
        begun = programs.rows(port)
        assert {role: row.get("closed", 0) for role, row in begun.items()} == {
            role: int(role is first) for role in (CLIENT, SERVER)
        }
        for role, row in begun.items():
            assert row["closes.local" if role is first else "closes.remote"] == 1
        ends.popitem()[1].close()
        ended = programs.rows(port)
        assert not any(name.startswith("closes.") for row in ended.values() for name in row)
        assert sum(row.get("closed", 0) for row in ended.values()) == 1


@pytest.mark.parametrize("first", [CLIENT, SERVER])
def test_a_reset_is_sent_by_one_side_and_received_by_the_other(server: socket.socket, first: Role) -> None:
    port = server.getsockname()[1]
    with Programs() as programs:
        client, accepted = connect(server)
        send(accepted, client, 10)
        one, other = (client, accepted) if first is CLIENT else (accepted, client)
        reset(one)
        with pytest.raises(ConnectionResetError):
            other.recv(1)
        other.close()
        found = programs.rows(port)
        sender, receiver = found[first], found[SERVER if first is CLIENT else CLIENT]
        assert (sender["resets.sent"], sender["closes.local"], sender["closed"]) == (1, 1, 1)
        assert (receiver["resets.received"], receiver["closes.remote"], receiver["closed"]) == (1, 1, 1)
        assert "resets.received" not in sender
        assert "resets.sent" not in receiver


def test_a_close_with_unread_data_is_a_reset(server: socket.socket) -> None:
    port = server.getsockname()[1]
    with Programs() as programs:
        client, accepted = connect(server)
        client.sendall(b"unread")
        accepted.close()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        client.close()
        found = programs.rows(port)
        assert found[SERVER]["resets.sent"] == found[CLIENT]["resets.received"] == 1
        assert found[CLIENT]["failures.reset"] == 1  # it never heard a byte of the server


def test_a_refused_connect_is_answered_by_a_reset_of_no_service() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with Programs() as programs:
        programs.signal.read()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        records = programs.signal.read()
        (client,) = [r for r in records if r.endpoint == f"127.0.0.1:{port}"]
        assert client.counters[Counter.RESETS + 1] == 1
        # There may be others of this machine; a namespace of its own counts exactly (tests/lab).
        assert (
            sum(r.counters[Counter.RESETS] for r in records if (r.cgroup, r.endpoint) == (TcpCgroup.KERNEL, ":*"))
            >= 1
        )


def test_an_open_connection_is_adopted_with_its_role_and_from_here_on(server: socket.socket) -> None:
    port = server.getsockname()[1]
    quiet, busy = connect(server), connect(server)
    send(*busy, 3000)
    send(busy[1], busy[0], 500)
    signal = TcpSignal.start(max_rows=1024, max_sockets=1024)
    try:
        send(*busy, 70)
        found = {r.role: r.counters for r in signal.read() if r.endpoint.endswith(f":{port}")}
        for role, sent, received in ((CLIENT, 70, 0), (SERVER, 0, 70)):
            assert (found[role][Counter.ADOPTED], found[role][Counter.ESTABLISHED]) == (2, 0)
            assert (found[role][Counter.SENT_BYTES], found[role][Counter.RECEIVED_BYTES]) == (sent, received)
        for end in (*quiet, *busy):
            end.close()
        found = {r.role: r.counters for r in signal.read() if r.endpoint.endswith(f":{port}")}
        for role in (CLIENT, SERVER):
            assert (found[role][Counter.CLOSED], found[role][Counter.ADOPTED]) == (2, 0)
            assert found[role][Counter.DURATION_NS] == 0  # when it began is not known
    finally:
        signal.close()


def test_a_half_closed_connection_is_adopted_with_its_role(server: socket.socket) -> None:
    port = server.getsockname()[1]
    ends = connect(server)
    send(*ends, 100)
    ends[0].shutdown(socket.SHUT_WR)
    assert ends[1].recv(1) == b""
    signal = TcpSignal.start(max_rows=1024, max_sockets=1024)
    try:
        send(ends[1], ends[0], 9)
        found = {r.role: r.counters for r in signal.read() if r.endpoint.endswith(f":{port}")}
        assert (found[CLIENT][Counter.ADOPTED], found[CLIENT][Counter.RECEIVED_BYTES]) == (1, 9)
        assert (found[SERVER][Counter.ADOPTED], found[SERVER][Counter.SENT_BYTES]) == (1, 9)
    finally:
        signal.close()
        for end in ends:
            end.close()


def test_a_connection_of_before_is_taken_in_at_its_first_event(server: socket.socket) -> None:
    port = server.getsockname()[1]
    client, accepted = connect(server)
    with Programs(STATE, AGAIN, DESTROYED) as programs:  # and nobody has looked for open ones
        client.shutdown(socket.SHUT_WR)
        assert programs.counts(port) == {CLIENT: {"adopted": 1}, SERVER: {"adopted": 1}}
        accepted.close()
        client.close()
        assert programs.counts(port) == {CLIENT: {"closed": 1}, SERVER: {"closed": 1}}
        assert programs.late == 0


def test_a_connection_that_came_unseen_is_a_new_one_with_all_its_bytes(server: socket.socket) -> None:
    port = server.getsockname()[1]
    with Programs() as programs:
        programs.signal.adopt()
        programs.detach(STATE, AGAIN)
        ends = connect(server)
        send(*ends, 300)
        programs.attach(STATE)
        for end in ends:
            end.close()
        found = programs.rows(port)
        assert [found[role]["established"] for role in (CLIENT, SERVER)] == [1, 1]
        assert [found[role]["closed"] for role in (CLIENT, SERVER)] == [1, 1]
        assert found[CLIENT]["connects"] == 1
        assert bytes_of(found) == [(300, 0), (0, 300)]
        assert programs.late >= 2  # others of this machine may have come unseen too


def test_a_connect_under_way_at_the_start_has_a_row_once_it_is_established(server: socket.socket) -> None:
    port = server.getsockname()[1]
    server.listen(0)
    with connect(server)[0], socket.socket(server.family) as late, Programs() as programs:
        programs.detach(STATE, AGAIN)
        late.setblocking(False)  # the backlog is full, so its first SYN is dropped
        assert late.connect_ex(server.getsockname()) == errno.EINPROGRESS
        programs.attach(STATE, AGAIN)
        server.accept()[0].close()
        assert select.select([], [late], [], 10)[1] == [late]
        assert late.send(b"123") == 3
        row = programs.rows(port)[CLIENT]
        assert (row["adopted"], row.get("connects", 0)) == (1, 0)


def test_a_close_after_the_peers_acknowledgement_counts_at_once(server: socket.socket) -> None:
    port = server.getsockname()[1]
    with Programs() as programs:
        client, accepted = connect(server)
        client.shutdown(socket.SHUT_WR)
        assert accepted.recv(1) == b""
        assert "closed" not in programs.rows(port)[CLIENT]
        client.close()
        assert programs.rows(port)[CLIENT]["closed"] == 1
        accepted.close()


def test_an_entry_that_missed_its_end_is_found_by_a_walk(server: socket.socket) -> None:
    port = server.getsockname()[1]
    with Programs(STATE, AGAIN) as programs:
        client, accepted = connect(server)
        assert programs.signal.read()
        programs.detach(STATE, AGAIN)
        client.close()
        accepted.close()
        found: dict[Role, int] = {}
        end = time.monotonic() + 10
        while found != {CLIENT: 1, SERVER: 1} or programs.ends_unseen < 2:  # a destroyed socket is given a second
            assert time.monotonic() < end, (found, programs.ends_unseen)
            for role, row in programs.counts(port).items():
                found[role] = found.get(role, 0) + row.get("closed", 0)
        assert programs.rows(port) == {}
