# SPDX-License-Identifier: Apache-2.0
"""The finding of a full table of tracked connections: a namespace that tracks, and a near miss."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lab.lab import Lab
from lab.network import enter
from lab.results import Plan, Step
from tests.lab.advised import QUICK, AdvisedLab
from tests.lab.test_advice_tcp import SERVE, pair
from tidegate.model.limits import Advice, ConntrackNearLimit

pytestmark = pytest.mark.lab

#: Rules with state have the namespace track its connections.
TRACK = "table inet track { chain input { type filter hook input priority 0; ct state invalid drop; }; }"


@pytest.mark.parametrize(("connections", "is_near"), [(150, True), (20, False)])
def test_a_table_of_tracked_connections_near_its_limit(lab: Lab, connections: int, is_near: bool) -> None:
    _, shop = pair(lab)
    subprocess.run(enter(shop.host.namespace, ["nft", TRACK]), check=True)
    # The limit is one for the whole machine, so it is the share that is made small: of 262,144 it is 100.
    limit = int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text(encoding="ascii"))
    advice = Advice(interval=0.0, ignore=QUICK.ignore, conntrack_near_limit=ConntrackNearLimit(used=100 / limit))
    with AdvisedLab(lab, advice=advice) as advised:
        shop.generate(Plan((Step("10.0.0.6", SERVE, connections, request=100, response=300, rounds=2),)))
        if not is_near:
            assert advised.findings(advised.after(2)) == []
            return
        view = advised.until(lambda v: bool(v.findings), "found")
        finding = advised.one(view, "conntrack_near_limit")
    assert (finding.evidence["entries"], finding.evidence["limit"]) == (150, limit)
