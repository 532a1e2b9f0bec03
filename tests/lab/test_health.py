# SPDX-License-Identifier: Apache-2.0
"""What a running agent says of itself, against what the kernel says of it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from lab.lab import Lab
from lab.results import Plan, Step
from lab.upstream import Behaviour
from tests.lab.agent import RunningAgent, command, program_runs

pytestmark = pytest.mark.lab
RUNS, SECONDS = "tidegate_bpf_program_runs_total", "tidegate_bpf_program_seconds_total"
WITHOUT_SYS_ADMIN = ["setpriv", "--inh-caps=-sys_admin", "--bounding-set=-sys_admin"]


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def test_runs_of_programs_are_the_kernels_and_grow(lab: Lab, tmp_path: Path, port: int) -> None:
    lab.host("inventory", 6).service("inventory_service").upstream({5000: Behaviour.ACCEPT})
    shop = lab.host("client", 16).service("shop")
    with RunningAgent(tmp_path, port, signals="program_statistics: true", tag=lab.tag) as agent:
        before, seconds = agent.samples(RUNS, "program"), agent.samples(SECONDS, "program")
        shop.generate(Plan((Step("10.0.0.6", 5000, 200),)))
        least = program_runs(agent.process.pid)
        agent.wait_for("runs", lambda: sum(agent.samples(RUNS, "program").values()) >= least)
        after = agent.samples(RUNS, "program")
        assert sum(after.values()) <= program_runs(agent.process.pid)
        # Both ends of a connection go from state to state at least three times.
        assert after["tcp_state"] - before["tcp_state"] >= 200 * 6
        assert agent.samples(SECONDS, "program")["tcp_state"] > seconds["tcp_state"]
        assert agent.snapshot()["health"]["program_cpu"] >= 0
        text = agent.command("top", "--once").stdout
        assert "% CPU  programs " in text
        assert " ns a run, " in agent.doctor()["agent"]["reason"]


def test_runs_are_absent_where_the_kernel_does_not_count_them(tmp_path: Path, port: int) -> None:
    with RunningAgent(tmp_path, port) as agent:
        # Another process may have the kernel count; then they are there without the key.
        counted = program_runs(agent.process.pid) > 0
        assert bool(agent.samples(RUNS, "program")) == bool(agent.samples(SECONDS, "program")) == counted
        assert set(agent.samples("tidegate_bpf_program_misses_total", "program")) > {"tcp_state", "cgroup_made"}
        programs = agent.snapshot()["health"]["programs"]
        assert {program["runs"] is None for program in programs.values()} == {not counted}


def test_statistics_that_are_refused_are_a_warning_and_in_doctor(tmp_path: Path, port: int) -> None:
    with RunningAgent(tmp_path, port, signals="program_statistics: true", under=WITHOUT_SYS_ADMIN) as agent:
        assert agent.samples("tidegate_bpf_map_limit", "map")["tcp_sockets"] == 65536
        found = agent.doctor()
        agent.stop()
        assert agent.process.stderr is not None
        assert "signals.program_statistics: BPF run time statistics: Operation not permitted" in (
            agent.process.stderr.read()
        )
    assert found["agent"]["state"] == found["agent:program_statistics"]["state"] == "degraded"
    assert "grant CAP_SYS_ADMIN" in found["agent:program_statistics"]["remedy"]


def test_sockets_that_are_followed_are_counted(lab: Lab, tmp_path: Path, port: int) -> None:
    lab.host("inventory", 6).service("inventory_service").upstream({5006: Behaviour.HOLD})
    shop = lab.host("client", 16).service("shop")
    with RunningAgent(tmp_path, port, signals="tcp: {max_sockets: 64}", tag=lab.tag) as agent:
        shop.generate(Plan((Step("10.0.0.6", 5006, 80, hold=True),)))
        agent.wait_for("entries", lambda: agent.samples("tidegate_bpf_map_entries", "map")["tcp_sockets"] == 64)
        agent.wait_for("loss", lambda: agent.samples("tidegate_losses_total", "kind")["tcp_untracked"] > 0)
        found = agent.doctor()
        assert "raise signals.tcp.max_sockets above 64" in found["agent:map:tcp_sockets"]["remedy"]
        assert found["agent:tcp_untracked"]["state"] == "degraded"


def test_cpu_and_memory_are_those_of_the_process(tmp_path: Path, port: int) -> None:
    with RunningAgent(tmp_path, port) as agent:
        health = agent.snapshot()["health"]
        fields = Path(f"/proc/{agent.process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        cpu = (int(fields[11]) + int(fields[12])) / 100
        assert 0 < health["cpu_seconds"] <= cpu + 0.02
        status = Path(f"/proc/{agent.process.pid}/status").read_text(encoding="ascii")
        peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
        assert 5 << 20 < health["rss_bytes"] <= peak * 1024
        assert 0 <= health["cpu"] <= 2
        assert health["ticks"] >= 1
        assert agent.doctor()["agent"]["reason"].startswith(f"version {health['version']}, pid {health['pid']}, ")


def test_doctor_says_nothing_of_an_agent_where_none_runs(tmp_path: Path) -> None:
    done = command("doctor", "--json", "--socket", str(tmp_path / "none"))
    assert '"agent' not in done.stdout
