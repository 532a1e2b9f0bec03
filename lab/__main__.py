# SPDX-License-Identifier: Apache-2.0
"""The lab with live traffic, until Ctrl-C: watch it with ``tidegate top`` in another terminal."""

from __future__ import annotations

import contextlib
import signal

from lab.lab import Lab
from lab.results import Plan, Step
from lab.upstream import Behaviour

ICMP = {"net.ipv4.icmp_ratelimit": "0", "net.ipv6.icmp.ratelimit": "0"}
AUTH, INVENTORY, ACTIONS, BROKEN = 4000, 5000, 5001, 5002


def plan(seed: int) -> Plan:
    """One round of the gateway's traffic, some seconds long: most of it works, some of it doesn't."""
    steps = (
        Step("10.0.0.5", AUTH, 120),
        Step("fd00::5", AUTH, 40),
        Step("10.0.0.6", INVENTORY, 300),
        Step("10.0.0.6", ACTIONS, 8, speak=True),
        Step("10.0.0.6", BROKEN, 15),
        Step("10.0.0.7", INVENTORY, 12),
        Step("10.9.0.5", AUTH, 40),
        Step("10.0.0.5", 4001, 5, give_up=0.5),
    )
    return Plan(steps, parallel=20, seed=seed)


def main() -> None:
    """Build the story's gateway and call its upstreams round after round."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), Lab() as lab:
        auth, inventory, spare = (
            lab.host(name, number, ICMP) for name, number in (("auth", 5), ("inventory", 6), ("spare", 7))
        )
        auth.service("auth_service").upstream({AUTH: Behaviour.ACCEPT, 4001: Behaviour.HANG})
        inventory.service("inventory_service").upstream(
            {INVENTORY: Behaviour.ACCEPT, ACTIONS: Behaviour.RESET, BROKEN: Behaviour.REFUSE}
        )
        spare.service("inventory_spare").upstream({INVENTORY: Behaviour.UNREACHABLE})
        host = lab.host("gateway", 16)
        lab.slow_path(auth, host, 0.005, 0.03)
        gateway = host.service("gateway")
        print(f"cgroups below {lab.cgroup}, namespaces {lab.name}-*; end with Ctrl-C", flush=True)
        seed = 0
        while True:
            seed += 1
            for endpoint, result in sorted(gateway.generate(plan(seed)).endpoints.items()):
                print(f"{endpoint:16} {result.connects:5} connects  {result.outcomes}", flush=True)
            print(flush=True)


if __name__ == "__main__":
    main()
