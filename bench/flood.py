# SPDX-License-Identifier: Apache-2.0
"""A flood of SYNs on a veth pair, one core for its generator and for who drops it, and who is served meanwhile."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

from pyroute2 import netns

from bench.contenders import HOOKS, Limit, Limiter, iptables, nftables, nobody, program, run
from bench.report import Figure
from lab.flood import Flood, into
from lab.flooded import GOOD, FloodedGateway
from lab.gateway import Nginx
from lab.lab import Host, Lab
from lab.network import enter
from tidegate.config.limits import RateLimit

PORT, ROUNDS = 80, 7
SOURCES = (1, 100_000)
#: What a source may send is less than the flood has for each, so that nearly all is to be dropped.
LIMIT = Limit(rate=1, unit="minute", burst=1)
#: Of one who comes four times a second.
GOODPUT = Limit(rate=5, unit="second", burst=11)
FLOOD, REQUESTS, DRAINED = 200_000, 24, 4.0
SERVERS = f"""\
limit_req_zone $binary_remote_addr zone=one:1m rate=1r/m;
limit_req_log_level info;
server {{
    listen {PORT};
    keepalive_requests 100000000;
    location / {{ limit_req zone=one; try_files /none =204; }}
}}
"""
TIDEGATE, NOBODY, DROP, ITSELF = "Tidegate", "no rule", "XDP_DROP", "the generator alone"
IPTABLES = "iptables hashlimit"
Contenders = dict[str, Callable[[], AbstractContextManager[None]]]
Rates = dict[str, list[float]]


class Sender:
    """A flood's program, in a thread on the last CPU that has entered the switch's namespace."""

    def __init__(self, host: Host, sources: int) -> None:
        self._host = host
        self._thread = ThreadPoolExecutor(1, initializer=_enter, initargs=(host.lab.switch.name,))
        plan = into(host, PORT, sources=sources, cpu=_last_cpu())
        self.flood = self._thread.submit(Flood, plan).result()

    def rate(self, count: int, name: str = "flood") -> float:
        """Send so many; return those a second that arrived."""
        return self._thread.submit(self._rate, count, name).result()

    def _rate(self, count: int, name: str) -> float:
        lost, began = _dropped(self._host), time.perf_counter()
        self.flood.program(name).live_run(self.flood.frame, repeat=count)
        seconds = time.perf_counter() - began
        return (count - (_dropped(self._host) - lost)) / seconds

    def __enter__(self) -> Sender:
        return self

    def __exit__(self, *_: object) -> None:
        self.flood.close()
        self._thread.shutdown()


def _enter(namespace: str) -> None:
    netns.setns(namespace)
    os.sched_setaffinity(0, {_last_cpu()})
    os.setpriority(os.PRIO_PROCESS, 0, -20)


def _last_cpu() -> int:
    return max(os.sched_getaffinity(0))


def _dropped(host: Host) -> int:
    """Return how many packets found no room in the ring of the host's interface."""
    command = enter(host.lab.switch.name, ["ip", "-statistics", "link", "show", f"port{host.number}"])
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(text.split("TX:")[1].splitlines()[1].split()[3])


def figures() -> list[Figure]:
    """Measure all."""
    found, dropped = [], {}
    with Lab() as lab:
        host = lab.host("gateway", 16)
        run(host, ["ethtool", "-K", "eth0", "gro", "on"])  # which lets XDP frames in where no program is
        for sources in SOURCES:
            rates = measured(host, sources)
            found += [*compared(rates, sources)]
            dropped[sources] = statistics.median(rates[TIDEGATE])
        found.append(against_nginx(lab, host, dropped))
    found.append(goodput())
    return found


def measured(host: Host, sources: int) -> Rates:
    """Return what arrived and was dropped a second in each round, by turns."""
    rates: Rates = {}
    with Sender(host, sources) as sender, Limiter(RateLimit(default=LIMIT.limits), PORT) as limiter:
        contenders: Contenders = {
            TIDEGATE: lambda: program(host, limiter.program),
            **{name: lambda name=name: nftables(host, name, LIMIT) for name in HOOKS},  # type: ignore[misc]
            IPTABLES: lambda: iptables(host, LIMIT),
            DROP: lambda: program(host, sender.flood.program("dropped")),
            NOBODY: lambda: nobody(host),
        }
        for _ in range(ROUNDS):
            for name, contender in contenders.items():
                with contender():
                    sender.rate(max(3 * sources, 1000))  # each source is known, and has had its burst
                    rates.setdefault(name, []).append(sender.rate(500_000))
            rates.setdefault(ITSELF, []).append(sender.rate(500_000, "nowhere"))
        if sender.flood.program().info().runs:
            print("bench: BPF statistics are on, which costs each packet some 60 ns a program", flush=True)
    return rates


def compared(rates: Rates, sources: int) -> Iterator[Figure]:
    """Compare Tidegate with nftables at its better hook and with iptables."""
    nft = max(HOOKS, key=lambda name: statistics.median(rates[name]))
    number = f"{sources:,} source{'s' if sources > 1 else ''}"
    each = ", ".join(f"{name} {statistics.median(values) / 1e6:.2f}" for name, values in rates.items())
    method = (
        f"{ROUNDS} rounds by turns of 500,000 SYNs on one veth pair, generator and receiver on one core; medians "
        f"in millions a second: {each}; limit of each source {LIMIT.rate}/{LIMIT.unit}"
    )
    for other, target in ((nft, "2.5" if sources == 1 else "3"), (IPTABLES, "2.5")):
        ratios = sorted(a / b for a, b in zip(rates[TIDEGATE], rates[other], strict=True))
        yield Figure(
            f"Flood of {number} dropped, against {other}",
            f"{statistics.median(ratios):.1f}x ({ratios[0]:.1f} to {ratios[-1]:.1f})",
            f"{target}x",
            method,
        )
    without = [[_without(rates, other, own) for own in (ITSELF, DROP)] for other in (nft, IPTABLES)]
    yield Figure(
        f"The same without the generator's own cost, {number}",
        f"{without[0][0]:.1f}x {nft}, {without[1][0]:.1f}x {IPTABLES}",
        "5x",
        f"time a packet less that of the generator which sends nowhere; less that of a bare XDP_DROP at the other "
        f"end, which is all but what limiting takes: {without[0][1]:.1f}x and {without[1][1]:.1f}x",
    )


def _without(rates: Rates, other: str, own: str) -> float:
    ratios = []
    for ours, theirs, base in zip(rates[TIDEGATE], rates[other], rates[own], strict=True):
        ratios.append((1 / theirs - 1 / base) / max(1 / ours - 1 / base, 1e-9))
    return statistics.median(ratios)


def against_nginx(lab: Lab, host: Host, dropped: dict[int, float]) -> Figure:
    """Compare with requests that nginx refuses in a second of its CPU time."""
    nginx, client = Nginx(host, "gateway", SERVERS), lab.host("client", 17)
    refused = {
        how: _refused(nginx, client, host.v4, headers)
        for how, headers in (("a connection each", ["-H", "Connection: close"]), ("connections kept", []))
    }
    each = ", ".join(f"{how} {rate:,.0f}" for how, rate in refused.items())
    ratios = {sources: rate / refused["a connection each"] for sources, rate in dropped.items()}
    return Figure(
        "The same flood against what nginx refuses by `limit_req`",
        ", ".join(f"{ratio:.0f}x" for ratio in ratios.values()),
        "50x",
        f"SYNs of {' / '.join(f'{n:,}' for n in ratios)} sources that are dropped in a second of one core, the "
        f"generator's cost included, against refused requests a second of nginx's own CPU time alone, without "
        f"what the kernel does for it in softirqs: {each} (wrk, 16 at a time)",
    )


def _refused(nginx: Nginx, client: Host, address: str, headers: list[str]) -> float:
    before = nginx.cpu()
    command = ["wrk", "-t1", "-c16", "-d3s", *headers, f"http://{address}:{PORT}/"]
    said = run(client, command)
    (refused,) = re.findall(r"Non-2xx or 3xx responses: (\d+)", said)
    return int(refused) / (nginx.cpu() - before)


def goodput() -> Figure:
    """Count what clients that belong get through, under each contender."""
    config = RateLimit(default=GOODPUT.limits, max_sources=4096, sketch_cells=1024)
    shares: dict[str, str] = {}
    tidegate = 0.0
    with Lab() as lab, Limiter(config, PORT) as limiter:
        gateway = FloodedGateway(lab)
        run(gateway.host, ["ethtool", "-K", "eth0", "gro", "on"])
        contenders: Contenders = {
            TIDEGATE: lambda: program(gateway.host, limiter.program),
            **{name: lambda name=name: nftables(gateway.host, name, GOODPUT) for name in HOOKS},  # type: ignore[misc]
            IPTABLES: lambda: iptables(gateway.host, GOODPUT),
            NOBODY: lambda: nobody(gateway.host),
        }
        for name, contender in contenders.items():
            with contender():
                served(gateway, 2)
                with gateway.flooded(FLOOD):
                    share = served(gateway, REQUESTS) / (REQUESTS * GOOD)
            shares[name] = f"{share:.0%}"
            tidegate = share if name == TIDEGATE else tidegate
            time.sleep(DRAINED)  # half-open connections live three seconds
    return Figure(
        "Goodput of clients that belong, in a flood of 1,000,000 spoofed sources",
        f"{tidegate:.1%}",
        "99 %",
        f"{GOOD} clients of {REQUESTS} requests, four a second, each by a new connection and with two seconds' "
        f"patience, to a real nginx under {FLOOD:,} SYNs a second, SYN cookies off; limit of each source "
        f"{GOODPUT.rate}/{GOODPUT.unit}, burst {GOODPUT.burst}: "
        + ", ".join(f"{n} {s}" for n, s in shares.items()),
    )


def served(gateway: FloodedGateway, count: int) -> int:
    """Return how many requests of the clients have been answered; of the friend, who is one of them here, none."""
    visitors = gateway.visit(count, patience=2.0)[:GOOD]
    return sum(visitor.results()["/"].get("204", 0) for visitor in visitors)
