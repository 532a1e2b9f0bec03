# SPDX-License-Identifier: Apache-2.0
"""HAProxy's answers, and what is none."""

from __future__ import annotations

import re
import socket
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.haproxy_answers import STATE_HEADER, STATES, STATISTICS, TABLES, answering, picture
from tidegate.errors import DriverError
from tidegate.pools.haproxy_runtime import State, backend_number, exchange, info, lines, read_backend, rows

pytestmark = pytest.mark.unit


def test_a_backend_is_read() -> None:
    found = picture()
    assert (found.number, found.has_cookies, found.tables) == (3, False, frozenset({"st"}))
    assert [(one.name, one.endpoint, one.state, one.maxconn) for one in found.servers] == [
        ("a", "127.0.0.1:15001", State.READY, 0),
        ("b", "127.0.0.1:15002", State.DRAIN, 7),
        ("c", "[::1]:15003", State.MAINT, 0),
        ("d", "127.0.0.1:15004", State.READY, 0),
        ("e", "", State.READY, 0),
    ]
    assert [one.has_failed for one in found.servers] == [False, False, False, True, True]
    assert [one.fqdn for one in found.servers] == ["", "", "", "d.example", "e.example"]
    assert [one.has_agent for one in found.servers] == [False, False, True, False, False]
    assert backend_number(STATES, "inventory") == 3


def test_an_ipv4_address_written_as_ipv6_is_the_ipv4_one() -> None:
    found = picture(TABLES + STATES.replace("::1 ", "::ffff:10.0.0.9 ") + STATISTICS)
    assert found.servers[2].endpoint == "10.0.0.9:15003"


def test_a_cookie_of_a_server_or_of_the_backend_binds_clients() -> None:
    assert picture(STATES + STATISTICS.replace("no check,3,1,2,,,", "no check,3,1,2,,x,")).has_cookies
    assert picture(STATES + STATISTICS.replace("UP,3,0,1,,,", "UP,3,0,1,,SERVERID,")).has_cookies


def test_statistics_of_another_proxy_are_those_of_before_a_reload() -> None:
    assert read_backend(STATES + STATISTICS.replace(",3,", ",4,"), "inventory") is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Can't find backend.\n\n" + STATISTICS, "Can't find backend; write its name as"),
        ("", "HAProxy said: nothing; name the socket"),
        ("Permission denied\n\n", "HAProxy said: Permission denied"),
        ("HTTP/1.0 400 Bad request\r\n\r\n", "HAProxy said: HTTP/1.0 400"),
        (STATES, "expected HAProxy's statistics"),
        (STATES.replace("1\n#", "2\n#", 1) + STATISTICS, "expected servers in format 1, found 2"),
        (STATES.replace(" srv_admin_state", " srv_admin") + STATISTICS, "lacks srv_admin_state"),
        (STATES.replace("3 inventory 1 a", "3 inventory 1 a b") + STATISTICS, "expected 25 values"),
        (STATES.replace("inventory 1", "stock 1") + STATISTICS, "one of its servers, found: 3 stock"),
        (STATES.replace("15001", "port") + STATISTICS, "expected a number, found 'port'"),
        (f"1\n{STATE_HEADER}\n\n" + STATISTICS, "it has none"),
        (STATES + STATISTICS.replace("check,3,1,2", "check,3,1"), "expected 10 columns, found 9"),
        (STATES + STATISTICS.replace('says ""no""', 'says "no"'), "expected CSV"),
    ],
)
def test_what_is_no_answer_is_an_error(text: str, says: str) -> None:
    with pytest.raises(DriverError, match=re.escape(says)) as caught:
        read_backend(text, "inventory")
    assert not caught.value.away


@given(st.text(max_size=400), st.integers(0, 400), st.integers(0, 400))
def test_a_garbled_answer_is_an_error_or_one_that_can_be_read(junk: str, start: int, end: int) -> None:
    text = TABLES + STATES + STATISTICS
    for garbled in (junk, text[:start] + junk + text[end:], text[: 4 * start]):
        with suppress(DriverError):
            read_backend(garbled, "inventory")


def test_rows_and_info() -> None:
    assert rows(STATISTICS)[1]["slim"] == "7"
    assert [row["svname"] for row in rows(STATISTICS)] == ["a", "b", "c", "d", "e", "BACKEND"]
    with pytest.raises(DriverError, match="as CSV, found: nothing"):
        rows("\n")
    assert info("Name: HAProxy\nVersion: 2.6.12-1\nnode: a: b\n\n")["Version"] == "2.6.12-1"
    with pytest.raises(DriverError, match="expected the answer of HAProxy to 'show info'"):
        info("Unknown command\n\n")


def test_long_lines_are_split() -> None:
    found = lines(f"set server inventory/{number} state drain" for number in range(1000))
    assert len("; ".join(found).split("; ")) == 1000
    assert max(map(len, found)) <= 2048


# The socket.


def test_an_answer(tmp_path: Path) -> None:
    for number, answer in enumerate((b"\n", b"\n\n", b"admin\n\n")):
        with answering(tmp_path / f"{number}", answer):
            assert exchange(str(tmp_path / f"{number}"), "show cli level") == answer.decode()


@pytest.mark.parametrize(
    ("answer", "says"),
    [(b"", "broke off after 0 bytes"), (b"adm", "broke off after 3"), (None, "nothing came within 0.05 s")],
)
def test_no_answer_is_being_away(tmp_path: Path, answer: bytes | None, says: str) -> None:
    path = str(tmp_path / "s")
    with answering(tmp_path / "s", answer), pytest.raises(DriverError, match=says) as caught:
        exchange(path, "show cli level", 0.05)
    assert caught.value.away
    assert caught.value.exchanges == (("show cli level", (answer or b"").decode()),)


def test_a_queue_that_is_full_for_the_moment_is_waited_for(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as first:
        listening.bind(path)
        listening.listen(0)
        first.connect(path)
        with pytest.raises(DriverError, match="Resource temporarily unavailable") as caught:
            exchange(path, "show info", 0.05)
        assert caught.value.away

        def serve() -> None:
            listening.accept()[0].close()
            with listening.accept()[0] as second:
                second.recv(65536)
                second.sendall(b"\n")

        later = threading.Timer(0.05, serve)
        later.start()
        assert exchange(path, "show info", 5.0) == "\n"
        later.join()


def test_no_socket_is_being_away(tmp_path: Path) -> None:
    with pytest.raises(DriverError, match=r"No such file.*start HAProxy with 'stats socket") as caught:
        exchange(str(tmp_path / "s"), "show info")
    assert caught.value.away
