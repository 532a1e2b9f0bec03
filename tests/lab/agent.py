# SPDX-License-Identifier: Apache-2.0
"""The program ``tidegate`` as a user runs it, for the tests."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from prometheus_client.parser import text_string_to_metric_families

PROGRAM = str(Path(sys.executable).with_name("tidegate"))


class RunningAgent:
    """``tidegate run`` with a config of its own, behind the command ``under``; a context manager that ends it."""

    def __init__(
        self,
        directory: Path,
        port: int,
        *,
        interval: str = "100ms",
        signals: str = "",
        extra: str = "",
        tag: str = "",
        under: Sequence[str] = (),
    ) -> None:
        self._ending = f"{tag}.service"
        self.directory, self.port = directory, port
        self.socket = directory / "control.sock"
        self.config = directory / "tidegate.yaml"
        self.write_config(interval=interval, signals=signals, extra=extra)
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            [*under, PROGRAM, "run", "-c", str(self.config)],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def write_config(
        self, *, interval: str = "100ms", signals: str = "", extra: str = "", port: int | None = None
    ) -> None:
        """Write the file that the agent reads at the start and on SIGHUP."""
        self.config.write_text(
            f"signals: {{interval: {interval}{', ' if signals else ''}{signals}}}\n"
            f"metrics: {{listen: '127.0.0.1:{port or self.port}'}}\n"
            f"control: {{socket: '{self.socket}'}}\n{extra}",
            encoding="utf-8",
        )

    def __enter__(self) -> Self:
        self.wait_for("a first view", lambda: "tidegate_build_info" in self.metrics())
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def wait_for(self, what: str, done: Any, deadline: float = 15.0) -> None:
        """Wait until ``done`` holds; a connection refused meanwhile is not yet done."""
        end = time.monotonic() + deadline
        while True:
            try:
                if done():
                    return
            except OSError:
                pass
            assert self.process.poll() is None, f"the agent has ended: {self.process.communicate()}"
            assert time.monotonic() < end, f"no {what} after {deadline} s"
            time.sleep(0.01)

    def metrics(self, port: int | None = None) -> str:
        """Scrape once."""
        with urllib.request.urlopen(f"http://127.0.0.1:{port or self.port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    def values(self, metric: str) -> dict[tuple[str, ...], float]:
        """Return the samples of one metric by (service, role, endpoint, reason), of those that it has.

        Of the lab's services alone, by their names without its tag: this process scrapes, and others have
        traffic of their own.
        """
        found = {}
        for family in text_string_to_metric_families(self.metrics()):
            for sample in family.samples:
                service = sample.labels.get("service", "")
                if sample.name == metric and service.endswith(self._ending):
                    rest = [sample.labels[n] for n in ("role", "endpoint", "reason") if n in sample.labels]
                    found[service.replace(self._ending, ".service"), *rest] = sample.value
        return found

    def samples(self, metric: str, label: str) -> dict[str, float]:
        """Return the samples of one metric of the agent's own by a label."""
        return {
            sample.labels[label]: sample.value
            for family in text_string_to_metric_families(self.metrics())
            for sample in family.samples
            if sample.name == metric
        }

    def doctor(self) -> dict[str, dict[str, str]]:
        """Return the features that ``doctor`` finds in this agent by name."""
        done = self.command("doctor", "--json")
        assert done.returncode == 0, done.stderr
        found = {feature["name"]: feature for feature in json.loads(done.stdout)}
        return {name: feature for name, feature in found.items() if name.startswith("agent")}

    def command(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the program against this agent."""
        return command(*argv, "--socket", str(self.socket))

    def snapshot(self) -> dict[str, Any]:
        """Return what ``top --once --json`` prints."""
        done = self.command("top", "--once", "--json")
        assert done.returncode == 0, done.stderr
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, float]:
        """Send a signal; return the exit code and the seconds until the end."""
        sent = time.monotonic()
        os.kill(self.process.pid, number)
        code = self.process.wait(timeout=10)
        return code, time.monotonic() - sent


def command(*argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the program to its end."""
    return subprocess.run([PROGRAM, *argv], capture_output=True, text=True, timeout=60, check=False, **options)


def wait_until_unloaded(before: set[int], deadline: float = 10.0) -> None:
    """Wait until no program is left that was not there before; the kernel frees them after a grace period."""
    end = time.monotonic() + deadline
    while left := loaded_programs() - before:
        assert time.monotonic() < end, f"programs {left} are still loaded"


def loaded_programs() -> set[int]:
    """Return the ids of the tracing programs that are loaded on this machine."""
    listing = subprocess.run(["bpftool", "-j", "prog", "list"], capture_output=True, text=True, check=True)
    return {program["id"] for program in json.loads(listing.stdout) if program["type"] == "tracing"}


def program_runs(pid: int) -> int:
    """Return how many runs of the BPF programs that a process holds the kernel has counted."""
    runs = 0
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            fields = dict(line.split(":", 1) for line in path.read_text(encoding="ascii").splitlines())
            runs += int(fields.get("run_cnt", 0))
    return runs


def attached_links(pid: int) -> int:
    """Return how many BPF links a process holds, from what the kernel says of its descriptors."""
    held = 0
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            held += "link_type:" in path.read_text(encoding="ascii")
    return held
