# SPDX-License-Identifier: Apache-2.0
"""The agent's own life while an endpoint is out: another config, a stop, a pause, a death, and another agent."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.haproxy import Haproxy
from lab.lab import Lab
from lab.story import INVENTORY, Story
from tests.lab.remains import wait_until
from tests.lab.test_ratelimit import nothing_left
from tests.lab.test_story import LEASE, StoryAgent, reached

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("nothing_left")]
assert nothing_left  # a fixture

FIRST, SECOND, THIRD = INVENTORY
READY, DRAIN, MAINT = 0, 8, 1


@pytest.fixture
def story(lab: Lab) -> Story:
    return Story(lab, "haproxy", ejection="300s")


@pytest.fixture
def agent(story: Story, tmp_path: Path) -> Iterator[StoryAgent]:
    with StoryAgent(story, tmp_path) as running:
        eject(running, FIRST)
        yield running
    wait_until(lambda: not children(running), "the lease's child has ended", 60)


def proxy(story: Story) -> Haproxy:
    assert isinstance(story.proxy, Haproxy)
    return story.proxy


def states(story: Story) -> dict[str, int]:
    """Return the admin state of each server of the inventory by its endpoint, as HAProxy has it."""
    lines = proxy(story).ask("show servers state inventory_service").splitlines()[2:]
    rows = [line.split(" ") for line in lines if line]
    return {f"{row[4]}:{row[18]}": int(row[6]) for row in rows}


def out(**states_of: int) -> dict[str, int]:
    return dict.fromkeys(INVENTORY, READY) | {INVENTORY[int(name[1:])]: state for name, state in states_of.items()}


def eject(agent: StoryAgent, endpoint: str, pool: str = "inventory") -> None:
    def opened() -> bool:
        return not agent.command("breaker", "open", pool, endpoint).returncode

    agent.wait_for("the pool", opened)
    agent.wait_for("an ejection", lambda: uses(agent, pool).get(endpoint) == "ejected")


def uses(agent: StoryAgent, pool: str) -> dict[str, str]:
    rows = json.loads(agent.command("pools", "list", "--json").stdout)
    return next((row["uses"] for row in rows if row["pool"] == pool), {})


def children(agent: StoryAgent) -> list[int]:
    """Return the lease's child, or what it has become."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"--instead-of" in words and str(agent.journal).encode() in words:
                found.append(int(process.name))
    return found


def reload(agent: StoryAgent, before: str, after: str) -> None:
    text = agent.config.read_text(encoding="utf-8")
    assert before in text
    agent.config.write_text(text.replace(before, after), encoding="utf-8")
    agent.process.send_signal(signal.SIGHUP)


def test_another_config_while_an_endpoint_is_out(story: Story, agent: StoryAgent) -> None:
    assert states(story) == out(s0=DRAIN)
    # Another way of ejecting, and with it another journal.
    reload(agent, "backend: inventory_service", "eject: maint, backend: inventory_service")
    wait_until(lambda: states(story) == out(s0=MAINT), "out in the other way")
    # Who leaves the pool is put back, who stays stays out.
    eject(agent, SECOND)
    reload(agent, f'"{FIRST}", ', "")
    wait_until(lambda: states(story) == out(s1=MAINT), "the one that left put back")
    # Under another name it is another pool, of which the breaker knows nothing.
    reload(agent, "\n  inventory:", "\n  stock:")
    wait_until(lambda: states(story) == out(), "all back")
    eject(agent, SECOND, "stock")
    assert states(story) == out(s1=MAINT)
    reload(agent, "mode: enforce\n    min_healthy: 1", "mode: monitor\n    min_healthy: 1")
    wait_until(lambda: states(story) == out() and not list(agent.journal.glob("*.json")), "put back")
    assert agent.stop()[0] == 0


def test_a_pool_that_is_removed_is_put_back(story: Story, agent: StoryAgent) -> None:
    text = agent.config.read_text(encoding="utf-8")
    start, end = text.index("pools:"), text.index("breaker:")
    agent.config.write_text(text[:start] + text[end:], encoding="utf-8")
    agent.process.send_signal(signal.SIGHUP)
    wait_until(lambda: states(story) == out() and not list(agent.journal.glob("*.json")), "put back")
    assert json.loads(agent.command("pools", "list", "--json").stdout) == []
    assert agent.stop()[0] == 0


def test_a_stop_does_not_wait_long_for_a_proxy_that_hangs(story: Story, agent: StoryAgent) -> None:
    with proxy(story).hanging():
        code, seconds = agent.stop()
        assert (code, seconds < 9) == (0, True)
        assert list(agent.journal.glob("*.json"))
        time.sleep(LEASE + 1)  # the child tries, and tries again
    wait_until(lambda: states(story) == out(), "put back by the lease's child", 15)
    wait_until(lambda: not list(agent.journal.glob("*.json")), "forgotten")


def test_a_pause_longer_than_the_lease(story: Story, agent: StoryAgent) -> None:
    (child,) = children(agent)
    os.kill(agent.process.pid, signal.SIGSTOP)
    wait_until(lambda: states(story) == out(), "put back meanwhile", LEASE + 10)
    os.kill(agent.process.pid, signal.SIGCONT)
    wait_until(lambda: states(story) == out(s0=DRAIN), "out again", 15)
    agent.wait_for("another child", lambda: children(agent) not in ([], [child]))
    assert reached(story).keys() == {SECOND, THIRD}
    assert states(story) == out(s0=DRAIN)
    agent.stop(signal.SIGKILL)
    wait_until(lambda: states(story) == out(), "put back once more", LEASE + 10)


def test_an_agent_that_goes_on_is_left_alone(story: Story, agent: StoryAgent) -> None:
    """Although something else can't be put back, which the child would try again for minutes."""
    (journal,) = agent.journal.glob("*.json")
    other = json.loads(journal.read_text(encoding="utf-8"))
    other["config"]["socket"], other["pool"] = "/nowhere/x.sock", "other"
    (agent.journal / "other.json").write_text(json.dumps(other), encoding="utf-8")
    (child,) = children(agent)
    os.kill(agent.process.pid, signal.SIGSTOP)
    wait_until(lambda: states(story) == out(), "put back meanwhile", LEASE + 10)
    os.kill(agent.process.pid, signal.SIGCONT)
    wait_until(lambda: children(agent) not in ([], [child]), "the child has ended", 15)
    wait_until(lambda: states(story) == out(s0=DRAIN), "out again", 15)
    for _ in range(20):
        assert states(story) == out(s0=DRAIN)
        time.sleep(0.1)
    (agent.journal / "other.json").unlink()
    assert agent.stop()[0] == 0
    assert states(story) == out()


def test_the_child_holds_nothing_of_the_agent(agent: StoryAgent) -> None:
    (child,) = children(agent)
    targets = [os.readlink(path) for path in Path(f"/proc/{child}/fd").iterdir()]
    assert all(target.startswith(("pipe:", "/dev/null")) for target in targets), targets
    assert len(targets) == 3


def test_another_agent_starts_while_the_child_waits_for_a_proxy(
    story: Story, agent: StoryAgent, tmp_path: Path
) -> None:
    with contextlib.ExitStack() as stack:
        with proxy(story).hanging():
            agent.stop(signal.SIGKILL)
            (child,) = children(agent)
            wait_until(lambda: not is_waiting(child), "putting back", LEASE + 10)
            time.sleep(1.5)  # it has tried by then
            second = stack.enter_context(StoryAgent(story, tmp_path))
            wait_until(lambda: child not in children(second), "the child has left it to the new agent", 15)
            rows = json.loads(second.command("pools", "list", "--json").stdout)
            assert {row["standing"] for row in rows} <= {"starting", "away"}
            assert second.stop()[0] == 0
        wait_until(lambda: states(story) == out(), "put back by its child", 15)


def is_waiting(child: int) -> bool:
    """Tell whether the lease's child still waits for word."""
    return b"guard.py" in Path(f"/proc/{child}/cmdline").read_bytes()


@pytest.mark.parametrize("changed", ["eject: maint, backend", "backend"])
def test_another_agent_with_the_same_config_or_another(
    story: Story, agent: StoryAgent, tmp_path: Path, changed: str
) -> None:
    agent.stop(signal.SIGKILL)
    story.config = story.config.replace("backend", changed)
    with StoryAgent(story, tmp_path) as second:
        wait_until(lambda: states(story) == out(), "put back by the new agent")
        eject(second, SECOND)
        assert states(story) == out(s1=DRAIN if changed == "backend" else MAINT)
        time.sleep(LEASE + 1)  # the old child comes to nothing
        assert states(story) == out(s1=DRAIN if changed == "backend" else MAINT)
        assert second.stop()[0] == 0
    assert states(story) == out()


def test_the_kernel_refuses_nobody_whom_the_proxy_needs(lab: Lab, tmp_path: Path) -> None:
    """An operator has two of three in maintenance, which the breaker doesn't know."""
    story = Story(lab, "haproxy", ejection="300s")
    story.config = story.config.replace("}}]", "}}, {failfast: {}}]")

    def drivers(agent: StoryAgent) -> dict[str, str]:
        rows = json.loads(agent.command("pools", "list", "--json").stdout)
        return {row["driver"]: row["uses"].get(FIRST) for row in rows if row["pool"] == "inventory"}

    def held(agent: StoryAgent) -> int:
        rows = json.loads(agent.command("pools", "list", "--json").stdout)
        return sum(list(row["uses"].values()).count("held") for row in rows)

    with StoryAgent(story, tmp_path) as agent:
        for server in ("s1", "s2"):
            proxy(story).ask(f"set server inventory_service/{server} state maint")
        agent.wait_for("his doing", lambda: held(agent) == 2)
        assert not agent.command("breaker", "open", "inventory", FIRST).returncode
        agent.wait_for("a refusal", lambda: "min_healthy" in agent.command("pools", "list").stdout)
        for _ in range(5):
            assert drivers(agent) == {"haproxy": "active", "failfast": "active"}
            assert reached(story).keys() == {FIRST}
        proxy(story).ask("set server inventory_service/s1 state ready")
        agent.wait_for("an ejection", lambda: drivers(agent) == {"haproxy": "ejected", "failfast": "ejected"})
        assert reached(story).keys() == {SECOND}
        assert agent.stop()[0] == 0
