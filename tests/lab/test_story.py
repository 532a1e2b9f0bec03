# SPDX-License-Identifier: Apache-2.0
"""The whole story with each proxy: an upstream fails, is taken out, comes back, and outlives the agent's death."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.closedloop import ClosedLoop
from lab.lab import Lab
from lab.story import INVENTORY, PROXIES, Story
from tests.lab.remains import wait_until
from tests.lab.test_ratelimit import GatewayAgent, nothing_left

pytestmark = pytest.mark.lab
assert nothing_left  # a fixture

FIRST, SECOND, THIRD = INVENTORY
LEASE = 2.0


class StoryAgent(GatewayAgent):
    """The agent of the story's gateway."""

    def __init__(
        self, story: Story, directory: Path, breaker: str = "", *, lease: str = f"{LEASE}s", limits: bool = False
    ) -> None:
        # The load of the test itself must not count as this node's illness.
        freeze = "freeze: {steal: 1, cpu_pressure: 1, memory_pressure: 1, io_pressure: 1}"
        breaker = f"breaker: {{journal: {directory}/journal, lease: {lease}, {freeze}{breaker}}}\n"
        super().__init__(
            story.gateway,
            directory,
            story.rate_limit if limits else "",
            interval="200ms",
            extra=story.config + breaker,
        )
        self.journal = directory / "journal"

    def pool(self, view: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the pool of the inventory as a view has it."""
        pools = (view or self.snapshot())["pools"]
        found: dict[str, Any] = next(pool for pool in pools if pool["pool"] == "inventory")
        return found

    def uses(self) -> dict[str, str]:
        """Return how the proxy uses each of its endpoints."""
        rows = json.loads(self.command("pools", "list", "--json").stdout)
        (row,) = [row for row in rows if row["pool"] == "inventory"]
        return {endpoint: str(use) for endpoint, use in row["uses"].items()}

    def told(self) -> list[dict[str, Any]]:
        """Return the details of each update of a proxy on the record."""
        records = [json.loads(line) for line in self.audit.read_text(encoding="utf-8").splitlines()]
        return [record["details"] for record in records if record["action"] == "pool"]


@pytest.fixture(params=PROXIES)
def story(request: pytest.FixtureRequest, lab: Lab) -> Story:
    return Story(lab, request.param, ejection="3s")


@pytest.fixture
def agent(story: Story, tmp_path: Path) -> Iterator[StoryAgent]:
    with StoryAgent(story, tmp_path, limits=True) as running:
        yield running


def reached(story: Story, requests: int = 60) -> Counter[str]:
    """Count by endpoint who answers so many requests."""
    loop = ClosedLoop(story.way.host, story.way.address, story.way.port, workers=3, count=requests)
    return Counter(result.body if result.status == 200 else str(result.status) for result in loop.results())


@pytest.mark.usefixtures("nothing_left")
def test_the_story(story: Story, agent: StoryAgent) -> None:
    agent.wait_for("the proxy to be read", lambda: agent.uses() == dict.fromkeys(INVENTORY, "active"))
    loop = ClosedLoop(story.way.host, story.way.address, story.way.port, workers=20)
    wait_until(lambda: all(len(story.statuses(endpoint)) > 100 for endpoint in INVENTORY), "served by all")

    story.fail(FIRST)
    agent.wait_for("an ejection", lambda: agent.uses()[FIRST] == "ejected")
    ejected = agent.snapshot()
    row = next(row for row in agent.pool(ejected)["endpoints"] if row["endpoint"] == FIRST)
    assert (row["state"], row["reason"]) == (1, "consecutive_5xx")
    assert agent.pool(ejected)["drivers"][0]["uses"] == dict.fromkeys(INVENTORY, "active") | {FIRST: "ejected"}
    metrics = agent.metrics()
    assert f'tidegate_breaker_state{{pool="inventory",endpoint="{FIRST}"}} 1' in metrics
    assert any(
        line.startswith('tidegate_pool_updates_total{pool="inventory"') and 'result="ok"} 1' in line
        for line in metrics.splitlines()
    )
    failed = [status for _, status in story.statuses(FIRST) if status == 503]
    assert counted(ejected, FIRST, "5xx") == len(failed) >= 3
    story.mend(FIRST)

    agent.wait_for("its return", lambda: agent.uses() == dict.fromkeys(INVENTORY, "active"))
    before = len(story.statuses(FIRST))
    wait_until(lambda: len(story.statuses(FIRST)) > before + 100, "used again")
    requests = loop.stop()
    statuses = Counter(request.status for request in requests)
    assert statuses.keys() == {200, 503}
    assert statuses[503] == len(failed), "a client saw what the endpoint answered, and nothing else"
    assert {change for told in agent.told() for change in told["changed"].values()} >= {"ejected", "active"}
    assert all(exchange["command"] for told in agent.told() for exchange in told["exchanges"])

    die_in_the_ejected_state(story, agent)


def counted(view: dict[str, Any], endpoint: str, code_class: str) -> int:
    """Return how many answers of a class the kernel has counted."""
    rows = [row for row in view["endpoints"] if row["endpoint"] == endpoint and row["responses"]]
    return sum(int(row["responses"].get(code_class, 0)) for row in rows if row["role"] == "client")


def die_in_the_ejected_state(story: Story, agent: StoryAgent) -> None:
    assert not agent.command("breaker", "open", "inventory", SECOND).returncode
    agent.wait_for("an ejection", lambda: agent.uses()[SECOND] == "ejected")
    assert reached(story).keys() == {FIRST, THIRD}
    assert len(list(agent.journal.glob("*.json"))) == 1
    agent.stop(signal.SIGKILL)
    died = time.monotonic()
    assert reached(story).keys() == {FIRST, THIRD}, "the ejection outlives the agent"
    wait_until(lambda: not list(agent.journal.glob("*.json")), "put back", LEASE + 10)
    assert time.monotonic() - died > LEASE / 2
    assert reached(story).keys() == set(INVENTORY)


@pytest.mark.parametrize("proxy", PROXIES)
def test_what_a_proxy_says_counts_where_the_kernel_cannot_read_it(lab: Lab, proxy: str, tmp_path: Path) -> None:
    story = Story(lab, proxy, ejection="60s", tls=True)
    with StoryAgent(story, tmp_path, f", feed: {{listen: {story.feed}}}") as agent:
        assert reached(story).keys() == set(INVENTORY)
        agent.wait_for(
            "a look at what can't be read",
            lambda: all(row["is_encrypted"] for row in agent.pool()["endpoints"]),
        )
        time.sleep(2.5)  # so that statistics have been had since
        before = {row["endpoint"]: row["heard"] for row in agent.pool()["endpoints"]}
        answered = {endpoint: len(story.statuses(endpoint)) for endpoint in INVENTORY}
        assert reached(story, 300).keys() == set(INVENTORY)
        agent.wait_for("all answers", lambda: heard(agent, before) == grown(story, answered))
        story.fail(FIRST)
        assert set(reached(story)) <= {SECOND, THIRD, "503"}
        agent.wait_for("an ejection", lambda: agent.uses()[FIRST] == "ejected")
        assert next(row["reason"] for row in agent.pool()["endpoints"] if row["state"]) == "consecutive_5xx"
        assert reached(story).keys() == {SECOND, THIRD}


def heard(agent: StoryAgent, before: dict[str, int]) -> dict[str, int]:
    return {row["endpoint"]: row["heard"] - before[row["endpoint"]] for row in agent.pool()["endpoints"]}


def grown(story: Story, before: dict[str, int]) -> dict[str, int]:
    return {endpoint: len(story.statuses(endpoint)) - count for endpoint, count in before.items()}
