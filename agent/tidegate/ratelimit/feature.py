# SPDX-License-Identifier: Apache-2.0
"""Whether this host can limit rates, and how the limiter is at each interface, as the doctor says it; pure."""

from __future__ import annotations

from tidegate.kernel.probe import Host
from tidegate.model.feature import Feature, State
from tidegate.model.limiter import Limiter

NAME = "rate limit (XDP)"


def of_host(host: Host, refusal: str | None = None) -> Feature:
    """The limiter takes CAP_NET_ADMIN beside what loading takes, and a kernel that takes its program.

    ``refusal`` is what the kernel said when it didn't.
    """
    needed = ("CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN")
    missing = [name for name in needed if name not in host.capabilities]
    if "CAP_SYS_ADMIN" in host.capabilities:
        missing = [name for name in missing if name == "CAP_NET_ADMIN"]
    if missing:
        return Feature(
            name=NAME,
            state=State.UNAVAILABLE,
            reason=f"XDP programs can't be attached without {' and '.join(missing)}",
            remedy=f"run as root, or grant the capabilities: AmbientCapabilities={' '.join(needed)}",
        )
    if refusal is not None:
        return Feature(
            name=NAME,
            state=State.UNAVAILABLE,
            reason=f"this kernel ({host.kernel}) doesn't take the limiter's program: {refusal}",
            remedy="Linux 5.18 or later: 5.12 has atomic exchange, 5.18 XDP of frames larger than a page",
        )
    if not host.bpffs:
        return Feature(
            name=NAME,
            state=State.OK,
            reason="no bpffs is mounted, so the agent mounts one: what it pins there lasts as long as the mount "
            "namespace in which the agent runs",
        )
    return Feature(name=NAME, state=State.OK)


def of_limiter(limiter: Limiter) -> list[Feature]:
    """Judge a running limiter: each interface, its feed, and what it complains of."""
    found = [of_interface(row.interface, row.attached, row.reason) for row in limiter.interfaces]
    if not found:
        remedy = "correct rate_limit.interfaces; 'ip link' lists what there is"
        reason = "no interface has a name that the config asks for"
        found.append(Feature(name=NAME, state=State.DEGRADED, reason=reason, remedy=remedy))
    feed = [limiter.feed.complaint] if limiter.feed and limiter.feed.complaint else []
    for complaint in (*feed, *limiter.complaints):
        reason, _, remedy = complaint.rpartition("; ")
        found.append(Feature(name=NAME, state=State.DEGRADED, reason=reason or remedy, remedy=remedy))
    return found


def of_interface(interface: str, mode: str | None, reason: str) -> Feature:
    """Judge how the limiter is at an interface that the config names: natively, in generic mode or not at all.

    A native one has a reason only where it is an earlier agent's.
    """
    name = f"{NAME} {interface}"
    if mode == "native" and not reason:
        return Feature(name=name, state=State.OK)
    if mode == "native":
        return Feature(
            name=name,
            state=State.DEGRADED,
            reason=f"an earlier program judges on, as it could not be replaced: {reason}",
            remedy="what the reason says; the agent tries again by itself",
        )
    if mode is None:
        return Feature(
            name=name,
            state=State.UNAVAILABLE,
            reason=f"not attached: {reason}",
            remedy="what the reason says; the agent tries again by itself",
        )
    return Feature(
        name=name,
        state=State.DEGRADED,
        reason=f"attached in {mode} mode, after the kernel has made a socket buffer of each packet: {reason}",
        remedy="mend what kept it from native mode, then start the agent once without the interface and once with "
        "it: a mode can't change while the limiter is attached",
    )
