# SPDX-License-Identifier: Apache-2.0
"""What people type: pools check, list and restore, several drivers of one pool, and the story told live."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lab.lab import ROOT, Lab
from lab.network import enter
from lab.story import INVENTORY, PROXIES, Story
from tests.lab.agent import command
from tests.lab.remains import remains, wait_until
from tests.lab.test_story import StoryAgent, reached

pytestmark = pytest.mark.lab

FIRST, SECOND, THIRD = INVENTORY
#: errno of a connect.
_CONNECT = "import socket, sys; print(socket.socket().connect_ex((sys.argv[1], int(sys.argv[2]))))"


def check(config: Path) -> tuple[int, dict[str, Any]]:
    """Return the exit code and what is said of the inventory's driver."""
    done = command("pools", "check", "-c", str(config), "--json")
    (found,) = [row for row in json.loads(done.stdout) if row["pool"] == "inventory"]
    return done.returncode, dict(found)


@pytest.mark.parametrize("proxy", PROXIES)
def test_check_looks_and_changes_nothing(lab: Lab, proxy: str, tmp_path: Path) -> None:
    story = Story(lab, proxy)
    config = tmp_path / "tidegate.yaml"
    config.write_text(f"{story.config}breaker: {{journal: {tmp_path}/journal}}\n", encoding="utf-8")
    code, found = check(config)
    assert (code, found["driver"], found["can_write"]) == (0, proxy, True)
    assert found["uses"] == dict.fromkeys(INVENTORY, "active")
    assert found["version"]
    assert not (tmp_path / "journal").exists()
    text = command("pools", "check", "-c", str(config)).stdout
    assert re.search(rf"^inventory: {proxy} .*: could write$", text, re.MULTILINE)
    assert f"  {FIRST:<24} active\n" in text

    away = tmp_path / "away.yaml"
    pool = {"endpoints": list(INVENTORY), "drivers": [{"haproxy": {"backend": "b", "socket": "/nowhere/x.sock"}}]}
    away.write_text(json.dumps({"pools": {"inventory": pool}}), encoding="utf-8")
    code, found = check(away)
    assert (code, found["can_write"]) == (1, False)
    assert "/nowhere/x.sock" in found["problems"][0]


def test_restore_puts_back_what_a_dead_agent_left_and_not_what_a_living_one_does(lab: Lab, tmp_path: Path) -> None:
    story = Story(lab, "haproxy")
    with StoryAgent(story, tmp_path, lease="300s") as agent:
        agent.wait_for("the proxy", lambda: agent.uses() == dict.fromkeys(INVENTORY, "active"))
        assert not agent.command("breaker", "open", "inventory", FIRST).returncode
        agent.wait_for("an ejection", lambda: agent.uses()[FIRST] == "ejected")
        listed = agent.command("pools", "list").stdout
        assert f"  {FIRST:<24} ejected\n" in listed
        assert re.search(r"^inventory: haproxy [\d.]+.*, haproxy .*: ok \(1 ok\)$", listed, re.MULTILINE)
        refused = command("pools", "restore", "-c", str(agent.config))
        assert (refused.returncode, "another agent runs" in refused.stderr) == (1, True)
        holder = holder_of_the_lease(agent)
        agent.stop(signal.SIGKILL)
        done = command("pools", "restore", "-c", str(agent.config))
        os.kill(holder, signal.SIGKILL)
    assert done.returncode == 0, done.stderr
    assert "inventory: haproxy: set server inventory_service/s0 state ready: done" in done.stdout
    assert reached(story).keys() == set(INVENTORY)
    again = command("pools", "restore", "-c", str(agent.config))
    assert (again.returncode, "nothing to put back" in again.stdout) == (0, True)


def holder_of_the_lease(agent: StoryAgent) -> int:
    """Return the pid of the child that holds the agent's lease."""
    children = Path(f"/proc/{agent.process.pid}/task/{agent.process.pid}/children").read_text(encoding="ascii")
    for task in Path(f"/proc/{agent.process.pid}/task").iterdir():
        children += (task / "children").read_text(encoding="ascii")
    (found,) = {pid for pid in children.split() if b"guard.py" in Path(f"/proc/{pid}/cmdline").read_bytes()}
    return int(found)


def test_several_drivers_of_one_pool(lab: Lab, tmp_path: Path) -> None:
    story = Story(lab, "haproxy")
    story.config = story.config.replace("}}]", "}}, {failfast: {}}]")

    def connect(endpoint: str) -> int:
        argv = [sys.executable, "-c", _CONNECT, *endpoint.split(":")]
        done = subprocess.run(enter(story.gateway.namespace, argv), capture_output=True, text=True, check=True)
        return int(done.stdout)

    with StoryAgent(story, tmp_path) as agent:

        def uses() -> dict[str, dict[str, str]]:
            rows = json.loads(agent.command("pools", "list", "--json").stdout)
            return {row["driver"]: row["uses"] for row in rows if row["pool"] == "inventory"}

        active = dict.fromkeys(INVENTORY, "active")
        agent.wait_for("the proxy", lambda: uses() == {"failfast": active, "haproxy": active})
        assert not agent.command("breaker", "open", "inventory", FIRST).returncode
        out = active | {FIRST: "ejected"}
        agent.wait_for("an ejection", lambda: uses() == {"failfast": out, "haproxy": out})
        assert (connect(FIRST), connect(SECOND)) == (111, 0)
        assert reached(story).keys() == {SECOND, THIRD}
        assert {told["driver"] for told in agent.told()} == {"failfast", "haproxy"}
        assert not agent.command("breaker", "close", "inventory", FIRST).returncode
        agent.wait_for("its return", lambda: uses() == {"failfast": active, "haproxy": active})
        assert connect(FIRST) == 0
        assert reached(story).keys() == set(INVENTORY)


def test_the_story_is_told_live() -> None:
    argv = [sys.executable, "-m", "lab", "--story", "haproxy", "--rounds", "1", "--ejection", "8s"]
    live = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, timeout=120, check=True)
    text = re.sub(r"\d\d:\d\d:\d\d\.\d{3} +", "", live.stdout)
    said = [line for line in text.splitlines() if line]
    order = [
        "all is well",
        f"{FIRST} answers 503",
        f"breaker: eject {FIRST}, consecutive_5xx",
        f"{FIRST} is well again",
        f"breaker: uneject {FIRST}, elapsed",
        f"{FIRST} answers 503 again",
        f"{FIRST} gets requests again",
    ]
    places = [said.index(line) for line in order]
    assert places == sorted(places)
    assert any(line.startswith(f"haproxy: ok, {FIRST} ejected, ") for line in said)
    assert live.stderr == ""
    directory = re.search(r"--socket (\S+)/control.sock", live.stdout)
    assert directory is not None
    wait_until(lambda: not Path(directory[1]).exists(), "gone")
    assert not [what for what in remains("tglab-") if directory[1] in what]
