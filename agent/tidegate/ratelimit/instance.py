# SPDX-License-Identifier: Apache-2.0
"""Loads an instance of the limiter's program for an interface, with the maps that all interfaces share."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from tidegate.errors import KernelError
from tidegate.kernel.limiter import SHARED
from tidegate.kernel.objects import BpfObject
from tidegate.kernel.pins import PinDirectory, PinnedMap

#: What an interface has of its own; outlives the agent as what all share does.
OWN = ("ratelimit_counts", "ratelimit_notes")
_BANS = "ratelimit_bans"


def load(pins: PinDirectory, ifindex: int | None, entries: Mapping[str, int]) -> tuple[BpfObject, list[str]]:
    """Load the program for an interface, or for none to have the shared maps; maps of so many ``entries`` by name.

    Returns also the names of the pinned maps that had another shape, so that new and empty ones came in their
    place; bans are taken over into the new one. Until the programs at interfaces are replaced they judge by the
    old ones, so fill the new ones before.
    """
    with contextlib.ExitStack() as undo:
        bpf = undo.enter_context(BpfObject.named("ratelimit"))
        bpf.resize(entries)
        with PinnedMap.open(pins.path / _BANS) or contextlib.nullcontext() as bans:
            anew = bpf.pin_maps(pins.path, SHARED)
            if ifindex is not None:
                anew += bpf.pin_maps(pins.at_interface(ifindex), OWN)
            bpf.load()
            if bans is not None and _BANS in anew:
                _take_over(bans, bpf)
        undo.pop_all()
    return bpf, anew


def _take_over(bans: PinnedMap, bpf: BpfObject) -> None:
    """Copy bans as far as they are of the same kind and find a place."""
    new = bpf.maps[_BANS]
    if (bans.shape.key_size, bans.shape.value_size) != (new.key_size, new.value_size):
        return
    with contextlib.suppress(KernelError):  # the new one is smaller, and full
        for key, value in bans.elements():
            new[key] = value
