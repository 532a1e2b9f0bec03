# SPDX-License-Identifier: Apache-2.0
"""The feed's sockets, over real ones: what is read, refused, dropped."""

from __future__ import annotations

import grp
import os
import socket
from ipaddress import ip_address
from pathlib import Path

import pytest

from tests.unit.test_feed_nginx import ACCESS, COMBINED, ERROR, LIMITED
from tidegate.errors import UnavailableError
from tidegate.feeds.datagrams import LARGEST, REFUSALS, TRIES, Datagrams
from tidegate.feeds.upstreams import Try
from tidegate.model.feed import Event, Kind

pytestmark = pytest.mark.unit


def sender(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    made.setblocking(False)
    made.connect(str(path))
    return made


def test_lines_become_events_and_all_is_counted(tmp_path: Path) -> None:
    feed = Datagrams(tmp_path / "run" / "nginx.sock", REFUSALS, clock=lambda: 7.0)
    with sender(tmp_path / "run" / "nginx.sock") as nginx:
        for line in (ERROR + LIMITED, ACCESS + COMBINED % 429, ACCESS + COMBINED % 200, b"\xff\0", b""):
            nginx.send(line)
        nginx.send(ACCESS + b"x" * LARGEST)
        source = ip_address("198.51.100.7")
        assert feed.read() == [Event(7.0, source, Kind.LIMITED), Event(7.0, source, Kind.TOO_MANY)]
        assert feed.read() == []
    counts = feed.counts()
    assert {reason: count for reason, count in counts.items() if count} == {
        "events": 2,
        "other": 1,
        "malformed": 2,
        "truncated": 1,
    }
    assert (feed.dropped(), feed.full()) == (None, 0)
    feed.close()
    assert not (tmp_path / "run" / "nginx.sock").exists()


def test_lines_on_upstreams_come_by_the_same_way(tmp_path: Path) -> None:
    feed = Datagrams(tmp_path / "upstreams.sock", TRIES, clock=lambda: 7.0, queue=Path("/dev/null"))
    with sender(tmp_path / "upstreams.sock") as nginx:
        for line in (b"10.0.0.6:5000 503 0.001 0.250", b"- - - -", b"10.0.0.6:5000 503"):
            nginx.send(ACCESS + line)
        assert feed.read() == [(Try("10.0.0.6:5000", 503, 0.001, 0.25, None, 6.75),)]
    assert feed.counts() == {"events": 1, "no_upstream": 1, "malformed": 1, "truncated": 0}
    feed.close()
    (tmp_path / "file").touch()
    with pytest.raises(UnavailableError, match=r"breaker\.feed\.listen .*file: Address already in use"):
        Datagrams(tmp_path / "file", TRIES)


def test_a_turn_is_bounded(tmp_path: Path) -> None:
    feed = Datagrams(tmp_path / "nginx.sock", REFUSALS)
    with sender(tmp_path / "nginx.sock") as nginx:
        for _ in range(7):
            nginx.send(ERROR + LIMITED)
        assert [len(feed.read(3)) for _ in range(4)] == [3, 3, 1, 0]
    feed.close()


def test_a_full_queue_is_told_and_what_would_mend_it(tmp_path: Path) -> None:
    """A sender that finds the queue full keeps its line: the receiver sees only that it was full."""
    feed = Datagrams(tmp_path / "nginx.sock", REFUSALS)
    bound = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text(encoding="ascii"))
    with sender(tmp_path / "nginx.sock") as nginx:
        for _ in range(bound):
            nginx.send(ERROR + LIMITED)
        assert (len(feed.read()), feed.full()) == (bound, 0)
        for _ in range(bound + 1):
            nginx.send(ERROR + LIMITED)
        with pytest.raises(BlockingIOError):
            nginx.send(ERROR + LIMITED)
        assert (len(feed.read()), feed.full()) == (bound + 1, 1)
    said = feed.complaint(least=bound + 1)
    assert said is not None
    assert f"net.unix.max_dgram_qlen={bound + 1}" in said
    assert feed.complaint(least=bound) is None
    feed.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_what_the_kernel_drops_of_udp_is_counted(host: str) -> None:
    feed = Datagrams((host, 0), REFUSALS)
    port = socket.socket(fileno=os.dup(feed.fileno()))
    port.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with port, socket.socket(port.family, socket.SOCK_DGRAM) as nginx:
        nginx.connect(port.getsockname()[:2])
        for _ in range(300):
            nginx.send(ERROR + LIMITED)
        received = 0
        while events := feed.read(16):
            received += len(events)
        assert received < 300
        assert feed.dropped() == 300 - received
        nginx.send(ERROR + LIMITED)
        assert (len(feed.read()), feed.dropped(), feed.full()) == (1, 300 - received, None)
    feed.close()


def test_a_socket_that_a_dead_agent_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "nginx.sock"
    dead = Datagrams(path, REFUSALS)
    feed = Datagrams(path, REFUSALS)
    with sender(path) as nginx:
        nginx.send(ERROR + LIMITED)
        assert len(feed.read()) == 1
    dead.close()  # not its file any more
    assert path.exists()
    feed.close()


def test_another_file_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "nginx.sock"
    path.write_text("mine", encoding="ascii")
    with pytest.raises(UnavailableError, match=r"rate_limit\.feed\.listen .*nginx\.sock: Address already in use"):
        Datagrams(path, REFUSALS)
    assert path.read_text(encoding="ascii") == "mine"


def test_a_port_that_is_taken_is_told() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        with pytest.raises(UnavailableError, match=r"rate_limit\.feed\.listen 127\.0\.0\.1:\d+: Address already"):
            Datagrams(("127.0.0.1", other.getsockname()[1]), REFUSALS)


def test_the_socket_is_for_the_first_group_that_there_is(tmp_path: Path) -> None:
    own = grp.getgrgid(os.getegid()).gr_name
    feed = Datagrams(tmp_path / "a" / "nginx.sock", REFUSALS, groups=("no_such_group", own))
    status = (tmp_path / "a" / "nginx.sock").stat()
    assert (status.st_mode & 0o777, status.st_gid) == (0o660, os.getegid())
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o751
    feed.close()
    alone = Datagrams(tmp_path / "b.sock", REFUSALS, groups=())
    assert (tmp_path / "b.sock").stat().st_mode & 0o777 == 0o600
    alone.close()
