# SPDX-License-Identifier: Apache-2.0
"""Which network namespaces are visited when, so that visits cost a bounded share of a CPU; pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Set
from pathlib import Path

#: The share of one CPU that visits may take, and what may be saved up, in s.
SHARE, SAVED = 0.01, 0.05
#: A namespace in which ports are plenty is visited every so many seconds.
QUIET = 5.0


class Rounds:
    """The order of visits; times are monotonic seconds.

    A namespace in which ports are scarce is due at each tick, another one after some seconds; what is due longest
    comes first, as long as the visits before have not used up their share.
    """

    def __init__(self) -> None:
        self._visited: dict[int, float] = {}
        self._saved, self._at = SAVED, float("inf")

    def due(self, namespaces: Collection[int], scarce: Set[int], clients: Set[int], now: float) -> list[int]:
        """Return those to be visited, the most urgent first; ask :meth:`may_go_on` before each.

        Of those that were never visited the ones in which ``clients`` are come first.
        """
        self._saved = min(self._saved + max(now - self._at, 0.0) * SHARE, SAVED)
        self._at = now
        self._visited = {netns: at for netns, at in self._visited.items() if netns in namespaces}
        ages = {netns: now - self._visited.get(netns, float("-inf")) for netns in namespaces}
        due = [netns for netns, age in ages.items() if netns in scarce or age >= QUIET]
        return sorted(
            due, key=lambda netns: (-ages[netns] * (QUIET if netns in scarce else 1.0), netns not in clients)
        )

    def may_go_on(self) -> bool:
        """Say whether there is time left for another visit."""
        return self._saved > 0

    def visited(self, netns: int, now: float, took: float) -> None:
        """Take note of a visit and what it took, in seconds of CPU."""
        self._visited[netns] = now
        self._saved -= took


class Directory:
    """The path of each network namespace, looked up anew when one is missing, and now and then.

    Looking costs a file access for each process of the node, so one that isn't found is not looked for again soon.
    """

    #: Seconds between two looks: for those that were not found, and at most.
    MISSED, KEPT = 5.0, 30.0

    def __init__(self, look: Callable[[], Mapping[int, Path]]) -> None:
        self._look = look
        self._paths: dict[int, Path] = {}
        self._missed: set[int] = set()
        self._at = float("-inf")

    def paths(self, wanted: Set[int], now: float) -> Mapping[int, Path]:
        """Return the paths by inode; ``now`` is monotonic seconds."""
        age, missing = now - self._at, wanted - self._paths.keys()
        if age >= self.KEPT or missing - self._missed or (missing and age >= self.MISSED):
            self._paths, self._at = {netns: path for netns, path in self._look().items() if netns > 0}, now
            self._missed = set(wanted - self._paths.keys())
        return self._paths

    def forget(self, netns: int) -> None:
        """Look for this one anew when it is wanted: it was not where it should be."""
        self._paths = {inode: path for inode, path in self._paths.items() if inode != netns}
