# SPDX-License-Identifier: Apache-2.0
"""What a cgroup path says of its service; pure."""

from __future__ import annotations

from typing import NamedTuple


class Service(NamedTuple):
    """A service and, inside a pod, the container; both as labels."""

    name: str
    container: str = ""


#: Where everything goes that has no row of its own.
OTHER = Service("other")


def service_of(path: str) -> Service:
    """Name the service of a cgroup2 path: the innermost systemd unit, else the path itself.

    A unit may delegate cgroups below itself, and a user's manager is a unit that holds further units: the
    innermost ``.service`` is the one that was started, a ``.scope`` counts only where there is none.
    """
    parts = [part for part in path.split("/") if part]
    for suffix in (".service", ".scope"):
        for part in reversed(parts):
            if part.endswith(suffix) and part != suffix:
                return Service(part)
    return Service("/" + "/".join(parts))
