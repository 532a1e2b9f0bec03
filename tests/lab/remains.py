# SPDX-License-Identifier: Apache-2.0
"""Waiting for a lab to settle, and what is left of one."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from lab.network import cgroup_root


def wait_until(done: Callable[[], bool], what: str, deadline: float = 10.0) -> None:
    end = time.monotonic() + deadline
    while not done():
        assert time.monotonic() < end, f"not {what} after {deadline} s"
        time.sleep(0.01)


def remains(lab: str) -> list[str]:
    """Return what there still is of a lab: namespaces, mounts, cgroups, and processes that were told its name."""
    found = [str(path) for path in (*Path("/run/netns").glob(f"{lab}-*"), *cgroup_root().glob(f"{lab}*"))]
    found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"{lab}-" in line]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if lab in command:
            found.append(f"{process.name} {command}")
    return found
