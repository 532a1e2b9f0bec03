# SPDX-License-Identifier: Apache-2.0
"""Packets lost on their way to a host, by chance or chosen, counted by the rule that drops them.

They are dropped where they arrive: a packet dropped on its way out is a local error to its sender, not a loss.
"""

from __future__ import annotations

import itertools
import json
import subprocess
from enum import StrEnum
from typing import Self

from lab.network import enter

_numbers = itertools.count()
_MANY = 2**32 - 1  # numgen's largest modulus


class Segment(StrEnum):
    """What may be lost. Data is told by length: TCP's longest packet without payload has 100 bytes (IPv6)."""

    SYN = "tcp flags & (syn|ack) == syn"
    SYNACK = "tcp flags & (syn|ack) == syn|ack"
    DATA = "meta length > 100"


def by_chance(percent: float) -> str:
    """Return the rule that takes this share of the packets."""
    return f"numgen random mod 100000 < {round(percent * 1000)}"


def chosen(segment: Segment, first: int | None, only: int | None) -> str:
    """Return the rule that takes some segments of a kind: the first few, the n-th alone (from 1), or every one."""
    if first is not None:
        # A bucket of so many tokens, which a token a day doesn't fill again.
        return f"{segment} limit rate 1/day burst {first} packets"
    if only is not None:
        return f"{segment} numgen inc mod {_MANY} == {only - 1}"
    return segment


class Loss:
    """Loses packets that come to a namespace from others, until removed; a context manager that does it."""

    def __init__(self, namespace: str, rule: str, port: int | None = None) -> None:
        self._namespace = namespace
        self._table = f"lab_loss_{next(_numbers)}"
        self._lost: int | None = None
        flows = ["meta l4proto tcp"] if port is None else [f"tcp dport {port}", f"tcp sport {port}"]
        self._nft(
            f"table inet {self._table} {{\n"
            "  counter lost {}\n"
            f"  chain losing {{ {rule} counter name lost drop; }}\n"  # one rule for both flows: it has the state
            "  chain arriving {\n"
            "    type filter hook prerouting priority raw\n"
            '    iifname "lo" return\n' + "".join(f"    {flow} jump losing\n" for flow in flows) + "  }\n}\n"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def dropped(self) -> int:
        """Return how many packets have been dropped, as nftables counted them."""
        if self._lost is not None:
            return self._lost
        answer = json.loads(self._nft(f"list counter inet {self._table} lost", "-j"))
        return int(next(o["counter"]["packets"] for o in answer["nftables"] if "counter" in o))

    def remove(self) -> None:
        """Let everything through again; what has been dropped stays known."""
        if self._lost is None:
            self._nft(f"delete chain inet {self._table} arriving")  # first, so that the count is final
            self._lost = self.dropped()
            self._nft(f"delete table inet {self._table}")

    def _nft(self, commands: str, *options: str) -> str:
        argv = enter(self._namespace, ["nft", *options, commands])
        done = subprocess.run(argv, text=True, capture_output=True, check=False)
        if done.returncode:
            raise RuntimeError(f"lab: nft in {self._namespace} doesn't take:\n{commands}{done.stderr}")
        return done.stdout
