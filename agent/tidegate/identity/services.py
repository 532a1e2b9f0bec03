# SPDX-License-Identifier: Apache-2.0
"""The labels of a workload; pure."""

from __future__ import annotations

import re
from typing import NamedTuple

from tidegate.identity.workload import Kind, Workload, unescape, workload_of


class Service(NamedTuple):
    """A service and, inside a pod, the container; both as labels."""

    name: str
    container: str = ""


#: Where everything goes that has no row of its own.
OTHER = Service("other")
#: Whose cgroup nobody can name any more: it came and went while events were lost, or the socket has none.
UNKNOWN = Service("unknown")
#: What the kernel does itself: resets for segments that no socket takes.
KERNEL = Service("kernel")

#: What engines allow as a name; with nothing else in it, it can't be taken for a path or for another label.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}")
_SHORT_ID = 12


def service_of(path: str) -> Service:
    """Name the service of a cgroup path by what the path alone tells."""
    return service(workload_of(path))


def service(workload: Workload, name: str = "") -> Service:
    """Name a workload; ``name`` is what its engine calls a container, if that is known.

    Containers and machines have their names, pods ``pod/UID`` and the short id of the container, units the unit,
    everything else its path. What has no name, or one that reads like another kind of label, is
    ``RUNTIME/SHORT-ID`` or ``RUNTIME/NAME``.
    """
    short = workload.container_id[:_SHORT_ID]
    label = workload.name
    match workload.kind:
        case Kind.POD:
            return Service(f"pod/{workload.pod_uid}", short)
        case Kind.CONTAINER:
            label = name if is_name(name) else f"{workload.runtime}/{short}"
        case Kind.MACHINE if not is_name(label):
            label = f"{workload.runtime}/{label}"
        # One service for all of a kind: each has an id of its own and lives shortly.
        case Kind.BUILD:
            label = f"{workload.runtime}/build"
        case Kind.MONITOR:
            label = f"{workload.runtime}/conmon"
        case Kind.UNIT if label.startswith("app-"):
            label = unescape(label)
    return Service(label)


def is_name(text: str) -> bool:
    """Tell whether a name can stand alone as a service without passing for another kind of label."""
    return (
        _NAME.fullmatch(text) is not None
        and text not in (OTHER.name, UNKNOWN.name, KERNEL.name)
        and not text.endswith((".service", ".scope", ".slice"))
    )
