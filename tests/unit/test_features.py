# SPDX-License-Identifier: Apache-2.0
"""What is concluded from a running agent's health."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.unit.test_outputs import HEALTH
from tidegate.features import agent
from tidegate.kernel.layouts import DiskLoss, TcpLoss
from tidegate.model.feature import Feature, State
from tidegate.model.limiter import FeedRow, InterfaceRow, Limiter
from tidegate.model.snapshot import Health, MapHealth, ProgramHealth
from tidegate.ratelimit.feature import of_limiter

pytestmark = pytest.mark.unit
WELL = msgspec.structs.replace(
    HEALTH,
    losses={"tcp_rows_full": 0, "rows_folded": 0},
    programs={"tcp_state": ProgramHealth(runs=None, seconds=None, misses=0)},
    ticks_late=0,
    ticks_skipped=0,
)


def judged(**changes: Any) -> list[Feature]:
    return agent(msgspec.structs.replace(WELL, **changes), 1.0)


def test_an_agent_that_is_well_says_what_it_takes() -> None:
    (feature,) = judged()
    assert (feature.name, feature.state, feature.remedy) == ("agent", State.OK, "")
    assert feature.reason == "version 1.2.3, pid 7, 1.2% of a CPU, 44.0 MiB resident, 0.0 MiB of maps"


def test_run_time_is_said_where_it_is_measured() -> None:
    (feature,) = judged(programs={"a": ProgramHealth(runs=40, seconds=1e-5, misses=0)})
    assert feature.reason.endswith("programs 250 ns a run, 40 runs")


def maps(entries: int | None) -> dict[str, MapHealth]:
    return {"tcp_sockets": MapHealth(entries=entries, limit=1000, bytes=None)}


def programs(**misses: int | None) -> dict[str, ProgramHealth]:
    return {name: ProgramHealth(runs=None, seconds=None, misses=n) for name, n in misses.items()}


@pytest.mark.parametrize(
    ("changes", "name", "reason", "remedy"),
    [
        ({"losses": {"tcp_rows_full": 3}}, "tcp_rows_full", "3 since the start", "raise signals.tcp.max_rows"),
        ({"losses": {"tcp_untracked": 1}}, "tcp_untracked", "in no row", "raise signals.tcp.max_sockets"),
        ({"losses": {"tcp_late": 1}}, "tcp_late", "made up for later", "nothing to set"),
        ({"losses": {"rows_folded": 9}}, "rows_folded", "folded into 'other'", "raise services.max_rows"),
        ({"losses": {"control_clients_slow": 1}}, "control_clients_slow", "did not read", "control.queue"),
        ({"losses": {"new_kind": 1}}, "new_kind", "tidegate_losses_total", "watch its metric"),
        ({"events_lost": {"cgroup_events": 2}}, "cgroup_events", "tidegate_events_lost_total", "signals.interval"),
        ({"maps": maps(901)}, "map:tcp_sockets", "901 of 1000", "raise signals.tcp.max_sockets above 1000"),
        ({"rows": 10}, "rows", "10 of 10 rows", "raise services.max_rows above 10"),
        ({"ticks_late": 2, "ticks_skipped": 1}, "ticks", "2 began late and 1 more", "signals.interval above 1.0s"),
        ({"programs": programs(tcp_destroyed=4)}, "program:tcp_destroyed", "up to 4 events", "nstat -az"),
        (
            {"programs": programs(tcp_state=5, tcp_state_again=2)},
            "program:tcp_state",
            "up to 2 events",
            "nothing to set",
        ),
        (
            {"statistics_refused": "BPF run time statistics: Operation not permitted"},
            "program_statistics",
            "Operation not permitted",
            "grant CAP_SYS_ADMIN",
        ),
    ],
)
def test_what_is_amiss_is_said_with_its_remedy(
    changes: dict[str, Any], name: str, reason: str, remedy: str
) -> None:
    whole, feature = judged(**changes)
    assert whole.state is feature.state is State.DEGRADED
    assert feature.name == f"agent:{name}"
    assert reason in feature.reason
    assert remedy in feature.remedy


@pytest.mark.parametrize(
    "changes",
    [
        {"maps": maps(900)},
        {"maps": maps(None)},
        {"ticks": 10_000, "ticks_late": 90, "ticks_skipped": 10},
        {"ticks": 3, "ticks_late": 2},
        {"programs": programs(tcp_state=5, tcp_state_again=0)},
        {"programs": programs(tcp_state=None)},
    ],
)
def test_what_is_within_bounds_is_not_amiss(changes: dict[str, Any]) -> None:
    (feature,) = judged(**changes)
    assert feature.state is State.OK


def test_every_loss_of_the_programs_is_explained() -> None:
    kinds = [f"tcp_{loss.name.lower()}" for loss in TcpLoss if loss is not TcpLoss.COUNT]
    kinds += [f"disk_{loss.name.lower()}" for loss in DiskLoss if loss is not DiskLoss.COUNT]
    _, *features = judged(losses=dict.fromkeys(kinds, 1))
    assert len(features) == len(kinds)
    assert not [f for f in features if "watch its metric" in f.remedy]


def test_health_survives_the_control_socket() -> None:
    assert msgspec.json.decode(msgspec.json.encode(WELL), type=Health) == WELL


def limiter(*rows: tuple[str, str | None, str], complaint: str | None = None) -> Limiter:
    return Limiter(
        mode="monitor",
        rolls_back_in=None,
        interfaces=tuple(
            InterfaceRow(
                interface=name, attached=mode, reason=reason, mode=1, sources=None, requesting=None, counts=()
            )
            for name, mode, reason in rows
        ),
        bans=0,
        allowed=0,
        denied=0,
        guarded=0,
        contended=0,
        feed=FeedRow(feed="nginx", listen="/x", lines={}, bans={}, dropped=None, full=0, complaint=complaint),
        complaints=("the list is cut; mend it",),
    )


def test_the_limiter_is_judged_by_interface_and_by_what_it_complains_of() -> None:
    rows = ("eth0", "native", ""), ("eth1", "generic", "few queues"), ("eth2", None, "a foreign program")
    found = of_limiter(limiter(*rows, complaint="its queue is short; lengthen it"))
    assert [(each.name, each.state) for each in found] == [
        ("rate limit (XDP) eth0", State.OK),
        ("rate limit (XDP) eth1", State.DEGRADED),
        ("rate limit (XDP) eth2", State.UNAVAILABLE),
        ("rate limit (XDP)", State.DEGRADED),
        ("rate limit (XDP)", State.DEGRADED),
    ]
    assert "few queues" in found[1].reason
    assert "a foreign program" in found[2].reason
    assert [(each.reason, each.remedy) for each in found[3:]] == [
        ("its queue is short", "lengthen it"),
        ("the list is cut", "mend it"),
    ]
    assert "no interface" in of_limiter(limiter())[0].reason


def test_a_table_that_evicts_may_be_full() -> None:
    full = MapHealth(entries=100, limit=100, bytes=1)
    found = judged(maps={"ratelimit_sources": full, "ratelimit_bans": full})
    assert [each.name for each in found] == ["agent", "agent:map:ratelimit_bans"]
    assert "rate_limit.max_bans" in found[1].remedy
