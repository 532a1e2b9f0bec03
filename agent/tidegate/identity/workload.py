# SPDX-License-Identifier: Apache-2.0
"""What a cgroup path says of who runs there: pod, container, machine, systemd unit; pure.

The shapes are those that runc and crun give to containers (cgroup drivers ``systemd`` and ``cgroupfs``) and the
kubelet to pods; how systemd names cgroups is in its ``cg_escape()``, CGROUP_DELEGATION.md says whose they are.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass


class Kind(enum.Enum):
    """What a cgroup belongs to."""

    POD = "pod"  #: Kubernetes; ``container_id`` is empty for what belongs to no container of it
    CONTAINER = "container"  #: of an engine, outside of Kubernetes
    BUILD = "build"  #: a step of an image build
    MONITOR = "monitor"  #: the process that watches a container, not the container
    MACHINE = "machine"  #: a virtual machine or a container that is known by its name
    UNIT = "unit"  #: a service or scope of systemd
    PATH = "path"  #: nothing of these


@dataclass(frozen=True, slots=True)
class Workload:
    """Who runs in a cgroup; what the path doesn't tell is empty.

    ``name`` is the unit, the machine or the path, as ``kind`` says. ``pod_uid`` is as the API writes it, with
    dashes, ``container_id`` 64 hex digits. ``runtime`` is docker, podman, containerd, crio, buildkit, qemu, lxc,
    nspawn or vmspawn.
    """

    kind: Kind
    name: str = ""
    pod_uid: str = ""
    container_id: str = ""
    runtime: str = ""


_UUID = "[0-9a-fA-F]{8}(?:[-_][0-9a-fA-F]{4}){3}[-_][0-9a-fA-F]{12}"
#: A static pod has the MD5 of its manifest instead of a UUID.
_UID = f"{_UUID}|[0-9a-f]{{32}}"
_POD_SLICE = re.compile(rf"(?:.*-)?pod({_UID})\.slice|(?:.*-)?kubepods(?:-[a-z]+)?-pod(.+)\.slice")
_POD_DIRECTORY = re.compile(rf"pod({_UID})")
_POD_BELOW_KUBEPODS = re.compile(r"pod([\w.-]+)")

_CONTAINER = re.compile(r"(?:(?P<prefix>.+)[-_])?(?P<id>[0-9a-f]{64})(?:\.scope)?")
_RUNTIMES = {
    "docker": "docker",
    "cri-containerd": "containerd",
    "containerd": "containerd",
    "nerdctl": "containerd",
    "crio": "crio",
    "libpod": "podman",
    "libpod-payload": "podman",
}
#: Below these a bare id is containerd's: the directory is named by its namespace. Elsewhere it is Docker's, the
#: only engine that people give cgroup parents of their own choice.
_CONTAINERD_NAMESPACES = frozenset({"default", "k8s.io"})
#: Podman's cgroupfs driver makes a directory with a bare id for a pod of its own.
_PODMAN_PARENT = "libpod_parent"
_MONITORS = {"crio-conmon": "crio", "libpod-conmon": "podman"}
#: Ids of build steps: 25 digits of base 36 (identity.NewID of BuildKit).
_BUILD_ID = re.compile(r"[0-9a-z]{25}")
_BUILD_SCOPE = re.compile(r"(?:docker|buildkit)-[0-9a-z]{25}\.scope")

#: Matched with PARENT/NAME; the first that fits counts. The machines that libvirt registers carry its driver and a
#: number that changes with each start; without systemd-machined it uses the directory ``machine``.
_MACHINES = tuple(
    (re.compile(pattern), runtime)
    for pattern, runtime in (
        (r".*/machine-(?P<driver>qemu|lxc)\\x2d(?:\d+\\x2d)?(?P<name>.+)\.scope", ""),
        (r".*/machine-(?P<name>.+)\.scope", "nspawn"),
        (r".*/systemd-(?P<driver>nspawn|vmspawn)@(?P<name>.+)\.service", ""),
        (r"machine/(?:(?:qemu|lxc)-\d+-)?(?P<name>.+)\.libvirt-(?P<driver>qemu|lxc)", ""),
        (r".*/lxc\.payload\.(?P<name>.+)", "lxc"),
        (r"lxc(?:\.payload)?/(?P<name>.+)", "lxc"),
    )
)

_ESCAPES = re.compile(r"(?:\\x[0-9a-f]{2})+")


def workload_of(path: str) -> Workload:
    """Tell who runs at a cgroup path.

    The innermost pod counts, else the innermost container or machine: what runs inside of one, systemd with
    units of its own too, is part of it. A pod counts even below a container, since kind and minikube run whole
    nodes in one. Where there is neither it is the systemd unit, else the path itself.
    """
    parts = _components(path)
    found: Workload | None = None
    begins = -1
    for depth in range(len(parts)):
        # The name of a workload's own cgroup says nothing of what is below it: a machine may be called lxc.
        parent = parts[depth - 1] if depth - 1 not in (-1, begins) else ""
        entered = _entered(found, parts, depth, parent)
        if entered:
            found, begins = entered, depth
    if found:
        return found
    unit = _unit(parts)
    if unit:
        return Workload(Kind.UNIT, unit)
    return Workload(Kind.PATH, "/" + "/".join(parts))


def unescape(text: str) -> str:
    r"""Undo systemd's ``\x2d`` where people can read the outcome; control characters, ``/`` and ``\`` stay."""
    return _ESCAPES.sub(_unescaped, text)


def _unescaped(escapes: re.Match[str]) -> str:
    codes = escapes[0].replace("\\x", "")
    try:
        plain = bytes.fromhex(codes).decode("utf-8")
    except UnicodeDecodeError:
        return escapes[0]
    return "".join(
        c if c.isprintable() and c not in "/\\" else "".join(f"\\x{byte:02x}" for byte in c.encode())
        for c in plain
    )


def _components(path: str) -> list[str]:
    """Split a path into names; ``SLICE:PREFIX:ID`` becomes two of them.

    The latter is a directory where the kubelet speaks the driver systemd and the engine takes it for cgroupfs.
    """
    parts = []
    for part in path.split("/"):
        pieces = part.split(":")
        if len(pieces) == 3 and pieces[0].endswith(".slice"):
            parts += [pieces[0], f"{pieces[1]}-{pieces[2]}"]
        elif part:
            parts.append(part)
    return parts


def _entered(outer: Workload | None, parts: list[str], depth: int, parent: str) -> Workload | None:
    """Return what begins at ``parts[depth]``, if that is more to the point than what is around it."""
    uid = _pod_uid(parts, depth)
    if uid:
        return Workload(Kind.POD, pod_uid=uid)
    part = parts[depth]
    if outer and outer.kind is Kind.POD:
        return None if outer.container_id else _container_of_pod(outer.pod_uid, part)
    return _container(outer, parent, part) or _machine(parent, part)


def _pod_uid(parts: list[str], depth: int) -> str:
    part = parts[depth]
    match = _POD_SLICE.fullmatch(part) or _POD_DIRECTORY.fullmatch(part)
    if not match and any(above.endswith("kubepods") for above in parts[max(0, depth - 2) : depth]):
        match = _POD_BELOW_KUBEPODS.fullmatch(part)
    if not match:
        return ""
    # A slice is nested at each dash of its name, so the kubelet writes the uid with underscores there.
    return "".join(group or "" for group in match.groups()).replace("_", "-")


def _container_of_pod(pod_uid: str, part: str) -> Workload | None:
    match = _CONTAINER.fullmatch(part)
    if not match or match["prefix"] in _MONITORS:
        return None
    runtime = _RUNTIMES.get(match["prefix"] or "", "")
    return Workload(Kind.POD, pod_uid=pod_uid, container_id=match["id"], runtime=runtime)


def _container(outer: Workload | None, parent: str, part: str) -> Workload | None:
    match = _CONTAINER.fullmatch(part)
    if match:
        prefix, id_ = match["prefix"], match["id"]
        if prefix in _MONITORS:
            return Workload(Kind.MONITOR, container_id=id_, runtime=_MONITORS[prefix])
        if prefix:
            runtime = _RUNTIMES.get(prefix, "")
        elif parent == _PODMAN_PARENT:
            runtime = ""
        else:
            runtime = "containerd" if parent in _CONTAINERD_NAMESPACES else "docker"
        return Workload(Kind.CONTAINER, container_id=id_, runtime=runtime) if runtime else None
    # A builder that is itself a container is known by its name, its steps are not.
    if outer is None and (_BUILD_SCOPE.fullmatch(part) or (parent == "buildkit" and _BUILD_ID.fullmatch(part))):
        return Workload(Kind.BUILD, runtime="buildkit")
    return None


def _machine(parent: str, part: str) -> Workload | None:
    for pattern, runtime in _MACHINES:
        match = pattern.fullmatch(f"{parent}/{part}")
        if match:
            groups = match.groupdict()
            return Workload(Kind.MACHINE, unescape(groups["name"]), runtime=runtime or groups["driver"])
    return None


def _unit(parts: list[str]) -> str:
    """Return the unit that systemd started, or an empty string.

    It is the outermost, since a unit may make any cgroups below its own; only ``user@UID.service`` is a systemd
    again, whose units count and whose own processes are in ``init.scope``.
    """
    unit = ""
    for part in parts:
        # systemd puts an underscore before names that the kernel could take for its own files.
        name = part.removeprefix("_")
        stem, dot, kind = name.rpartition(".")
        if not stem or dot + kind not in {".service", ".scope"} or (unit and name == "init.scope"):
            continue
        unit = name
        if not unit.startswith("user@"):
            break
    return unit
