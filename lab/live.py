# SPDX-License-Identifier: Apache-2.0
"""The story told live: an upstream fails, is taken out of the gateway's proxy, comes back, and the agent dies."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from lab.gateway import Visitors
from lab.lab import Lab
from lab.story import INVENTORY, Story
from tidegate.ratelimit.running import remove_leftovers

_TIDEGATE = str(Path(sys.executable).with_name("tidegate"))
LEASE = 5
#: Requests a second, for both upstreams together.
RATE = 60


class Agent:
    """The agent at the story's gateway, and what it has put on the record."""

    def __init__(self, story: Story) -> None:
        self._story, self._directory = story, story.directory
        self.socket = self._directory / "control.sock"
        self._audit, self._read = self._directory / "audit.jsonl", 0
        self.config = self._directory / "tidegate.yaml"
        self.config.write_text(
            f"control: {{socket: {self.socket}}}\naudit: {{file: {self._audit}}}\n"
            f"privacy: {{client_addresses: plain}}\nrate_limit: {{{story.rate_limit}}}\n{story.config}"
            f"breaker: {{journal: {self._directory}/journal, lease: {LEASE}s}}\n",
            encoding="utf-8",
        )
        self.start()

    def start(self) -> None:
        """Start it."""
        self._process = self._story.gateway.popen(
            [_TIDEGATE, "run", "-c", str(self.config)],
            start_new_session=True,
            stderr=subprocess.DEVNULL,
        )

    def kill(self) -> None:
        """End it without a chance to put anything back."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """End it in order."""
        self._process.terminate()
        self._process.wait()
        remove_leftovers()

    def uses(self) -> dict[str, str]:
        """Return how the proxy uses the inventory's endpoints; nothing while the agent doesn't answer."""
        command = [_TIDEGATE, "pools", "list", "--json", "--socket", str(self.socket)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        rows = json.loads(done.stdout) if done.returncode == 0 else []
        return {name: use for row in rows if row["pool"] == "inventory" for name, use in row["uses"].items()}

    def news(self) -> Iterator[str]:
        """Yield what has come onto the record since the last call, a line for each."""
        if not self._audit.exists():
            return
        with self._audit.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        whole = text.rfind(b"\n") + 1
        self._read += whole
        for line in text[:whole].splitlines():
            yield said(json.loads(line))


def said(record: dict[str, Any]) -> str:
    """Return a record of the audit trail as a line."""
    at, details = datetime.fromisoformat(record["time"]).strftime("%H:%M:%S.%f")[:-3], record["details"]
    if record["action"] == "pool":
        commands = "; ".join(
            f"{one['command']} -> {one['answer'].strip() or 'done'}" for one in details["exchanges"]
        )
        changed = ", ".join(f"{name} {use}" for name, use in details["changed"].items())
        took = f"{1e3 * details['seconds']:.1f} ms after the decision"
        return f"{at}  {details['driver']}: {record['reason']}, {changed or details['pool']}, {took}: {commands}"
    where = record["subject"] or "this node"
    return f"{at}  {record['action']}: {details.get('action', '')} {where}, {record['reason']}"


def tell(lab: Lab, proxy: str, rounds: int | None, ejection: str) -> None:
    """Tell it ``rounds`` times, or until the end; an ejection lasts for ``ejection``."""
    story = Story(lab, proxy, ejection)
    agent = Agent(story)
    options = f"--socket {agent.socket}"
    print(
        f"the gateway 10.0.0.16, a real {proxy}; behind it auth (10.0.0.5, spare 10.0.0.9) and inventory "
        f"(10.0.0.6, spares 10.0.0.7 and 10.0.0.8). In another terminal:\n"
        f"  tidegate top {options}\n  tidegate pools list {options}\n  tidegate breaker status {options}\n"
        f"the agent's config: {agent.config}\nend with Ctrl-C\n",
        flush=True,
    )
    try:
        number = 0
        while rounds is None or number < rounds:
            number += 1
            _round(story, agent)
    finally:
        agent.stop()


def _round(story: Story, agent: Agent) -> None:
    first = INVENTORY[0]
    _until(story, agent, "all is well", lambda uses: bool(uses) and set(uses.values()) == {"active"}, 5)
    story.fail(first)
    _until(story, agent, f"{first} answers 503", lambda uses: uses.get(first) == "ejected", 3)
    story.mend(first)
    _until(story, agent, f"{first} is well again", lambda uses: uses.get(first) == "active", 3)
    story.fail(first)
    _until(story, agent, f"{first} answers 503 again", lambda uses: uses.get(first) == "ejected", 0)
    story.mend(first)
    agent.kill()
    print(f"{_now()}  the agent is killed; the proxy is whole again {LEASE} s later", flush=True)
    before = len(story.statuses(first))
    _until(story, agent, "nobody is there", lambda _: len(story.statuses(first)) > before, 0)
    print(f"{_now()}  {first} gets requests again", flush=True)
    agent.start()


def _until(story: Story, agent: Agent, what: str, done: Callable[[dict[str, str]], bool], least: float) -> None:
    """Visit until it is so, and ``least`` seconds long; tell each second what the visitors got."""
    print(f"{_now()}  {what}", flush=True)
    began = time.monotonic()
    is_done = False
    while not is_done or time.monotonic() - began < least:
        visitors = Visitors(
            story.way.host, f"{story.way.address}:{story.way.port}", ["/", "/auth/"], RATE, RATE, patience=2.0
        )
        answers = visitors.results()
        is_done = is_done or done(agent.uses())
        for line in agent.news():
            print(line, flush=True)
        counts = "  ".join(
            f"{path} {status}: {count}" for path, each in answers.items() for status, count in each.items()
        )
        print(f"{_now()}    {counts}", flush=True)


def _now() -> str:
    return datetime.now().astimezone().strftime("%H:%M:%S.%f")[:-3]
