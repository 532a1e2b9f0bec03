# SPDX-License-Identifier: Apache-2.0
"""The network namespaces of this node's processes, and running something in each."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h


def network_namespaces(proc: Path = Path("/proc")) -> dict[int, Path]:
    """Return one path for each network namespace by its inode, this process's own first.

    Namespaces that a process is in, and those that are mounted somewhere, as by ``ip netns``. One that may not be
    looked at has a negative number.
    """
    processes = ("self", *(name for name in os.listdir(proc) if name.isdigit()))
    found: dict[int, Path] = {}
    for path in (*(proc / process / "ns/net" for process in processes), *_mounted(proc)):
        try:
            found.setdefault(path.stat().st_ino, path)
        except PermissionError:  # without CAP_SYS_PTRACE; to be refused by name when it is to be entered
            # Process 1 of a sandbox may be out of everybody's reach; it is where the node's own processes are.
            if path.parts[-3] != "1":
                found.setdefault(-len(found), path)
        except OSError:  # the process has ended, or the mount lies under another one
            continue
    return found


def _mounted(proc: Path) -> list[Path]:
    # proc_pid_mountinfo(5): field 4 is the root within the file system, here net:[INODE], field 5 where it is.
    lines = (proc / "self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    fields = [line.split() for line in lines]
    return [Path(line[4].encode().decode("unicode_escape")) for line in fields if line[3].startswith("net:[")]


def run_in_each(namespaces: Sequence[Path], work: Callable[[], object]) -> list[str]:
    """Call ``work`` in each namespace; the first is the caller's own, which needs no entering.

    The others are entered by a thread of its own, which takes CAP_SYS_ADMIN; returns the reason for each that was
    refused. What ``work`` raises is raised here.
    """
    work()
    return run_in(namespaces[1:], work)


def run_in(namespaces: Sequence[Path], work: Callable[[], object]) -> list[str]:
    """Do the same in namespaces of which none need be the caller's own."""
    with ThreadPoolExecutor(1, thread_name_prefix="namespaces") as thread:
        return thread.submit(_visit, namespaces, work).result()


def _visit(namespaces: Sequence[Path], work: Callable[[], object]) -> list[str]:
    libc = ctypes.CDLL(None, use_errno=True)
    refused = []
    for path in namespaces:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if path.parent.exists():
                refused.append(f"{path}: {error.strerror}")
            continue  # else its process has ended
        try:
            if libc.setns(descriptor, _CLONE_NEWNET) == 0:
                work()
            else:
                refused.append(f"{path}: setns: {os.strerror(ctypes.get_errno())}")
        finally:
            os.close(descriptor)
    return refused
