# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tidegate.breaker.configured import members
from tidegate.breaker.simulate import action, simulate
from tidegate.cli.main import app
from tidegate.config import parse
from tidegate.errors import UsageError
from tidegate.model.outliers import Freeze

pytestmark = pytest.mark.unit
A, B = "10.0.0.6:5000", "10.0.0.7:5000"
CONFIG = b"""\
pools:
  inventory:
    endpoints: ["10.0.0.6:5000", "10.0.0.7:5000"]
    outlier_detection: {consecutive_5xx: 3, interval: 10s, base_ejection_time: 30s, max_ejection_percent: 100}
  auth: {endpoints: ["10.0.0.5:4000"], mode: "off"}
"""


def line(t: float, endpoint: str = A, event: str = "http", **more: Any) -> str:
    known = {"t": t, "pool": "inventory", "endpoint": endpoint, "event": event} | more
    return json.dumps(known)


def actions(*lines: str | bytes) -> list[dict[str, Any]]:
    return [action(decision) for decision in simulate(members(parse(CONFIG, "f").pools), lines, Freeze())]


def test_the_story_ejects_for_30_s_and_then_for_60() -> None:
    fives = [line(t, code=503) for t in (1.25, 1.5, 2.0)]
    again = [line(t, code=503) for t in (45.0, 46.0, 47.0)]
    found = actions(*fives, line(25.0, B, code=200), *again, '{"t": 120, "event": "tick"}')
    wanted = [
        {"t": 2.0, "action": "eject", "reason": "consecutive_5xx", "until": 32.0, "ejections": 1},
        {"t": 40.0, "action": "uneject", "reason": "elapsed", "until": None, "ejections": 1},
        {"t": 47.0, "action": "eject", "reason": "consecutive_5xx", "until": 107.0, "ejections": 2},
        {"t": 110.0, "action": "uneject", "reason": "elapsed", "until": None, "ejections": 2},
    ]
    keys = ("t", "action", "reason", "until", "ejections")
    assert [{key: each[key] for key in keys} for each in found] == wanted
    assert {(each["pool"], each["endpoint"], each["enforced"]) for each in found} == {("inventory", A, True)}
    assert found[0]["evidence"]["code"] == 503
    assert json.loads(json.dumps(found)) == found


def test_the_other_events_of_a_line() -> None:
    kinds = ["connect_refused", "connect_timeout", "connect_unreachable", "reset", "http_timeout"]
    lines = [line(float(number), event=kind) for number, kind in enumerate(kinds)]
    (found,) = actions(*lines[:4], line(3.5, event="local_fault"), "", lines[4])
    assert (found["t"], found["reason"]) == (4.0, "consecutive_local_origin_failure")
    assert actions(*lines[:3], line(3.0, event="connect_ok"), *(line(4.0, event=kind) for kind in kinds)) != []
    assert actions(*lines[:3], line(3.0, event="connect_ok"), line(4.0, event=kinds[0])) == []


def test_an_interval_ends_before_what_happens_at_its_end() -> None:
    found = actions(*[line(0.0, code=500)] * 3, line(30.0, code=500), line(30.0, code=500), line(30.0, code=500))
    assert [(each["t"], each["action"]) for each in found] == [(0, "eject"), (30, "uneject"), (30, "eject")]


def test_a_fault_of_this_nodes_own_may_be_of_no_endpoint() -> None:
    assert actions('{"t": 1, "event": "local_fault"}', line(1.0, event="local_fault")) == []


def test_a_long_time_takes_no_time() -> None:
    found = actions(*[line(1.0, code=500)] * 3, '{"t": 1e12, "event": "tick"}', line(1e12, code=500))
    assert [(each["t"], each["action"]) for each in found] == [(1, "eject"), (40, "uneject")]


def test_a_mode_that_is_off_is_enforced_here_too() -> None:
    auth = [line(float(t), "10.0.0.5:4000", pool="auth", code=500) for t in range(5)]
    (found,) = actions(*auth)
    assert (found["action"], found["evidence"]["limit"]) == ("overflow", "min_healthy")


def test_pools_that_fail_together_freeze() -> None:
    lines = [line(float(t), at, "connect_timeout") for t in range(3) for at in (A, B)]
    lines += [line(2.0, "10.0.0.5:4000", "connect_timeout", pool="auth")] * 2
    lines += [line(2.0 + t, at, "connect_timeout") for t in range(9) for at in (A, B)]
    found = actions(*lines, '{"t": 40, "event": "tick"}')
    assert [(each["t"], each["action"], each["reason"]) for each in found] == [
        (2, "freeze", "unrelated_pools"),
        (20, "unfreeze", "unrelated_pools"),
    ]
    assert (found[0]["pool"], found[0]["endpoint"]) == (None, None)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{"], "line 1: expected an event as a JSON object: Input data was truncated"),
        ([b"\xff"], "line 1: expected an event as a JSON object: "),
        (["[]"], "line 1: expected an event as a JSON object: Expected `object`, got `array`"),
        (['{"t": 1, "event": "tock"}'], "line 1: .*Invalid enum value 'tock'"),
        (['{"t": 1, "event": "tick", "x": 1}'], "line 1: .*unknown field `x`"),
        (['{"t": -1, "event": "tick"}'], "line 1: expected t of at least 0"),
        (['{"t": 2, "event": "tick"}', '{"t": 1, "event": "tick"}'], "line 2: .*order of t, found 1 after 2"),
        ([line(1.0)], "line 1: expected a code with the event http, found none"),
        ([line(1.0, pool="x", code=200)], r"line 1: expected one of the pools \(inventory, auth\), found 'x'"),
        ([line(1.0, "x", code=200)], rf"line 1: expected an endpoint of inventory \({A}, {B}\), found 'x'"),
    ],
)
def test_what_is_wrong_has_its_line(lines: list[str | bytes], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        actions(*lines)


def test_the_command(tmp_path: Path) -> None:
    config, events = tmp_path / "c.yaml", tmp_path / "events.jsonl"
    config.write_bytes(CONFIG)
    events.write_text("\n".join(line(float(t), code=503) for t in range(3)), encoding="utf-8")
    argv = ["breaker", "simulate", "--config", str(config), "--events", str(events)]
    for more in ([], ["--json"]):
        result = CliRunner().invoke(app, argv + more)
        (found,) = [json.loads(text) for text in result.stdout.splitlines()]
        assert (result.exit_code, found["action"], found["until"]) == (0, "eject", 32.0)
    result = CliRunner().invoke(app, [*argv[:-1], str(tmp_path / "none")])
    assert isinstance(result.exception, UsageError)
    assert str(result.exception).endswith("none can't be read: No such file or directory")
