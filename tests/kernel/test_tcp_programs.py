# SPDX-License-Identifier: Apache-2.0
"""The two passes and what makes up for both: each alone has to count what all of them together count."""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Iterator

import pytest

from tests.kernel.tcp_programs import AGAIN, DESTROYED, STATE, Programs, connect, counters
from tidegate.kernel import layouts
from tidegate.model.fields import Role

pytestmark = pytest.mark.kernel


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


@pytest.mark.parametrize("names", [(STATE,), (AGAIN,), (STATE, AGAIN), (STATE, AGAIN, DESTROYED)])
def test_each_pass_alone_and_all_together_count_the_same(server: socket.socket, names: tuple[str, ...]) -> None:
    port = server.getsockname()[1]
    with Programs(*names) as programs:
        for _ in range(50):
            for end in connect(server):
                end.close()
        server.close()
        for _ in range(7):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port))
        found = programs.counts(port)
        assert found[Role.CLIENT] == counters(57, 50, 50, refused=7)
        assert found[Role.SERVER] == counters(0, 50, 50)
        assert programs.late == 0


def test_a_close_that_no_program_saw_is_made_up_for(server: socket.socket) -> None:
    port = server.getsockname()[1]
    with Programs(STATE, AGAIN, DESTROYED) as programs:
        ends = [end for _ in range(5) for end in connect(server)]
        programs.detach(STATE, AGAIN)
        assert programs.counts(port)[Role.SERVER] == counters(0, 5, 0)
        for end in ends:
            end.close()
        found = programs.counts(port)
        assert found == {Role.CLIENT: counters(0, 0, 5), Role.SERVER: counters(0, 0, 5)}
        assert programs.late == 10


def test_an_establishment_that_no_program_saw_is_made_up_for(server: socket.socket) -> None:
    port = server.getsockname()[1]
    server.listen(0)
    with (
        Programs(STATE, AGAIN) as programs,
        socket.create_connection(server.getsockname()),
        socket.socket() as late,
    ):
        late.setblocking(False)  # the backlog is full, so its first SYN is dropped
        assert late.connect_ex(server.getsockname()) == errno.EINPROGRESS
        assert programs.counts(port)[Role.CLIENT] == counters(2, 1, 0)
        programs.detach(STATE, AGAIN)
        server.accept()[0].close()
        assert select.select([], [late], [], 10)[1] == [late]
        programs.attach(STATE)
        late.close()
        assert programs.counts(port)[Role.CLIENT] == counters(0, 1, 1)
        assert programs.late == 1


def test_half_closed_connections_are_open(server: socket.socket) -> None:
    port = server.getsockname()[1]
    with Programs(STATE, AGAIN, DESTROYED) as programs:
        client, accepted = connect(server)
        client.shutdown(socket.SHUT_WR)
        assert programs.counts(port) == {Role.CLIENT: counters(1, 1, 0), Role.SERVER: counters(0, 1, 0)}
        accepted.close()
        client.close()
        assert programs.counts(port) == {Role.CLIENT: counters(0, 0, 1), Role.SERVER: counters(0, 0, 1)}


def test_a_socket_that_connects_again_counts_again(server: socket.socket) -> None:
    with Programs(STATE, AGAIN, DESTROYED) as programs, socket.socket() as client:
        refused = closed_port()
        for _ in range(3):
            assert client.connect_ex(("127.0.0.1", refused)) != 0
        assert programs.counts(refused) == {Role.CLIENT: counters(3, 0, 0, refused=3)}
        client.connect(server.getsockname())
        server.accept()[0].close()
        port = server.getsockname()[1]
        assert programs.counts(port)[Role.CLIENT] == counters(1, 1, 0)


def closed_port() -> int:
    """Return a port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def test_losses_are_those_that_the_header_declares() -> None:
    with Programs(STATE) as programs:
        names = {f"tcp_{reason.name.lower()}" for reason in layouts.TcpLoss if reason.name != "COUNT"}
        assert set(programs.signal.losses()) == names
