# SPDX-License-Identifier: Apache-2.0
"""What is measured of CPU, memory and stalls, by service and of the node: the fields with unit and help."""

from __future__ import annotations

from tidegate.model.fields import Field, Kind, Table


def _field(kind: Kind, name: str, metric: str, unit: str, text: str) -> Field:
    return Field(name=name, metric=metric, kind=kind, unit=unit, help=text)


def _stalls(metric: str, text: str) -> Field:
    return Field(
        name="pressure_seconds",
        metric=metric,
        kind=Kind.COUNTER,
        unit="seconds",
        help=text,
        label=("resource", "kind"),
    )


TABLE = Table(
    name="resources",
    labels=("service", "container"),
    fields=(
        _field(
            Kind.COUNTER,
            "cpu_seconds",
            "service_cpu_seconds_total",
            "seconds",
            "CPU time of the service.",
        ),
        _field(
            Kind.GAUGE,
            "cpu_limit",
            "service_cpu_limit",
            "CPUs",
            "CPUs that the service may use: the least quota of its cgroup and of those above.",
        ),
        _field(
            Kind.COUNTER,
            "throttled_seconds",
            "cpu_throttled_seconds_total",
            "seconds",
            "Time in which the service was stopped as it had used up its CPU quota, on each CPU for itself.",
        ),
        _field(
            Kind.GAUGE,
            "throttled",
            "cpu_throttled_ratio",
            "ratio",
            "Share of the last periods of its quota in which the service was stopped.",
        ),
        _field(
            Kind.GAUGE,
            "memory",
            "service_memory_bytes",
            "bytes",
            "Memory that the kernel charges the service, page cache included.",
        ),
        _field(
            Kind.GAUGE,
            "memory_working_set",
            "service_memory_working_set_bytes",
            "bytes",
            "The same without file pages that are not in use.",
        ),
        _field(
            Kind.GAUGE,
            "memory_limit",
            "service_memory_limit_bytes",
            "bytes",
            "Memory that the service may have: the least limit of its cgroup and of those above.",
        ),
        _field(
            Kind.COUNTER,
            "oom_kills",
            "oom_kills_total",
            "processes",
            "Processes of the service that the kernel has killed for want of memory since the agent's start.",
        ),
        _stalls(
            "service_pressure_seconds_total",
            "Time in which some or all (full) of the service's tasks waited for a resource (PSI).",
        ),
    ),
)

NODE_TABLE = Table(
    name="node.resources",
    labels=(),
    fields=(
        _field(
            Kind.COUNTER,
            "steal_seconds",
            "cpu_steal_seconds_total",
            "seconds",
            "CPU time that the hypervisor gave to others, over all CPUs; absent on bare metal.",
        ),
        _stalls(
            "pressure_seconds_total",
            "Time in which some or all (full) of the node's tasks waited for a resource (PSI).",
        ),
    ),
)
