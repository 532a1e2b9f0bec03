# SPDX-License-Identifier: Apache-2.0
"""Loads an instance of the limiter's program for an interface, with the maps that all interfaces share."""

from __future__ import annotations

from collections.abc import Mapping

from tidegate.kernel.objects import BpfObject
from tidegate.kernel.pins import PinDirectory

#: What all interfaces share, and what one has of its own; both outlive the agent.
SHARED = (
    "ratelimit_state",
    "ratelimit_policies",
    "ratelimit_ports_a",
    "ratelimit_ports_b",
    "ratelimit_ports",
    "ratelimit_syns",
    "ratelimit_sources",
    "ratelimit_sketch",
    "ratelimit_guards",
    "ratelimit_allowed",
    "ratelimit_denied",
    "ratelimit_bans",
)
OWN = ("ratelimit_counts", "ratelimit_notes")


def load(pins: PinDirectory, ifindex: int | None, entries: Mapping[str, int]) -> tuple[BpfObject, list[str]]:
    """Load the program for an interface, or for none to have the shared maps; maps of so many ``entries`` by name.

    Returns also the names of the pinned maps that had another shape, so that new and empty ones came in their
    place. Until the programs at interfaces are replaced they judge by the old ones, so fill the new ones before.
    """
    bpf = BpfObject.named("ratelimit")
    try:
        for name, number in entries.items():
            bpf.set_max_entries(name, number)
        anew = bpf.pin_maps(pins.path, SHARED)
        if ifindex is not None:
            anew += bpf.pin_maps(pins.at_interface(ifindex), OWN)
        bpf.load()
    except BaseException:
        bpf.close()
        raise
    return bpf, anew
