# SPDX-License-Identifier: Apache-2.0
"""Scenarios 1 to 25: what is an outlier."""

from __future__ import annotations

import pytest

from tests.unit.outlier_run import ALONE, FIVE, PLAIN, Scenario, all_of, defaults, local_rates, of, rates, refused
from tidegate.model.outliers import OutlierDetection

DETECTIONS = [
    Scenario(1, "defaults when unset", "", [], check=lambda _: defaults()),
    Scenario(2, "max_ejection_time defaults to 300 s", "", [], check=lambda _: OutlierDetection().longest == 300),
    Scenario(
        3, "max < base is refused", "", [], check=lambda _: refused(base_ejection_time=10.0, max_ejection_time=3.0)
    ),
    Scenario(
        4,
        "base 400 s makes max 400 s",
        "",
        [],
        check=lambda _: OutlierDetection(base_ejection_time=400.0).longest == 400,
    ),
    Scenario(
        5,
        "4x500, 200, 4x500: none; the fifth in a row ejects",
        "0 a 500x4 200 500x4\n1 a 500",
        ["1 eject a consecutive_5xx"],
    ),
    Scenario(
        6,
        "a sweep at 9,999 ms keeps, one at 30,001 un-ejects",
        "0 a 500x5\n9.999 sweep\n29.998 sweep\n30.001 sweep",
        ["0 eject a consecutive_5xx", "30.001 uneject a elapsed"],
        check=lambda run: of(run, 0).until == 30,
    ),
    Scenario(
        7,
        "ejected again after it was un-ejected",
        "0 a 500x5\n30.001 sweep\n40 a 500x4\n40 a 500",
        ["0 eject a consecutive_5xx", "30.001 uneject a elapsed", "40 eject a consecutive_5xx"],
        check=lambda run: (of(run, 2).until, of(run, 2).ejections) == (100, 2),
    ),
    Scenario(
        9,
        "connect success + 200 / connect failed, 100 times: none",
        "0 a " + "refused ok 200 " * 100,
        [],
        detection=PLAIN,
    ),
    Scenario(
        10,
        "a bare connect success doesn't break a run without split",
        "0 a refused ok refusedx3\n1 a refused",
        ["1 log_only a consecutive_gateway_failure", "1 eject a consecutive_5xx"],
        detection=PLAIN,
    ),
    Scenario(11, "external success and failure by turns: none", "0 a " + "503 answered " * 100, []),
    Scenario(
        12,
        "five connect failures: 5xx enforced, gateway only logged",
        "0 a refusedx5",
        ["0 log_only a consecutive_gateway_failure", "0 eject a consecutive_5xx"],
        detection=PLAIN,
    ),
    Scenario(
        13,
        "503, 500, 5x503: gateway fires on the last",
        "0 a 503 500 503x4\n1 a 503",
        ["0 log_only a consecutive_5xx", "1 eject a consecutive_gateway_failure"],
        detection={"enforcing_consecutive_gateway_failure": 100, "enforcing_consecutive_5xx": 0},
    ),
    Scenario(14, "a timeout that carries 200 is a success", "0 a 500x4 timeout:200 500x4", [], detection=PLAIN),
    Scenario(
        15,
        "a timeout without a code is a 504",
        "0 a timeoutx5",
        ["0 log_only a consecutive_gateway_failure", "0 eject a consecutive_5xx"],
        detection=PLAIN,
        check=lambda run: of(run, 1).evidence["code"] == 504,
    ),
    Scenario(
        16,
        "timeouts while ejected don't prolong the ejection",
        "0 a timeoutx5\n1 a timeoutx10\n29 a timeoutx10\n30 sweep\n31 a timeoutx4\n32 a timeout",
        [
            "0 eject a consecutive_local_origin_failure",
            "30 uneject a elapsed",
            "32 eject a consecutive_local_origin_failure",
        ],
    ),
    Scenario(
        17,
        "split: local failures eject",
        "0 a refusedx2 unreachable connect_timeout\n1 a reset",
        ["1 eject a consecutive_local_origin_failure"],
    ),
    Scenario(18, "split: a connect success resets", "0 a refusedx4 ok refusedx4 ok connect_timeoutx4", []),
    Scenario(
        19,
        "503 and 500 mixed after an un-ejection: only 5xx fires",
        "0 a 503x5\n30.001 sweep\n40 a 503 500 503 500\n41 a 503",
        [
            "0 eject a consecutive_gateway_failure",
            "30.001 uneject a elapsed",
            "41 eject a consecutive_5xx",
        ],
        detection={"enforcing_consecutive_gateway_failure": 100},
    ),
    Scenario(
        20,
        "success rates {50, 4x100}: the threshold is 52, 50 is ejected",
        all_of("1 * 200x200\n1 e 500x200\n10 sweep"),
        ["1 log_only e consecutive_5xx"] * 40 + ["10 eject e success_rate"],
        detection={"enforcing_consecutive_5xx": 0},
        hosts=FIVE,
        check=lambda run: (
            (of(run, -1).evidence["success_rate"], of(run, -1).evidence["success_rate_average"]) == (50, 90)
            and of(run, -1).evidence["success_rate_threshold"] == pytest.approx(52)
            and run.pool.row().success_rate_threshold == pytest.approx(52)
            and rates(run) == [100, 100, 100, 100, 50]
            and local_rates(run) == [None] * 5
        ),
    ),
    Scenario(
        21,
        "below the volume: computed, nobody ejected",
        all_of("1 * 200x25\n1 e 500x25\n10 sweep"),
        ["1 log_only e consecutive_5xx"] * 5,
        detection={"enforcing_consecutive_5xx": 0, "consecutive_5xx": 5},
        hosts=FIVE,
        check=lambda run: rates(run) == [None] * 4 + [50] and run.pool.row().success_rate_threshold is None,
    ),
    Scenario(
        22,
        "external and local success rates apart",
        all_of("1 * okx200\n1 e refusedx200\n10 sweep"),
        ["1 log_only e consecutive_local_origin_failure"] * 40 + ["10 eject e success_rate_local_origin"],
        detection={"enforcing_consecutive_local_origin_failure": 0},
        hosts=FIVE,
        check=lambda run: (
            local_rates(run) == [100] * 4 + [50]
            and rates(run) == [None] * 5
            and run.pool.row().success_rate_average is None
        ),
    ),
    Scenario(
        23,
        "zero hosts",
        "10 sweep\n20 sweep",
        [],
        detection={"success_rate_minimum_hosts": 0, "failure_percentage_minimum_hosts": 0},
        hosts=(),
    ),
    Scenario(
        24,
        "failure percentage: 83.3 stays, 85.7 is ejected",
        all_of("1 * 200x50\n1 d 503x250\n1 e 503x300\n10 sweep"),
        ["10 eject e failure_percentage"],
        detection=ALONE
        | {"enforcing_failure_percentage": 100, "consecutive_5xx": 0}
        | {"consecutive_gateway_failure": 0},
        hosts=FIVE,
        check=lambda run: of(run, 0).evidence["failure_percentage"] == pytest.approx(100 * 300 / 350),
    ),
    Scenario(
        25,
        "local failure percentage",
        all_of("1 * okx200\n1 e refusedx200\n10 sweep"),
        ["10 log_only e success_rate_local_origin", "10 eject e failure_percentage_local_origin"],
        detection={
            "consecutive_local_origin_failure": 0,
            "enforcing_local_origin_success_rate": 0,
            "enforcing_failure_percentage_local_origin": 100,
            "failure_percentage_threshold": 40,
        },
        hosts=FIVE,
    ),
]
