# SPDX-License-Identifier: Apache-2.0
"""What is remembered of earlier views, and findings that stand a while."""

from __future__ import annotations

import msgspec
import pytest

from tests.unit.picture import endpoint, listener, node, resource, view
from tidegate.advisor import Advisor
from tidegate.history import History
from tidegate.model.limits import Advice, OomKilled, Residency
from tidegate.model.window import ENDPOINTS, LISTENERS, NODE, RESOURCES, Window

pytestmark = pytest.mark.unit


def connects(window: Window) -> float:
    return window.added(ENDPOINTS, window.now.endpoints[0]).connects


def test_a_window_is_half_its_length_or_more_once_there_was_time() -> None:
    history = History(10.0)
    seconds = []
    for n in range(1, 40):
        window = history.add(view([endpoint(connects=n)], interval=1.0))
        seconds.append(window.seconds)
        assert connects(window) == window.seconds
    assert seconds[:10] == list(range(1, 11))
    assert {min(seconds[10:]), max(seconds[10:])} == {6, 10}


def test_rows_that_went_and_came_again_begin_anew() -> None:
    history = History(2.0)
    history.add(view([endpoint(connects=90)]))
    history.add(view([endpoint(connects=95)]))
    assert connects(history.add(view([endpoint(connects=3)]))) == 3


def test_a_row_that_is_new_has_all_its_counts_from_the_window() -> None:
    history = History(2.0)
    for _ in range(3):
        history.add(view())
    assert connects(history.add(view([endpoint(connects=7)]))) == 7


def test_what_the_kernel_has_always_counted_begins_at_its_first_sight() -> None:
    history = History(100.0)
    window = history.add(view(listeners=[listener(drops=50)], node=node(9.0)))
    assert window.added(LISTENERS, listener(drops=50)).drops == 0
    assert window.added(NODE, window.now.node).steal_seconds == 0
    late = listener(endpoint=":81", drops=70)
    history.add(view(listeners=[listener(drops=50), late]))
    window = history.add(view(listeners=[listener(drops=53), msgspec.structs.replace(late, drops=71)]))
    assert [window.added(LISTENERS, row).drops for row in window.now.listeners or ()] == [3, 1]


def test_what_was_not_measured_at_one_end_is_none() -> None:
    history = History(100.0)
    history.add(view(resources=[resource(throttled_seconds=None)]))
    window = history.add(view(resources=[resource(throttled_seconds=5.0)]))
    assert window.added(RESOURCES, resource(throttled_seconds=5.0)).throttled_seconds == 0
    window = history.add(view(resources=[resource(throttled_seconds=7.0)]))
    assert window.added(RESOURCES, resource(throttled_seconds=7.0)).throttled_seconds == 2
    window = history.add(view(resources=[resource(throttled_seconds=None)]))
    assert window.added(RESOURCES, resource(throttled_seconds=None)).throttled_seconds is None


def advisor(**fields: object) -> Advisor:
    return Advisor(msgspec.structs.replace(Advice(window=2.0, interval=1.0, hold=5.0), **fields), Residency())


FAULT = [endpoint(connects=200)]
IDLE = [endpoint(connects=200, connect_rate=0.0)]


def ids(advisor: Advisor, *rows: object, **parts: object) -> list[str]:
    shown = view(rows, interval=1.0, **parts)  # type: ignore[arg-type]
    return [finding.id for finding in advisor.judge(shown).findings or ()]


def test_a_finding_stands_for_a_while_and_then_goes() -> None:
    judge = advisor()
    assert ids(judge, *FAULT) == ["missing_keepalive"]
    assert [ids(judge, *IDLE) for _ in range(7)] == [["missing_keepalive"]] * 5 + [[]] * 2


def test_a_kill_stands_for_longer() -> None:
    judge = advisor(oom_killed=OomKilled(hold=60.0))
    killed = {"resources": [resource(oom_kills=1)]}
    assert ids(judge, **killed) == ["oom_killed"]
    found = [ids(judge, **killed) for _ in range(70)]
    assert found[50] == ["oom_killed"]
    assert found[-1] == []


def test_a_pool_that_grows_is_one_finding_with_its_newest_subject() -> None:
    judge = advisor()
    ids(judge, *FAULT)
    grown = [endpoint(connects=400), endpoint("10.0.0.7:5000", connects=200)]
    shown = judge.judge(view(grown, interval=1.0))
    (finding,) = shown.findings or ()
    assert finding.subject == "shop.service -> 10.0.0.6:5000, 10.0.0.7:5000"


def test_a_finding_that_stands_is_not_shown_beside_its_cause() -> None:
    judge = advisor()
    assert ids(judge, *FAULT) == ["missing_keepalive"]
    exhausted = endpoint(connects=300, established=201, failures={"ports_exhausted": 99})
    assert ids(judge, exhausted) == ["ports_running_out"]


def test_findings_are_made_at_their_interval_and_stay_between() -> None:
    judge = advisor(interval=3.0, window=60.0)
    assert ids(judge) == []
    assert [ids(judge, *FAULT) for _ in range(3)] == [[], [], ["missing_keepalive"]]


def test_new_limits_count_at_once() -> None:
    judge = advisor(hold=0.0)
    assert ids(judge, *FAULT) == ["missing_keepalive"]
    judge.configure(Advice(interval=1.0, ignore=("missing_keepalive",)), Residency())
    assert ids(judge, endpoint(connects=400)) == []
