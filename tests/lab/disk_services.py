# SPDX-License-Identifier: Apache-2.0
"""Services of the tests that use a disk: cgroups in the hierarchy that block requests are charged to."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from lab.network import cgroup_root, lab_name, remove_cgroup
from tidegate.kernel.probe import hierarchy_of

_numbers = itertools.count()


class DiskService:
    """A cgroup in which commands are run."""

    def __init__(self, cgroup: Path) -> None:
        self.cgroup = cgroup

    @property
    def name(self) -> str:
        """What the agent calls it."""
        return self.cgroup.name

    def begin(self, *argv: str) -> subprocess.Popen[bytes]:
        """Begin a command; its output is not shown."""
        join = ["sh", "-c", 'echo $$ >"$0" && exec "$@"', str(self.cgroup / "cgroup.procs")]
        return subprocess.Popen([*join, *argv], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def run(self, *argv: str) -> None:
        """Run a command to its end; it has to succeed."""
        finish(self.begin(*argv))


def finish(process: subprocess.Popen[bytes]) -> None:
    """Wait for a command; it has to succeed."""
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said.decode(errors="replace")


@contextlib.contextmanager
def disk_services(*names: str) -> Iterator[list[DiskService]]:
    """Make services, in blkio's hierarchy on a hybrid host, and remove them with all that runs in them."""
    block = hierarchy_of("blkio")
    root = cgroup_root() if block is None else Path(block.mounted)
    number = next(_numbers)
    top = root / f"{lab_name(number)}-disk"
    made = [top / f"{name}-{os.getpid()}-{number}.service" for name in names]
    try:
        top.mkdir()
        if block is None:
            for parent in (root, top):
                (parent / "cgroup.subtree_control").write_text("+io +memory", encoding="ascii")
        for cgroup in made:
            cgroup.mkdir()
        yield [DiskService(cgroup) for cgroup in made]
    finally:
        remove_cgroup(top)
