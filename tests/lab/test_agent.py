# SPDX-License-Identifier: Apache-2.0
"""The agent from start to stop, as a user and as other programs meet it."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.lab import Lab
from lab.results import Plan, Step
from lab.upstream import Behaviour
from tests.lab.agent import PROGRAM, RunningAgent, attached_links, command, loaded_programs, wait_until_unloaded

pytestmark = pytest.mark.lab
BPFFS = Path("/sys/fs/bpf")
PORTS = {5000: Behaviour.ACCEPT, 5002: Behaviour.REFUSE, 5006: Behaviour.HOLD}


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture
def agent(lab: Lab, tmp_path: Path, port: int) -> Iterator[RunningAgent]:
    with RunningAgent(tmp_path, port, tag=lab.tag) as running:
        yield running


def test_metrics_and_top_show_the_labs_truth(lab: Lab, agent: RunningAgent) -> None:
    upstream = lab.host("inventory", 6).service("inventory_service")
    upstream.upstream(PORTS)
    shop = lab.host("client", 16).service("shop")
    shop.generate(
        Plan((Step("10.0.0.6", 5000, 300), Step("fd00::6", 5002, 40), Step("10.0.0.6", 5006, 5, hold=True)))
    )
    mine = ("shop.service", "client")
    agent.wait_for("connects", lambda: sum(agent.values("tidegate_tcp_connects_total").values()) == 345)
    assert agent.values("tidegate_tcp_connects_total") == {
        (*mine, "10.0.0.6:5000"): 300,
        (*mine, "[fd00::6]:5002"): 40,
        (*mine, "10.0.0.6:5006"): 5,
    }
    failures = {k: n for k, n in agent.values("tidegate_tcp_connect_failures_total").items() if n}
    assert failures == {(*mine, "[fd00::6]:5002", "refused"): 40}
    accepts = agent.values("tidegate_tcp_accepts_total")
    assert accepts == {("inventory_service.service", "server", f":{p}"): n for p, n in upstream.accepted().items()}
    agent.wait_for("closes", lambda: sum(agent.values("tidegate_tcp_open_connections").values()) == 10)

    snapshot = agent.snapshot()
    (row,) = [r for r in snapshot["endpoints"] if (r["service"], r["endpoint"]) == (shop.unit, "10.0.0.6:5006")]
    assert (row["connects"], row["established"], row["open"], row["accepts"]) == (5, 5, 5, None)
    assert snapshot["sources"] is None
    text = agent.command("top", "--once", "--view", "endpoints", "--filter", "5002").stdout
    assert "refused 40" in text
    assert text.count(shop.unit) == 1
    promtool = subprocess.run(
        ["promtool", "check", "metrics"], input=agent.metrics(), text=True, capture_output=True, check=False
    )
    assert (promtool.returncode, promtool.stdout, promtool.stderr) == (0, "", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_takes_less_than_a_second_and_leaves_nothing(tmp_path: Path, port: int, number: int) -> None:
    before, pins = loaded_programs(), set(BPFFS.iterdir())
    with RunningAgent(tmp_path, port) as agent:
        assert len(loaded_programs() - before) >= 5
        code, seconds = agent.stop(number)
        assert code == 0
        assert seconds < 1.0
    wait_until_unloaded(before)
    assert not agent.socket.exists()
    assert set(BPFFS.iterdir()) == pins


def test_killed_under_load_and_started_again_counts_nothing_twice(lab: Lab, tmp_path: Path, port: int) -> None:
    upstream = lab.host("inventory", 6).service("inventory_service")
    upstream.upstream(PORTS)
    shop = lab.host("client", 16).service("shop")
    load = Plan((Step("10.0.0.6", 5000, 3000),), parallel=20)
    before = loaded_programs()
    with RunningAgent(tmp_path, port, tag=lab.tag) as first:
        waiting = shop.begin(load)
        first.wait_for("load", lambda: sum(first.values("tidegate_tcp_connects_total").values()) > 100)
        first.process.kill()
        first.process.wait()
    waiting()
    wait_until_unloaded(before)  # the kernel took them with the process
    with RunningAgent(tmp_path, port, tag=lab.tag) as second:
        assert second.values("tidegate_tcp_connects_total") == {}
        shop.generate(load)
        second.wait_for("all", lambda: sum(second.values("tidegate_tcp_connects_total").values()) >= 3000)
        assert list(second.values("tidegate_tcp_connects_total").values()) == [3000]


def test_a_second_agent_is_refused_and_told_the_first_ones_pid(agent: RunningAgent) -> None:
    second = command("run", "-c", str(agent.config))
    assert second.returncode == 1
    assert f"another agent runs on this node, pid {agent.process.pid}" in second.stderr
    assert "Traceback" not in second.stderr
    assert agent.snapshot()["health"]["pid"] == agent.process.pid


def test_a_client_that_does_not_read_is_dropped_and_counted(lab: Lab, agent: RunningAgent) -> None:
    lab.host("inventory", 6).service("inventory_service").upstream(
        dict.fromkeys(range(6000, 6150), Behaviour.ACCEPT)
    )
    shop = lab.host("client", 16).service("shop")
    shop.generate(Plan(tuple(Step("10.0.0.6", port, 1) for port in range(6000, 6150))))
    agent.wait_for("rows", lambda: len(agent.values("tidegate_tcp_connects_total")) == 150)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as slow:
        slow.connect(str(agent.socket))
        slow.sendall(b'{"method":"watch"}\n')
        dropped = 'tidegate_losses_total{kind="control_clients_slow"} 1.0'
        agent.wait_for("loss", lambda: dropped in agent.metrics())
    assert agent.snapshot()["health"]["late_seconds"] < 2


def test_hangup_reloads_the_config(agent: RunningAgent) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        other = int(probe.getsockname()[1])
    agent.write_config(interval="200ms", port=other)
    os.kill(agent.process.pid, signal.SIGHUP)
    agent.wait_for("new port", lambda: "tidegate_build_info" in agent.metrics(other))
    with pytest.raises(OSError, match="refused"):
        agent.metrics()
    agent.wait_for("new interval", lambda: 0.19 < agent.snapshot()["interval"] < 0.5)


def test_hangup_with_errors_changes_nothing(agent: RunningAgent) -> None:
    agent.config.write_text("signals: {intervall: 1s}\n", encoding="utf-8")
    os.kill(agent.process.pid, signal.SIGHUP)
    assert agent.process.stderr is not None
    lines = iter(agent.process.stderr.readline, "")
    assert any("signals.intervall: unknown key" in line for line in lines)
    assert "tidegate_build_info" in agent.metrics()


def test_bad_config_starts_nothing(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("signals:\n  intervall: 1s\nbogus: 1\n", encoding="utf-8")
    for done in (command("run", "-c", str(file)), command("config", "check", str(file))):
        assert done.returncode == 2
        assert f"{file}:2:3: signals.intervall: " in done.stderr
        assert f"{file}:3:1: bogus: " in done.stderr


def test_port_that_is_taken_is_an_error_with_its_remedy(tmp_path: Path) -> None:
    before = loaded_programs()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        file = tmp_path / "c.yaml"
        file.write_text(
            f"metrics: {{listen: '127.0.0.1:{taken.getsockname()[1]}'}}\ncontrol: {{socket: '{tmp_path}/s'}}\n",
            encoding="utf-8",
        )
        done = command("run", "-c", str(file))
    assert done.returncode == 3
    assert "Address already in use; find who has it with 'ss -ltnp" in done.stderr
    wait_until_unloaded(before)


def without(*argv: str) -> list[str]:
    """Return a command line that runs the program in a mount namespace after shell commands."""
    *shell, program = argv
    return ["unshare", "-m", "sh", "-c", " && ".join([*shell, f"exec {PROGRAM} {program}"])]


NO_CGROUP2 = 'umount -l $(awk \'$9 == "cgroup2" || $10 == "cgroup2" {print $5}\' /proc/self/mountinfo)'
NO_BTF = "mount -t tmpfs none /sys/kernel/btf"


@pytest.mark.parametrize(
    ("hide", "name", "remedy"),
    [(NO_CGROUP2, "cgroup2", "mount -t cgroup2"), (NO_BTF, "btf", "CONFIG_DEBUG_INFO_BTF=y")],
)
def test_what_the_host_lacks_is_exit_3_with_the_remedy(hide: str, name: str, remedy: str) -> None:
    run = subprocess.run(without(hide, "run"), capture_output=True, text=True, timeout=30, check=False)
    assert (run.returncode, remedy in run.stderr, "Traceback" in run.stderr) == (3, True, False), run.stderr
    doctor = subprocess.run(
        without(hide, "doctor --json"), capture_output=True, text=True, timeout=30, check=False
    )
    assert doctor.returncode == 3
    found = {feature["name"]: feature for feature in json.loads(doctor.stdout)}
    assert found[name]["state"] == "unavailable"
    assert remedy in found[name]["remedy"]
    version = subprocess.run(without(hide, "version"), capture_output=True, text=True, timeout=30, check=False)
    assert version.returncode == 0


def test_without_privilege_it_says_what_to_do() -> None:
    powerless = ["setpriv", "--inh-caps=-all", "--bounding-set=-all", PROGRAM]
    done = subprocess.run([*powerless, "run"], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 3, done.stderr
    assert "needs CAP_BPF and CAP_PERFMON, missing CAP_BPF and CAP_PERFMON" in done.stderr
    assert "run as root" in done.stderr
    assert "Traceback" not in done.stderr
    version = subprocess.run([*powerless, "version"], capture_output=True, text=True, timeout=30, check=False)
    assert version.returncode == 0


def test_doctor_is_content_with_this_host() -> None:
    done = command("doctor", "--json")
    assert done.returncode == 0
    states = {feature["name"]: feature["state"] for feature in json.loads(done.stdout)}
    assert states == {
        "privilege": "ok",
        "btf": "ok",
        "cgroup2": "ok",
        "namespaces": "ok",
        "controllers": "ok",
        "pressure": "ok",
        "disk:services": "ok",
        "rate limit (XDP)": "ok",
        "programs:tcp": "ok",
        "programs:cgroup": "ok",
        "programs:ports": "ok",
        "programs:oom": "ok",
        "programs:disk": "ok",
        "programs:http": "ok",
        "programs:failfast": "ok",
        "connects:no-syn": "degraded",
    }


def test_top_measures_by_itself_where_no_agent_runs(lab: Lab, tmp_path: Path) -> None:
    upstream = lab.host("inventory", 6).service("inventory_service")
    upstream.upstream(PORTS)
    shop = lab.host("client", 16).service("shop")
    top = subprocess.Popen(
        [PROGRAM, "top", "--once", "--json", "-d", "2", "--socket", str(tmp_path / "none")],
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 10
    while attached_links(top.pid) < 5:
        assert time.monotonic() < deadline
    shop.generate(Plan((Step("10.0.0.6", 5000, 50),)))
    output, _ = top.communicate(timeout=20)
    connects = {
        (r["service"], r["endpoint"]): r["connects"] for r in json.loads(output)["endpoints"] if r["connects"]
    }
    assert connects[shop.unit, "10.0.0.6:5000"] == 50


def test_top_refreshes_a_terminal_and_gives_it_back(agent: RunningAgent) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(PROGRAM, [PROGRAM, "top", "-n", "3", "-d", "0.1", "--socket", str(agent.socket)])
    output = b""
    while select.select([terminal], [], [], 10)[0]:
        try:
            output += os.read(terminal, 65536)
        except OSError:
            break
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert output.count(b"\x1b[H") == 3
    assert output.rstrip().endswith(b"\x1b[?25h\x1b[?1049l")
    assert b"SERVICE" in output


def test_run_with_view_prints_one_frame_and_goes_on(tmp_path: Path, port: int) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        f"signals: {{interval: 100ms}}\nmetrics: {{listen: '127.0.0.1:{port}'}}\n"
        f"control: {{socket: '{tmp_path}/s'}}\n",
        encoding="utf-8",
    )
    running = subprocess.Popen(
        [PROGRAM, "run", "--view", "-c", str(config)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert running.stdout is not None
        assert running.stdout.readline().startswith("tidegate ")
        assert running.poll() is None
        running.send_signal(signal.SIGTERM)
        rest, _ = running.communicate(timeout=10)
        assert rest.count("tidegate ") == 0
        assert running.returncode == 0
    finally:
        running.kill()
        running.wait()
