# SPDX-License-Identifier: Apache-2.0
"""``tidegate doctor``: what works on this host, what doesn't, and what would mend it."""

from __future__ import annotations

import sys
from typing import Annotated

import msgspec
import typer

from tidegate.errors import TidegateError
from tidegate.features import features, unseen_failures
from tidegate.kernel.objects import BpfObject
from tidegate.kernel.probe import probe
from tidegate.model.feature import Feature, State
from tidegate.signals import tcp

_OBJECTS = {"tcp": "connections, failures and handshakes", "cgroup": "names of services that live shortly"}


def doctor(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Check each feature: ok, degraded or unavailable, the reason, and what would mend it."""
    found = features(probe())
    found += [_load(name, purpose) for name, purpose in _OBJECTS.items()]
    found.append(unseen_failures())
    if json:
        typer.echo(msgspec.json.encode(found).decode())
    else:
        for feature in found:
            typer.echo(_line(feature))
    if any(feature.state is State.UNAVAILABLE for feature in found):
        sys.exit(3)


def _load(name: str, purpose: str) -> Feature:
    """Load an object for real, without attaching it: what the verifier accepts works."""
    try:
        if name == "tcp":
            return _load_tcp()
        with BpfObject.named(name) as bpf:
            bpf.load()
    except TidegateError as error:
        return Feature(
            name=f"programs:{name}",
            state=State.UNAVAILABLE,
            reason=f"{purpose}: {error}",
            remedy="mend what stands above; if all of it is ok, report this with the kernel's version",
        )
    return Feature(name=f"programs:{name}", state=State.OK)


def _load_tcp() -> Feature:
    bpf, refusal = tcp.load(max_rows=64, max_sockets=64)
    bpf.close()
    if not refusal:
        return Feature(name="programs:tcp", state=State.OK)
    return Feature(
        name="programs:tcp",
        state=State.DEGRADED,
        reason=f"{refusal}, so their bytes are counted when a connection's state changes and at its end",
        remedy="a later kernel; Linux 6.1 has what the walk needs",
    )


def _line(feature: Feature) -> str:
    text = f"{feature.name:<16} {feature.state}"
    if feature.reason:
        text += f"\n{'':17}{feature.reason}"
    if feature.remedy:
        text += f"\n{'':17}to mend it: {feature.remedy}"
    return text
