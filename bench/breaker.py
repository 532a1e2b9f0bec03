# SPDX-License-Identifier: Apache-2.0
"""What the breaker's engine takes: events in one thread, and a sweep of many pools that are all in use."""

from __future__ import annotations

import gc
import statistics
import time
from pathlib import Path
from random import Random

from bench.report import Figure
from tidegate.breaker.engine import Engine
from tidegate.model.breaker import Event, Kind
from tidegate.model.outliers import OutlierDetection, Policy

POOLS, ENDPOINTS, EVENTS, ROUNDS, SEED = 1000, 20, 200_000, 7, 1
#: Requests of each endpoint in an interval, one in fifty of them a failure: enough for every statistic.
REQUESTS, FAILURES = 150, 0.02


def figures(_: Path) -> list[Figure]:
    """Measure both."""
    return [events(), sweep()]


def engine() -> Engine:
    """Return an engine of 1,000 pools of 20 endpoints."""
    made = Engine(seed=SEED)
    for pool in range(POOLS):
        addresses = [address(pool, number) for number in range(ENDPOINTS)]
        policy = Policy(mode="enforce", outlier_detection=OutlierDetection(max_ejection_percent=50))
        made.set_pool(f"pool-{pool}", policy, addresses, 0.0)
    return made


def address(pool: int, number: int) -> str:
    """Return an address of its own for each endpoint."""
    return f"10.{pool >> 8}.{pool & 255}.{number + 1}:8080"


def mixed(count: int) -> list[Event]:
    """Return events at random as a busy gateway has them; one endpoint of each pool refuses all."""
    random = Random(SEED)
    kinds = [(Kind.HTTP, 200)] * 80 + [(Kind.CONNECT_OK, None)] * 10 + [(Kind.HTTP, 503)] * 5
    kinds += [(Kind.CONNECT_REFUSED, None)] * 3 + [(Kind.CONNECT_TIMEOUT, None)] * 2
    made = []
    for attempt in range(count):
        pool, host = random.randrange(POOLS), random.randrange(ENDPOINTS)
        kind, code = random.choice(kinds) if host else (Kind.CONNECT_REFUSED, None)
        made.append(Event(f"pool-{pool}", address(pool, host), kind, code=code, attempt=attempt))
    return made


def events() -> Figure:
    """Count the events that one thread takes in a second."""
    took = []
    given = mixed(EVENTS)
    decisions = 0
    for _ in range(ROUNDS):
        breaker = engine()
        gc.collect()
        began = time.perf_counter()
        for number, event in enumerate(given):
            decisions += len(breaker.observe(event, number * 1e-5))
        took.append(time.perf_counter() - began)
    rate = EVENTS / statistics.median(took)
    return Figure(
        "breaker: events in one thread",
        f"{rate:,.0f} a second",
        "200,000",
        f"{EVENTS:,} events of {POOLS:,} pools of {ENDPOINTS}, some 15 % of them failures, that led to "
        f"{decisions // ROUNDS:,} decisions; median of {ROUNDS} rounds",
    )


def sweep() -> Figure:
    """Time a sweep of all pools, each endpoint of which has had requests and connections."""
    took = []
    breaker = engine()
    random = Random(SEED)
    for number in range(1, ROUNDS + 1):
        begun = number * 10.0 - 5
        for pool in range(POOLS):
            for host in range(ENDPOINTS):
                name, place = f"pool-{pool}", address(pool, host)
                failed = sum(random.random() < FAILURES for _ in range(REQUESTS))
                breaker.observe(Event(name, place, Kind.HTTP, code=200, count=REQUESTS - failed), begun)
                for _ in range(failed):
                    breaker.observe(Event(name, place, Kind.HTTP, code=500), begun)
                breaker.observe(Event(name, place, Kind.CONNECT_OK, count=REQUESTS), begun)
        gc.collect()
        began = time.perf_counter()
        breaker.sweep(number * 10.0)
        took.append(time.perf_counter() - began)
    return Figure(
        f"breaker: a sweep of {POOLS:,} pools of {ENDPOINTS}",
        f"{statistics.median(took) * 1e3:.1f} ms",
        "50 ms",
        f"each endpoint with {REQUESTS} requests and as many connections in the interval; median of {ROUNDS}",
    )
