# SPDX-License-Identifier: Apache-2.0
"""Scenarios 26 to 50: who is ejected, for how long, and how trials go."""

from __future__ import annotations

from tests.unit.outlier_run import BASE_10, FIVE, PROBING, Scenario, all_of, backs_off, of
from tidegate.model.breaker import Decision, State
from tidegate.model.outliers import Probe

EJECTIONS = [
    Scenario(
        26,
        "removed while ejected: none is active any more",
        "0 a 500x5\n1 endpoints b\n9.999 sweep",
        ["0 eject a consecutive_5xx", "1 uneject a removed"],
        hosts=("a", "b"),
        check=lambda run: run.active == 0,
    ),
    Scenario(
        27,
        "a cap of 60 % of 2: one is ejected, one overflows",
        "0 a 500x5\n1 b 500x5",
        ["0 eject a consecutive_5xx", "1 overflow b consecutive_5xx"],
        detection={"max_ejection_percent": 60},
        hosts=("a", "b"),
        check=lambda run: run.pool.row().overflow == 1 and run.active == 1,
    ),
    Scenario(
        28,
        "a cap of 50 % of 3: one",
        "0 a 500x5\n1 b 500x5\n2 c 500x5",
        ["0 eject a consecutive_5xx", "1 overflow b consecutive_5xx", "2 overflow c consecutive_5xx"],
        detection={"max_ejection_percent": 50},
        hosts=("a", "b", "c"),
    ),
    Scenario(
        29,
        "a cap of 90 % of 1: none",
        "0 a 500x5",
        ["0 overflow a consecutive_5xx"],
        detection={"max_ejection_percent": 90},
        check=lambda run: of(run, 0).evidence["limit"] == "max_ejection_percent",
    ),
    Scenario(
        30,
        "always eject one host",
        "0 a 500x5\n1 b 500x5",
        ["0 eject a consecutive_5xx", "1 overflow b consecutive_5xx"],
        detection={"max_ejection_percent": 0, "always_eject_one_host": True},
        hosts=("a", "b"),
    ),
    Scenario(
        31,
        "not enforced: logged, and the counter begins anew",
        "0 a 500x5\n1 a 500x4\n2 a 500",
        ["0 log_only a consecutive_5xx", "2 log_only a consecutive_5xx"],
        detection={"enforcing_consecutive_5xx": 0},
        check=lambda run: not of(run, 0).enforced and run.state("a") is State.CLOSED,
    ),
    Scenario(
        32,
        "the cap uses the engine's own state",
        "0 a 500x5\n1 b 500x5\n30 sweep\n31 b 500x5\n32 a 500x5",
        [
            "0 eject a consecutive_5xx",
            "1 overflow b consecutive_5xx",
            "30 uneject a elapsed",
            "31 eject b consecutive_5xx",
            "32 overflow a consecutive_5xx",
        ],
        detection={"max_ejection_percent": 50},
        policy={"mode": "monitor"},
        hosts=("a", "b"),
        check=lambda run: not any(decision.enforced for decision in run.decisions) and not run.pool.refused(),
    ),
    Scenario(
        35,
        "a duplicate event: one ejection",
        "0 a refused#1 refused#2 refused#3 refused#4 reset#4 connect_timeout#4\n1 a refused#5 reset#5",
        ["1 eject a consecutive_local_origin_failure"],
        check=lambda run: run.active == 1 and run.pool.duplicates == 2,
    ),
    Scenario(
        36,
        "5xx while ejected is ignored",
        "0 a 500x5\n1 a 200 500x5",
        ["0 eject a consecutive_5xx"],
        check=lambda run: of(run, 0).until == 30 and run.pool.row().endpoints[0].ejected_total == 1,
    ),
    Scenario(
        37,
        "back-off 10, 20, 30; two healthy sweeps: 20; long health: 10",
        "0 a 500x5\n10 sweep\n10 a 500x5\n20 sweep\n30 sweep\n30 a 500x5\n40 sweep\n50 sweep\n60 sweep\n"
        "70 sweep\n80 sweep\n80 a 500x5\n90 sweep\n100 sweep\n"
        + "\n".join(f"{100 + 10 * i} sweep" for i in range(1, 51))
        + "\n610 a 500x5\n620 sweep",
        [
            f"{time} {what}"
            for ejected, back in ((0, 10), (10, 30), (30, 60), (80, 100), (610, 620))
            for time, what in ((ejected, "eject a consecutive_5xx"), (back, "uneject a elapsed"))
        ],
        detection=BASE_10,
    ),
    Scenario(
        38,
        "the cap of 300 s holds",
        "",
        [],
        check=lambda _: backs_off(40) == [min(10 * k, 300) for k in range(1, 41)],
    ),
    Scenario(
        39,
        "a cap of 305 s is 310 with a sweep each 10 s",
        "",
        [],
        check=lambda _: backs_off(40, max_ejection_time=305.0) == [min(10 * k, 310) for k in range(1, 41)],
    ),
    Scenario(
        41,
        "back-off after detection by sweeps too",
        all_of("1 * 200x200\n1 e 500x200\n10 sweep\n20 sweep")
        + "\n"
        + all_of("21 * 200x200\n21 e 500x200\n30 sweep\n40 sweep\n50 sweep"),
        ["10 eject e success_rate", "20 uneject e elapsed", "30 eject e success_rate", "50 uneject e elapsed"],
        detection=BASE_10 | {"consecutive_5xx": 0},
        hosts=FIVE,
        check=lambda run: [decision.ejections for decision in run.decisions] == [1, 1, 2, 2],
    ),
    Scenario(
        42,
        "the fields of a decision",
        "0 a 502x5\n30 sweep\n45 a 502x5",
        ["0 eject a consecutive_5xx", "30 uneject a elapsed", "45 eject a consecutive_5xx"],
        detection={"consecutive_gateway_failure": 0},
        hosts=("a", "b"),
        check=lambda run: (
            of(run, 2)
            == Decision(
                t=45.0,
                pool="pool",
                endpoint="a",
                action=of(run, 2).action,
                reason="consecutive_5xx",
                until=105.0,
                ejections=2,
                enforced=True,
                evidence={
                    "last": "http",
                    "code": 502,
                    "consecutive": 5,
                    "seconds_since_unejection": 15.0,
                    "active": 1,
                    "hosts": 2,
                    "ejected_total": 2,
                },
            )
            and of(run, 1).evidence
            == {"seconds_since_ejection": 30.0, "active": 0, "hosts": 2, "ejected_total": 1}
        ),
    ),
    Scenario(
        44,
        "turning detection off un-ejects all",
        "0 a 500x5\n1 b refusedx5\n2 mode off\n3 a 500x9\n40 sweep",
        [
            "0 eject a consecutive_5xx",
            "1 eject b consecutive_local_origin_failure",
            "2 uneject a off",
            "2 uneject b off",
        ],
        hosts=("a", "b", "c"),
        check=lambda run: run.active == 0 and of(run, 2).enforced,
    ),
    Scenario(
        45,
        "half open: exactly N trials",
        "0 a 500x5\n30 sweep\n30 acquire a 1\n30 acquire a 2\n30 acquire a 3\n"
        "31 a 200#1\n31 acquire a 4\n32 a 200#2",
        ["0 eject a consecutive_5xx", "30 half_open a elapsed", "32 uneject a probed"],
        policy=PROBING,
        check=lambda run: run.answers == [True, True, False, False],
    ),
    Scenario(
        46,
        "an ignored call gives its permit back",
        "0 a 500x5\n30 sweep\n30 acquire a 1\n30 acquire a 2\n31 a fault#1\n31 acquire a 3\n31 acquire a 4",
        ["0 eject a consecutive_5xx", "30 half_open a elapsed"],
        policy=PROBING,
        check=lambda run: run.answers == [True, True, True, False],
    ),
    Scenario(
        47,
        "half open: a trial without an end is over after the wait",
        "0 a 500x5\n30 sweep\n31 acquire a 1\n35 sweep\n36 sweep\n95 sweep\n96 sweep",
        [
            "0 eject a consecutive_5xx",
            "30 half_open a elapsed",
            "36 eject a probe_failed",
            "96 half_open a elapsed",
        ],
        policy=PROBING,
        check=lambda run: of(run, 2).evidence["unanswered"] == 1 and of(run, 2).until == 96,
    ),
    Scenario(
        48,
        "metrics_only never opens",
        "0 a 500x50\n" + all_of("1 * refusedx200\n10 sweep"),
        ["0 log_only a consecutive_5xx"] * 10
        + [f"1 log_only {host} consecutive_local_origin_failure" for host in FIVE for _ in range(40)]
        + [f"10 log_only {host} failure_percentage_local_origin" for host in FIVE],
        policy={"mode": "metrics_only"},
        hosts=FIVE,
        check=lambda run: run.active == 0,
    ),
    Scenario(
        49,
        "stragglers while open are ignored; one permit, one trial",
        "0 a 500x5\n1 a 200#7 500#8\n30 sweep\n30 acquire a 9\n30 acquire a 10\n31 a 500#8\n32 a 200#9",
        ["0 eject a consecutive_5xx", "30 half_open a elapsed", "32 uneject a probed"],
        policy=PROBING | {"probe": Probe(permits=1)},
        check=lambda run: run.answers == [True, False],
    ),
    Scenario(
        50,
        "a cancelled trial doesn't stick",
        "0 a 500x5\n30 sweep\n30 acquire a 1\n31 release a 1\n40 sweep\n41 acquire a 2\n42 a 200#2",
        ["0 eject a consecutive_5xx", "30 half_open a elapsed", "42 uneject a probed"],
        policy=PROBING | {"probe": Probe(permits=1, wait=5.0)},
        check=lambda run: run.answers == [True, True],
    ),
]
