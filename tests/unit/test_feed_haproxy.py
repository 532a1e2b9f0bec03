# SPDX-License-Identifier: Apache-2.0
"""HAProxy's table, as a real one has written it, and what is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.feeds.answers import Answers
from tidegate.feeds.haproxy import Passed, Sample, Server, changes, difference, parse
from tidegate.model.breaker import Event, Kind

pytestmark = pytest.mark.unit

TABLE = (Path(__file__).parent / "data/haproxy-2.6-show-stat.csv").read_text(encoding="ascii")
POOLS = {"10.0.0.6:5000": "inventory", "[fd00::6]:5443": "inventory"}


def sample(*servers: Server) -> Sample:
    return Sample({("inventory", f"s{n}"): server for n, server in enumerate(servers)}, {})


def server(successes: int = 0, failures: int = 0, *more: int, endpoint: str = "10.0.0.6:5000") -> Server:
    return Server(endpoint, successes, failures, *(*more, 0, 0, 0, 0)[:4])


def test_the_table_of_a_real_one() -> None:
    assert parse(TABLE) == Sample(
        {
            ("p9000", "one"): Server("10.0.0.6:5000", 10, 15, 0, 5, 0, 0),
            ("p9001", "one"): Server("[fd00::6]:5443", 10, 15, 0, 5, 0, 0),
            ("p9002", "one"): Server("10.0.0.6:5001", 0, 0, 5, 0, 0, 0),
        },
        {Passed.OTHER: 8, Passed.NO_ADDRESS: 1, Passed.MALFORMED: 0},
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "No such proxy.\n\n",
        "Unknown command, but maybe one of the following ones is a better match:\n",
        "Permission denied\n",
        TABLE.removeprefix("# "),
        TABLE.replace(",hrsp_5xx,", ",hrsp_6xx,"),
        TABLE.replace(",addr,", ",address,"),
        '# pxname,"svname',
        "# pxname,\0",
    ],
)
def test_what_is_no_table(text: str) -> None:
    assert parse(text) is None


def test_rows_that_are_none_are_counted() -> None:
    rows = TABLE.splitlines()
    assert rows[2].startswith("p9000,one,")
    for row, reason in (
        (rows[2].replace(",no check,", ",-1,").replace(",5,15,", ",5,-15,"), Passed.MALFORMED),
        (rows[2][:40], Passed.MALFORMED),
        (f"{rows[2]},", Passed.MALFORMED),
        (rows[2].replace("10.0.0.6:5000", ""), Passed.NO_ADDRESS),
        (rows[2].replace("10.0.0.6:5000", "10.0.0.6:0"), Passed.NO_ADDRESS),
    ):
        found = parse("\n".join((rows[0], row)))
        assert found is not None
        assert (found.servers, sum(found.passed.values()), found.passed[reason]) == ({}, 1, 1)
    twice = parse("\n".join((rows[0], rows[2], rows[2])))
    assert twice is not None
    assert (len(twice.servers), twice.passed[Passed.MALFORMED]) == (1, 1)
    tcp = parse("\n".join((rows[0], rows[2].replace(",0,5,0,5,15,0,", ",,,,,,,"))))
    assert tcp is not None
    assert list(tcp.servers.values()) == [Server("10.0.0.6:5000", 0, 0, 0, 5, 0, 0)]
    mapped = parse("\n".join((rows[0], rows[2].replace("10.0.0.6:5000", "[::ffff:10.0.0.6]:5000"))))
    assert mapped is not None
    assert [found.endpoint for found in mapped.servers.values()] == ["10.0.0.6:5000"]


def test_differences() -> None:
    before, after = sample(server(10, 5, 1, 2)), sample(server(13, 7, 2, 5, 9, 9))
    assert changes(before, after) == {"10.0.0.6:5000": Answers(3, 2, 4)}
    assert difference(before, after, POOLS) == [
        Event("inventory", "10.0.0.6:5000", Kind.HTTP, code=500, run=1),
        Event("inventory", "10.0.0.6:5000", Kind.HTTP, code=500, run=1),
        Event("inventory", "10.0.0.6:5000", Kind.HTTP, code=200, count=3),
    ]
    assert difference(before, after, {}) == []
    assert difference(after, after, POOLS) == []


def test_failures_alone_are_one_event_that_goes_on() -> None:
    assert difference(sample(server(10, 5)), sample(server(10, 8)), POOLS) == [
        Event("inventory", "10.0.0.6:5000", Kind.HTTP, code=500, count=3)
    ]


def test_one_that_was_started_again_counts_from_0() -> None:
    assert changes(sample(server(10, 5)), sample(server(11, 4))) == {
        "10.0.0.6:5000": Answers(11, 4, 0, is_anew=True)
    }


def test_a_new_server_or_another_address_has_no_answers_yet() -> None:
    other = server(10, 5, endpoint="[fd00::6]:5443")
    assert changes(sample(server()), sample(other)) == {}
    assert changes(sample(), sample(other)) == {}
    assert changes(sample(other), sample()) == {}


def test_servers_of_one_address_are_one_endpoint() -> None:
    before, after = sample(server(1, 0), server(2, 1)), sample(server(2, 0), server(4, 4))
    assert changes(before, after) == {"10.0.0.6:5000": Answers(3, 3)}


@given(st.text(max_size=200), st.integers(0, len(TABLE)), st.integers(0, 200))
def test_any_text_is_judged_and_every_row_counted(noise: str, at: int, without: int) -> None:
    for text in (noise, f"# {noise}", TABLE[:at] + noise + TABLE[at + without :]):
        found = parse(text)
        if found is not None and '"' not in text:
            rows = [row for row in text.replace("\r\n", "\n").replace("\r", "\n").split("\n") if row]
            assert len(found.servers) + sum(found.passed.values()) == len(rows) - 1
            assert difference(found, found, POOLS) == []
