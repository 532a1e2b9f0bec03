# SPDX-License-Identifier: Apache-2.0
"""What works on a host and in a running agent, and what would mend the rest, decided from facts; pure."""

from __future__ import annotations

from collections.abc import Iterator

from tidegate.errors import UnavailableError
from tidegate.kernel.probe import Host
from tidegate.losses import LOSSES
from tidegate.model.feature import Feature, State
from tidegate.model.snapshot import Health

_PRIVILEGE = ("CAP_BPF", "CAP_PERFMON")


def features(host: Host) -> list[Feature]:
    """Judge every feature of this version."""
    return [
        privilege(host),
        btf(host),
        identity(host),
        namespaces(host),
        controllers(host),
        pressure(host),
        disk_services(host),
    ]


def privilege(host: Host) -> Feature:
    """Loading tracing programs takes CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN."""
    missing = [name for name in _PRIVILEGE if name not in host.capabilities]
    if not missing or "CAP_SYS_ADMIN" in host.capabilities:
        return Feature(name="privilege", state=State.OK)
    return Feature(
        name="privilege",
        state=State.UNAVAILABLE,
        reason=f"needs {' and '.join(_PRIVILEGE)}, missing {' and '.join(missing)} (uid {host.euid})",
        remedy="run as root, or grant the capabilities: AmbientCapabilities=CAP_BPF CAP_PERFMON",
    )


def btf(host: Host) -> Feature:
    """CO-RE programs need the kernel's own type information."""
    if host.btf:
        return Feature(name="btf", state=State.OK)
    return Feature(
        name="btf",
        state=State.UNAVAILABLE,
        reason=f"kernel {host.kernel} has no /sys/kernel/btf/vmlinux, so no program can be fitted to it",
        remedy="boot a kernel with CONFIG_DEBUG_INFO_BTF=y (Debian 11 and later have it), mount sysfs on /sys",
    )


def identity(host: Host) -> Feature:
    """Services are named by the cgroup2 path of their sockets."""
    if host.cgroup2 is not None:
        return Feature(name="cgroup2", state=State.OK)
    return Feature(
        name="cgroup2",
        state=State.UNAVAILABLE,
        reason="cgroup2 is not mounted, so no connection can be attributed to a service",
        remedy="mount -t cgroup2 none /sys/fs/cgroup/unified (or boot with systemd.unified_cgroup_hierarchy=1)",
    )


def namespaces(host: Host) -> Feature:
    """To look for open connections in the network namespaces of others takes setns(2)."""
    missing = {"CAP_SYS_ADMIN", "CAP_SYS_PTRACE"} - host.capabilities
    if not missing:
        return Feature(name="namespaces", state=State.OK)
    return Feature(
        name="namespaces",
        state=State.DEGRADED,
        reason=f"other network namespaces can't be entered without {' and '.join(sorted(missing))}, so "
        "connections that were open there before the agent's start are seen from their next event on, ports in "
        "TIME_WAIT are told by who closed what in the last minute, and listeners and bound ports are not seen",
        remedy="grant what is missing; without it, connections that begin later are complete all the same",
    )


def controllers(host: Host) -> Feature:
    """CPU limits, throttling and memory of a service are what the controllers of cgroups count."""
    v1 = [name for name in ("cpu", "memory") if name in host.controllers]
    missing = [name for name in ("cpu", "memory") if name not in v1 and name not in host.cgroup2_controllers]
    if missing:
        return Feature(
            name="controllers",
            state=State.DEGRADED,
            reason=f"neither cgroup2 nor a v1 hierarchy has the controller {' or '.join(missing)}, so limits and "
            "what services use of it are not measured",
            remedy="take cgroup_disable= and cgroup_no_v1= off the kernel's command line (some Arm boards need "
            "cgroup_enable=memory there); on a hybrid host mount the v1 hierarchy",
        )
    joined = f"{' and '.join(v1)} of cgroup v1, joined to the services of cgroup2 by path" if v1 else ""
    return Feature(name="controllers", state=State.OK, reason=joined)


def pressure(host: Host) -> Feature:
    """Stalls for want of CPU, memory and I/O are kept by the kernel (PSI) where it is built and started so."""
    if host.pressure:
        return Feature(name="pressure", state=State.OK)
    return Feature(
        name="pressure",
        state=State.DEGRADED,
        reason="the kernel keeps no stalls (PSI): /proc/pressure/cpu can't be read",
        remedy="boot with psi=1; where that changes nothing, a kernel with CONFIG_PSI=y",
    )


def disk_services(host: Host) -> Feature:
    """A request is charged to the nearest cgroup that the io controller is enabled for."""
    if host.io_controlled:
        return Feature(name="disk:services", state=State.OK)
    return Feature(
        name="disk:services",
        state=State.DEGRADED,
        reason="cgroup2 has no io controller for services (cgroup.subtree_control of its root), so requests of "
        "all of them are charged to '/'",
        remedy="with systemd, DefaultIOAccounting=yes in /etc/systemd/system.conf, or IOAccounting=yes in a unit",
    )


def require(found: list[Feature]) -> None:
    """Raise :class:`UnavailableError` with every reason and remedy where a feature is unavailable."""
    missing = [f for f in found if f.state is State.UNAVAILABLE]
    if missing:
        raise UnavailableError("; ".join(f"{f.name}: {f.reason}; to mend it: {f.remedy}" for f in missing))


def unseen_failures() -> Feature:
    """Connects that end before a SYN change no socket state, so no state-change tracepoint sees them."""
    return Feature(
        name="connects:no-syn",
        state=State.DEGRADED,
        reason="connects refused before a SYN is sent (no route, a cgroup program's denial) change no socket "
        "state and are not counted",
        remedy="none in this version; 'ip route get ADDRESS' shows a missing route",
    )


#: A map that is fuller than this share of its limit is about to lose.
FULL = 0.9
#: More late and skipped ticks than one in so many, and more than a few, are too many.
TICKS_FOR_ONE_LATE, LATE_TICKS_ALLOWED = 100, 2

#: Which key of the config sizes a map.
_SIZED_BY = {
    "tcp_rows": "signals.tcp.max_rows",
    "tcp_sockets": "signals.tcp.max_sockets",
    "disk_rows": "signals.disk.max_rows",
    "disk_requests": "signals.disk.max_requests",
    "disk_bios": "signals.disk.max_requests",
    "ratelimit_bans": "rate_limit.max_bans",
    "ratelimit_allowed": "rate_limit.max_prefixes",
    "ratelimit_denied": "rate_limit.max_prefixes",
}
#: Maps that are full as a rule: who was seen last has the place of who was not for longest.
_EVICT = ("ratelimit_syns", "ratelimit_sources")

_UNKNOWN_LOSS = ("something could not be counted where it belongs", "watch its metric for when it grows")


def agent(health: Health, interval: float) -> list[Feature]:
    """Judge a running agent by its health: what it takes, then each thing that is amiss.

    ``interval`` is in seconds; counts are of the time since the agent started.
    """
    amiss = [*_lost(health), *_full_maps(health), *_ticks(health, interval), *_misses(health), *_untimed(health)]
    return [
        Feature(
            name="agent",
            state=State.DEGRADED if amiss else State.OK,
            reason=taken(health),
            remedy="what stands below" if amiss else "",
        ),
        *amiss,
    ]


def taken(health: Health) -> str:
    """Say what the agent takes of the machine; what was not measured is left out."""
    maps = sum(m.bytes for m in health.maps.values() if m.bytes is not None)
    runs = sum(p.runs for p in health.programs.values() if p.runs is not None)
    seconds = sum(p.seconds for p in health.programs.values() if p.seconds is not None)
    parts = [
        f"version {health.version}, pid {health.pid}",
        "" if health.cpu is None else f"{health.cpu:.1%} of a CPU",
        "" if health.rss_bytes is None else f"{health.rss_bytes / 2**20:.1f} MiB resident",
        f"{maps / 2**20:.1f} MiB of maps",
        f"programs {seconds / runs * 1e9:.0f} ns a run, {runs} runs" if runs else "",
    ]
    return ", ".join(part for part in parts if part)


def _lost(health: Health) -> Iterator[Feature]:
    metrics = {"events_lost_total": health.events_lost, "losses_total": health.losses}
    for metric, counts in metrics.items():
        for kind, count in counts.items():
            if count:
                what, remedy = LOSSES.get(kind, _UNKNOWN_LOSS)
                yield _amiss(kind, f"{count} since the start (tidegate_{metric}): {what}", remedy)


def _full_maps(health: Health) -> Iterator[Feature]:
    for name, m in health.maps.items():
        if name not in _EVICT and m.entries is not None and m.limit is not None and m.entries > FULL * m.limit:
            key = _SIZED_BY.get(name)
            yield _amiss(
                f"map:{name}",
                f"{m.entries} of {m.limit} entries are taken; what finds no place is lost",
                f"raise {key} above {m.limit}" if key else "nothing to set: its size is fixed",
            )
    if health.rows > FULL * health.rows_limit:
        yield _amiss(
            "rows",
            f"{health.rows} of {health.rows_limit} rows are taken; further ones are summed in 'other'",
            f"raise services.max_rows above {health.rows_limit}, or lower services.idle",
        )


def _ticks(health: Health, interval: float) -> Iterator[Feature]:
    bad = health.ticks_late + health.ticks_skipped
    if bad > max(health.ticks // TICKS_FOR_ONE_LATE, LATE_TICKS_ALLOWED):
        yield _amiss(
            "ticks",
            f"of {health.ticks} ticks {health.ticks_late} began late and {health.ticks_skipped} more were "
            f"skipped; the last took {health.tick_seconds * 1e3:.0f} ms",
            "give the agent more CPU (CPUWeight=, a CPU request), raise signals.interval above "
            f"{interval:.1f}s, or lower services.max_rows",
        )


def _misses(health: Health) -> Iterator[Feature]:
    """Judge calls that the kernel left out; of a program and its twin ``…_again`` what both may have missed."""
    for name, program in health.programs.items():
        if name.endswith("_again") and name.removesuffix("_again") in health.programs:
            continue
        twin = health.programs.get(f"{name}_again")
        missed = min(program.misses or 0, (twin or program).misses or 0)
        if missed:
            yield _amiss(
                f"program:{name}",
                f"the kernel left out up to {missed} events, as the program was running on that CPU already; "
                "counts may be short by as many",
                "nothing to set; compare with the kernel's own counts: nstat -az",
            )


def _untimed(health: Health) -> Iterator[Feature]:
    if health.statistics_refused is not None:
        yield _amiss(
            "program_statistics",
            f"signals.program_statistics is on, but: {health.statistics_refused}",
            "grant CAP_SYS_ADMIN, or set sysctl kernel.bpf_stats_enabled=1, or take the key out",
        )


def _amiss(name: str, reason: str, remedy: str) -> Feature:
    return Feature(name=f"agent:{name}", state=State.DEGRADED, reason=reason, remedy=remedy)
