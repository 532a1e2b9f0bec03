# SPDX-License-Identifier: Apache-2.0
"""The lab with live traffic, until Ctrl-C: watch it with ``tidegate top`` in another terminal."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import signal
import time
from types import FrameType

from lab import flooded, live
from lab.gateway import Gateway
from lab.lab import Lab, Service
from lab.results import Plan, Results, Step
from lab.story import PROXIES
from lab.upstream import Behaviour

AUTH, INVENTORY, ACTIONS, BROKEN, MEDIA = 4000, 5000, 5001, 5002, 8000


def plan(seed: int) -> Plan:
    """One round of the gateway's traffic, some seconds long: most of it works, some of it doesn't."""
    steps = (
        Step("10.0.0.5", AUTH, 6, request=300, response=900, rounds=40, pause=0.02),
        Step("fd00::5", AUTH, 2, request=300, response=900, rounds=40, pause=0.02),
        Step("10.0.0.6", INVENTORY, 300, request=400, response=6000, rounds=1),
        Step("10.0.0.8", MEDIA, 8, request=200_000, response=500, rounds=2, syn_retries=6),
        Step("10.0.0.6", ACTIONS, 8, speak=True),
        Step("10.0.0.6", BROKEN, 15),
        Step("10.0.0.7", INVENTORY, 12),
        Step("10.9.0.5", AUTH, 20, request=300, response=900, rounds=2),
        Step("10.0.0.5", 4001, 5, give_up=0.5),
    )
    return Plan(steps, parallel=20, seed=seed)


def build(lab: Lab) -> Service:
    """Make the story's hosts and return the gateway."""
    names = (("auth", 5), ("inventory", 6), ("spare", 7), ("media", 8))
    auth, inventory, spare, media = (lab.host(name, number) for name, number in names)
    auth.service("auth_service").upstream({AUTH: Behaviour.SERVE, 4001: Behaviour.HANG})
    inventory.service("inventory_service").upstream(
        {INVENTORY: Behaviour.SERVE, ACTIONS: Behaviour.RESET, BROKEN: Behaviour.REFUSE}
    )
    spare.service("inventory_spare").upstream({INVENTORY: Behaviour.UNREACHABLE})
    media.service("media_service").upstream({MEDIA: Behaviour.SERVE})
    media.lose(2)
    host = lab.host("gateway", 16)
    lab.slow_path(auth, host, 0.005, 0.03)
    return host.service("gateway")


def describe(lab: Lab) -> str:
    """Return what there is: hosts with their namespaces and addresses, services with their cgroups."""
    lines = [
        f"{host.name:10} {host.v4:10} {host.v6:10} ip netns exec {host.namespace}" for host in lab.hosts.values()
    ]
    lines += [f"{path.name:26} {path}" for path in sorted(lab.cgroup.glob("*.service"))]
    return "\n".join(lines)


def table(total: Results, seconds: float) -> str:
    """Return the generator's own counts since the start."""
    lines = [f"after {seconds:.0f} s"]
    for endpoint, result in sorted(total.endpoints.items()):
        outcomes = "  ".join(f"{outcome} {n}" for outcome, n in sorted(result.outcomes.items()))
        lines.append(f"{endpoint:16} {result.connects:8} connects  {outcomes}")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m lab", description=__doc__)
    parser.add_argument("--rounds", type=int, help="end after so many rounds of traffic")
    parser.add_argument(
        "--nginx",
        action="store_true",
        help="only the real nginx of the story, whose keep-alive works for one of its two upstreams",
    )
    parser.add_argument(
        "--story",
        choices=PROXIES,
        help="the whole story: this proxy as the gateway, upstreams with spares, and the agent beside it",
    )
    parser.add_argument("--ejection", default="30s", help="how long an ejection of the story lasts")
    parser.add_argument(
        "--flood",
        action="store_true",
        help="only a gateway with the limiter, its clients, and a flood of spoofed SYNs",
    )
    parser.add_argument("--every", type=float, default=3.0, help="seconds between two totals")
    return parser.parse_args()


def interrupt_this_process_alone() -> None:
    """Let SIGTERM and SIGINT end this process in order, and the children that pyroute2 forks at once."""
    owner = os.getpid()

    def end(_number: int, _frame: FrameType | None) -> None:
        if os.getpid() != owner:
            os._exit(0)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C doesn't leave half a lab behind
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


def story(lab: Lab, options: argparse.Namespace) -> None:
    """Visit the real nginx, of whose locations one has no working keep-alive, until all rounds are done."""
    gateway = Gateway(lab)
    print(f"{describe(lab)}\nconfig: {gateway.nginx.directory}/nginx.conf\nend with Ctrl-C\n", flush=True)
    for n in itertools.count(1) if options.rounds is None else range(1, options.rounds + 1):
        with gateway.visited(rate=100, count=int(100 * options.every)) as visitors:
            answers = visitors.results()
        counts = "  ".join(
            f"{path} {status}: {count}" for path, all_ in answers.items() for status, count in all_.items()
        )
        print(f"after {n * options.every:.0f} s  {counts}", flush=True)


def main() -> None:
    """Build the story's gateway and call its upstreams round after round."""
    options = arguments()
    interrupt_this_process_alone()
    with contextlib.suppress(KeyboardInterrupt), Lab() as lab:
        if options.flood:
            flooded.story(lab, options.rounds, options.every)
            return
        if options.story:
            live.tell(lab, options.story, options.rounds, options.ejection)
            return
        if options.nginx:
            story(lab, options)
            return
        gateway = build(lab)
        print(f"{describe(lab)}\nend with Ctrl-C\n", flush=True)
        total, began = Results(), time.monotonic()
        due = began
        for seed in itertools.count(1) if options.rounds is None else range(1, options.rounds + 1):
            total = Results.sum((total, gateway.generate(plan(seed))))
            for result in total.endpoints.values():
                result.handshakes.clear()  # they would grow for ever
                result.lifetimes.clear()
            if time.monotonic() >= due or seed == options.rounds:
                print(table(total, time.monotonic() - began) + "\n", flush=True)
                due = time.monotonic() + options.every


if __name__ == "__main__":
    main()
