# SPDX-License-Identifier: Apache-2.0
"""The agent beside proxies that die, forget, are changed by others or can't be written: soon in step again."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.envoy import Envoy
from lab.gateway import Nginx
from lab.haproxy import Haproxy
from lab.lab import Lab
from lab.story import INVENTORY, PROXIES, Story
from tests.lab.remains import wait_until
from tests.lab.test_story import StoryAgent, reached

pytestmark = pytest.mark.lab

FIRST, SECOND, THIRD = INVENTORY
#: After a proxy's return, or after what was in the way has gone.
SOON = 5.0


@pytest.fixture(params=PROXIES)
def story(request: pytest.FixtureRequest, lab: Lab) -> Story:
    return Story(lab, request.param, ejection="300s")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own for the journals, which can be full."""
    path = tmp_path / "journal"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(path)], check=True)
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.fixture
def agent(story: Story, tmp_path: Path, journal: Path) -> Iterator[StoryAgent]:
    with StoryAgent(story, tmp_path) as running:
        assert running.journal == journal
        running.wait_for("the proxy", lambda: running.uses() == dict.fromkeys(INVENTORY, "active"))
        yield running


def row(agent: StoryAgent) -> dict[str, Any]:
    rows = json.loads(agent.command("pools", "list", "--json").stdout)
    (found,) = [row for row in rows if row["pool"] == "inventory"]
    return dict(found)


def of_doctor(agent: StoryAgent) -> dict[str, str]:
    """Return what the doctor says of the driver."""
    features = json.loads(agent.command("doctor", "--json").stdout)
    (found,) = [feature for feature in features if feature["name"].startswith("pool:inventory:")]
    return dict(found)


def state(agent: StoryAgent) -> str:
    """Return how the driver stands by its metric."""
    start = 'tidegate_pool_driver_state{pool="inventory",'
    (found,) = [line for line in agent.metrics().splitlines() if line.startswith(start) and line.endswith(" 1")]
    return found.partition('state="')[2].partition('"')[0]


def is_in_step(agent: StoryAgent, *out: str) -> bool:
    wanted = dict.fromkeys(INVENTORY, "active") | dict.fromkeys(out, "ejected")
    found = row(agent)
    return bool(found["uses"] == wanted and found["standing"] == "ok")


def stop(story: Story) -> None:
    proxy = story.proxy
    if isinstance(proxy, Nginx):
        proxy.end()
    elif isinstance(proxy, Haproxy):
        proxy.kill()
    else:
        proxy.stop()


def change_by_operator(story: Story) -> None:
    """Reload the proxy, or write its file anew, as it was at the beginning."""
    proxy = story.proxy
    if isinstance(proxy, Envoy):
        path = story.directory / "inventory.json"
        text = json.loads(path.read_text(encoding="utf-8"))
        for host in text["resources"][0]["endpoints"][0]["lb_endpoints"]:
            host.pop("health_status", None)
        new = path.with_name("operator.json")
        new.write_text(json.dumps(text), encoding="ascii")
        new.replace(path)
        return
    if isinstance(proxy, Nginx):
        lines = "".join(f"server {endpoint} max_fails=0;  # written anew\n" for endpoint in INVENTORY)
        (story.directory / "inventory.conf").write_text(lines, encoding="ascii")
        time.sleep(0.05)
    proxy.reload()


@contextlib.contextmanager
def broken(story: Story) -> Iterator[None]:
    """Have the proxy's config be broken, or its socket be gone, meanwhile."""
    path = {
        Nginx: lambda: story.proxy.directory / "nginx.conf",
        Haproxy: lambda: story.proxy.directory / "admin.sock",
        Envoy: lambda: story.directory / "inventory.json",
    }[type(story.proxy)]()
    aside = path.with_name("aside")
    path.rename(aside)
    if not isinstance(story.proxy, Haproxy):
        path.write_text("this is { no config", encoding="ascii")
    try:
        yield
    finally:
        aside.replace(path)


def test_a_proxy_that_was_away_or_changed_is_told_again(story: Story, agent: StoryAgent) -> None:
    assert not agent.command("breaker", "open", "inventory", FIRST).returncode
    agent.wait_for("an ejection", lambda: is_in_step(agent, FIRST))
    assert of_doctor(agent)["state"] in ("ok", "degraded")

    stop(story)
    agent.wait_for("its absence", lambda: state(agent) == "away")
    away = of_doctor(agent)
    assert (away["state"], bool(away["remedy"])) == ("degraded", True)
    story.proxy.start()
    agent.wait_for("its return", lambda: is_in_step(agent, FIRST), SOON)
    assert reached(story).keys() == {SECOND, THIRD}

    change_by_operator(story)
    agent.wait_for("the change by its operator", lambda: is_in_step(agent, FIRST), SOON)
    wait_until(lambda: reached(story).keys() == {SECOND, THIRD}, "all by the others", SOON)

    # An agent that stops puts all back.
    code, seconds = agent.stop()
    assert (code, list(agent.journal.glob("*.json"))) == (0, [])
    assert seconds < 5
    assert reached(story).keys() == set(INVENTORY)


def test_what_cannot_be_told_is_told_when_it_can(story: Story, agent: StoryAgent) -> None:
    with broken(story):
        assert not agent.command("breaker", "open", "inventory", FIRST).returncode
        agent.wait_for("an error", lambda: row(agent)["standing"] in ("behind", "away"))
        assert of_doctor(agent)["state"] == "degraded"
        assert failures(agent) > 0
        if not isinstance(story.proxy, Envoy):  # which keeps what it has, as the others do
            assert reached(story).keys() == set(INVENTORY)
    agent.wait_for("its mending", lambda: is_in_step(agent, FIRST), SOON)
    assert reached(story).keys() == {SECOND, THIRD}

    # What can't be written down first isn't done.
    (agent.journal / "filling").write_bytes(bytes(60 * 1024 - 4096 * len(list(agent.journal.iterdir()))))
    with contextlib.suppress(OSError):
        (agent.journal / "more").write_bytes(bytes(65536))
    assert not agent.command("breaker", "open", "inventory", SECOND, "--force").returncode
    agent.wait_for("an error", lambda: "No space left" in row(agent)["error"])
    assert "No space left" in of_doctor(agent)["reason"]
    assert row(agent)["uses"][SECOND] == "active"
    for path in ("filling", "more"):
        (agent.journal / path).unlink()
    agent.wait_for("room", lambda: is_in_step(agent, FIRST, SECOND), SOON)
    assert not agent.command("breaker", "close", "inventory", FIRST).returncode
    assert not agent.command("breaker", "close", "inventory", SECOND).returncode
    agent.wait_for("all back", lambda: is_in_step(agent), SOON)
    assert reached(story).keys() == set(INVENTORY)


def failures(agent: StoryAgent) -> float:
    start = 'tidegate_pool_updates_total{pool="inventory",'
    lines = [line for line in agent.metrics().splitlines() if line.startswith(start) and 'result="failed"' in line]
    return sum(float(line.rpartition(" ")[2]) for line in lines)
