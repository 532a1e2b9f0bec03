# SPDX-License-Identifier: Apache-2.0
"""Envoy's clusters, as a real one has written them, and what is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.feeds.answers import Answers
from tidegate.feeds.envoy import Host, Passed, Sample, changes, difference, ejected, parse
from tidegate.model.breaker import Event, Kind

pytestmark = pytest.mark.unit

TEXT = (Path(__file__).parent / "data/envoy-1.40-clusters.json").read_text(encoding="ascii")
V4, V6 = "10.0.0.6:5000", "[fd00::6]:5000"
POOLS = {V4: "inventory", V6: "inventory"}


def sample(**counts: int) -> Sample:
    values = dict.fromkeys(("successes", "errors", "timeouts", "requests", "not_connected", "active"), 0) | counts
    return Sample({("inventory", V4): Host(**values, is_ejected=False)}, {})


def test_the_clusters_of_a_real_one() -> None:
    found = parse(TEXT, "inventory")
    assert found is not None
    assert found.hosts == {
        ("inventory", V4): Host(6, 9, 0, 15, 0, 0, is_ejected=False),
        ("inventory", V6): Host(6, 9, 0, 15, 0, 0, is_ejected=False),
    }
    assert found.passed == {Passed.NO_ADDRESS: 0, Passed.MALFORMED: 0}
    assert ejected(found) == frozenset()
    everything = parse(TEXT.encode())
    assert everything is not None
    assert len(everything.hosts) == 4
    assert len(ejected(everything)) == 1
    assert parse(TEXT, "nosuch") == Sample({}, found.passed)


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "null", "no healthy upstream", TEXT[:-3], "[" * 100_000, b"\xff", '{"cluster_statuses": 1}'],
)
def test_what_is_none(text: str | bytes) -> None:
    assert parse(text) is None


@pytest.mark.parametrize(
    ("address", "endpoint"),
    [
        ({"socket_address": {"address": "::ffff:10.0.0.6", "port_value": 5000}}, V4),
        ({"socket_address": {"address": "inventory", "port_value": 5000}}, None),
        ({"socket_address": {"address": "10.0.0.6"}}, None),
        ({"pipe": {"path": "/run/inventory.sock"}}, None),
        ({"envoy_internal_address": {"server_listener_name": "inner"}}, None),
        ({}, None),
    ],
)
def test_addresses(address: dict[str, Any], endpoint: str | None) -> None:
    clusters = json.loads(TEXT)
    host = next(cluster for cluster in clusters["cluster_statuses"] if cluster["name"] == "inventory")[
        "host_statuses"
    ][0]
    host["address"] = address
    found = parse(json.dumps({"cluster_statuses": [{"name": "c", "host_statuses": [host, host]}]}))
    assert found is not None
    assert [name for _, name in found.hosts] == ([] if endpoint is None else [endpoint])
    assert found.passed == {Passed.NO_ADDRESS: 2 * (endpoint is None), Passed.MALFORMED: int(endpoint is not None)}


def test_a_host_without_its_numbers_is_malformed() -> None:
    for broken in (TEXT.replace('"rq_error"', '"rq_errors"'), TEXT.replace('"value": "9"', '"value": "-9"')):
        found = parse(broken, "inventory")
        assert found is not None
        assert (found.hosts, found.passed[Passed.MALFORMED]) == ({}, 2)


def test_differences() -> None:
    before = sample(successes=10, errors=5, requests=15)
    after = sample(successes=12, errors=6, requests=18)
    assert difference(before, after, POOLS) == [
        Event("inventory", V4, Kind.HTTP, code=500, run=1),
        Event("inventory", V4, Kind.HTTP, code=200, count=2),
    ]
    assert difference(before, after, {V6: "inventory"}) == []
    assert difference(before, Sample({}, {}), POOLS) == difference(Sample({}, {}), after, POOLS) == []


@pytest.mark.parametrize(
    ("after", "wanted"),
    [
        # Refused connects alone, and among answers.
        ({"errors": 10, "not_connected": 10}, Answers(0, 0, 10)),
        ({"errors": 12, "successes": 3, "requests": 5, "not_connected": 4}, Answers(3, 2, 10)),
        # What is under way may be all that there is on connections: charged is what is certain.
        ({"errors": 12, "successes": 3, "requests": 5, "not_connected": 4, "active": 1}, Answers(3, 1, 11)),
        # An answer that is still under way is no failure to connect.
        ({"successes": 5, "errors": 1, "requests": 5, "active": 5}, Answers(5, 1, 0)),
        ({"errors": 10, "timeouts": 10, "requests": 10}, Answers(0, 0, 10)),
        ({"errors": 3, "timeouts": 5, "requests": 3}, Answers(0, 0, 3)),
        ({"errors": 10, "requests": 10}, Answers(0, 10, 0)),
    ],
)
def test_what_had_no_answer_is_passed_over(after: dict[str, int], wanted: Answers) -> None:
    assert changes(sample(), sample(**after)) == {V4: wanted}


def test_one_that_was_started_again_counts_from_0() -> None:
    before, after = sample(successes=10, errors=5, requests=15), sample(errors=2, requests=2)
    assert changes(before, after) == {V4: Answers(0, 2, 0, is_anew=True)}


COUNTS = st.fixed_dictionaries(
    dict.fromkeys(("successes", "errors", "timeouts", "requests", "not_connected", "active"), st.integers(0, 50))
)


@given(COUNTS, COUNTS)
def test_every_try_is_counted_once(before: dict[str, int], after: dict[str, int]) -> None:
    found = changes(sample(**before), sample(**after))[V4]
    since = dict.fromkeys(before, 0) if found.is_anew else before
    assert found.successes == after["successes"] - since["successes"]
    assert found.failures + found.unanswered == after["errors"] - since["errors"]
    assert min(found[:3]) >= 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["rq_error", "12"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["name", "value", "stats", "address", "socket_address", "port_value", "host_statuses"]
            ),
            inner,
        )
    ),
    max_leaves=12,
)


@given(JSON, st.binary(max_size=50), st.integers(0, len(TEXT)))
def test_anything_is_judged_and_every_host_counted(made: Any, noise: bytes, at: int) -> None:
    for text in (noise, TEXT[:at].encode() + noise + TEXT[at:].encode(), json.dumps({"cluster_statuses": made})):
        found = parse(text)
        if found is not None:
            # What it doesn't look at is not decoded, be it no UTF-8.
            read = json.loads(text if isinstance(text, str) else text.decode(errors="replace"))
            hosts = sum(len(each.get("host_statuses", ())) for each in read["cluster_statuses"])
            assert len(found.hosts) + sum(found.passed.values()) == hosts
