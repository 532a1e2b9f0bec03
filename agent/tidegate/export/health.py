# SPDX-License-Identifier: Apache-2.0
"""The agent's own health as metric families."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from tidegate.export.text import PREFIX
from tidegate.model.snapshot import Health

Value = float | None


def families(health: Health, kernel: str) -> Iterator[Metric]:
    """Yield the metrics; what was not measured has no sample."""
    info = GaugeMetricFamily(
        PREFIX + "build_info",
        "Version, kernel and loader of the agent.",
        labels=["version", "kernel", "loader"],
    )
    info.add_metric([health.version, kernel, health.loader], 1)
    yield info
    yield from _maps(health)
    yield from _programs(health)
    yield from _losses(health)
    yield from _ticks(health)
    yield _gauge("rows", "Rows that the agent keeps, of at most rows_limit.", health.rows)
    yield _gauge("rows_limit", "Rows that the agent keeps at most.", health.rows_limit)


def _maps(health: Health) -> Iterator[Metric]:
    maps = health.maps.items()
    yield _gauges(
        "bpf_map_entries", "Entries of a BPF map at the last read.", "map", ((n, m.entries) for n, m in maps)
    )
    yield _gauges("bpf_map_limit", "Entries that a BPF map can hold.", "map", ((n, m.limit) for n, m in maps))
    yield _gauges(
        "bpf_map_bytes", "Memory that the kernel charges for a BPF map.", "map", ((n, m.bytes) for n, m in maps)
    )


def _programs(health: Health) -> Iterator[Metric]:
    programs = health.programs.items()
    yield _counters(
        "bpf_program_runs_total",
        "Runs of a BPF program, where the kernel counts them (signals.program_statistics).",
        "program",
        ((name, program.runs) for name, program in programs),
    )
    yield _counters(
        "bpf_program_seconds_total",
        "Time that a BPF program ran, where the kernel counts it (signals.program_statistics).",
        "program",
        ((name, program.seconds) for name, program in programs),
    )
    yield _counters(
        "bpf_program_misses_total",
        "Calls of a BPF program that the kernel left out, as it was running on that CPU already.",
        "program",
        ((name, program.misses) for name, program in programs),
    )


def _losses(health: Health) -> Iterator[Metric]:
    yield _counters(
        "events_lost_total", "Events that found no place in a ring buffer.", "ring", health.events_lost.items()
    )
    yield _counters(
        "losses_total", "What could not be tracked or told apart, by kind.", "kind", health.losses.items()
    )
    yield _counters(
        "skipped_total",
        "What went away while it was read, or can't be read, by kind.",
        "kind",
        health.skipped.items(),
    )


def _ticks(health: Health) -> Iterator[Metric]:
    yield _counter("ticks_total", "Measurements that began.", health.ticks)
    yield _counter(
        "ticks_late_total", "Measurements that began late by more than a tenth of the interval.", health.ticks_late
    )
    yield _counter(
        "ticks_skipped_total",
        "Measurements that were left out because an earlier one took too long.",
        health.ticks_skipped,
    )
    yield _gauge("tick_late_seconds", "How late the last measurement began.", health.late_seconds)
    yield _gauge("tick_seconds", "How long the last measurement took.", health.tick_seconds)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(PREFIX + name, text, value=value)


def _gauges(name: str, text: str, label: str, values: Iterable[tuple[str, Value]]) -> Metric:
    return _filled(GaugeMetricFamily(PREFIX + name, text, labels=[label]), values)


def _counters(name: str, text: str, label: str, values: Iterable[tuple[str, Value]]) -> Metric:
    return _filled(CounterMetricFamily(PREFIX + name, text, labels=[label]), values)


def _filled(family: GaugeMetricFamily | CounterMetricFamily, values: Iterable[tuple[str, Value]]) -> Metric:
    for key, value in values:
        if value is not None:
            family.add_metric([key], value)
    return family
