# SPDX-License-Identifier: Apache-2.0
"""The story: one location of the gateway lacks what makes its upstream's keep-alive work."""

from __future__ import annotations

import json
import re
import socket
import time
from pathlib import Path

import pytest

from lab.gateway import PATHS, STORY, Gateway
from lab.lab import Lab
from tests.lab.advised import AdvisedLab
from tests.lab.agent import RunningAgent
from tidegate.model.finding import Finding

pytestmark = pytest.mark.lab
INVENTORY = ("missing_keepalive", "gateway.service -> 10.0.0.6:5000")


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def apply(finding: Finding, config: str) -> str:
    """Put the lines that a finding prints where it says, as a reader of nginx.conf would."""
    upstream = finding.endpoints[0]
    (name,) = re.findall(rf"upstream (\w+) {{\s+server {upstream};", config)
    for remedy in finding.remedies:
        if remedy.where.startswith("nginx: each location"):
            place = f"proxy_pass http://{name};"
        elif remedy.where.startswith("nginx: the upstream block") and "keepalive " not in _block(config, name):
            place = f"server {upstream};"
        else:
            continue
        assert config.count(place) == 1
        config = config.replace(place, "\n        ".join((place, *remedy.lines)))
    return config


def _block(config: str, name: str) -> str:
    return config.partition(f"upstream {name} {{")[2].partition("}")[0]


def fixed() -> str:
    return STORY.replace(
        "proxy_pass http://inventory_service;",
        'proxy_pass http://inventory_service;\nproxy_http_version 1.1;\nproxy_set_header Connection "";',
    )


def test_the_story_is_found_within_three_intervals_and_its_lines_cure_it(lab: Lab) -> None:
    gateway = Gateway(lab)
    with AdvisedLab(lab) as advised, gateway.visited(100) as visitors:
        seen = []
        for _ in range(3):
            time.sleep(1)
            view = advised.measure()
            seen.append(advised.findings(view))
        assert [INVENTORY] in seen
        assert seen[-1] == [INVENTORY]
        finding = advised.one(view, "missing_keepalive")
        (row,) = (r for r in view.endpoints if (r.role, r.endpoint) == ("client", "10.0.0.6:5000"))
        assert finding.evidence["connects"] == row.connects
        assert finding.evidence["exchanges_per_connection"] == 1.0

        gateway.nginx.write(apply(finding, gateway.nginx.servers))
        gateway.nginx.reload()
        advised.until(lambda v: not v.findings, "cured")
        assert advised.findings(advised.after(3)) == []
        visitors.stop()
        answers = visitors.results()
    assert set(answers) == set(PATHS)
    assert all(set(statuses) == {"200"} for statuses in answers.values())


def test_a_healthy_gateway_has_no_finding(lab: Lab) -> None:
    gateway = Gateway(lab, fixed())
    with AdvisedLab(lab) as advised, gateway.visited(200):
        for _ in range(6):
            assert advised.findings(advised.after(1)) == []


def test_a_gateway_that_is_hardly_visited_has_none_although_its_keepalive_is_missing(lab: Lab) -> None:
    gateway = Gateway(lab)
    with AdvisedLab(lab) as advised, gateway.visited(12):  # six connections a second
        for _ in range(5):
            assert advised.findings(advised.after(1)) == []


def test_the_command_prints_the_finding_from_the_agent_and_by_itself(
    lab: Lab,
    tmp_path: Path,
    port: int,
) -> None:
    gateway = Gateway(lab)
    subject = f"gateway{lab.tag}.service -> 10.0.0.6:5000"
    with gateway.visited(100):
        with RunningAgent(tmp_path, port, interval="500ms", tag=lab.tag) as agent:
            agent.wait_for("finding", lambda: f'subject="{subject}"' in agent.metrics())
            assert f'tidegate_finding{{id="missing_keepalive",severity="warning",subject="{subject}"}} 1.0' in (
                agent.metrics()
            )
            done = agent.command("advise", "--json")
            assert (done.returncode, done.stderr) == (0, "")
            (found,) = (f for f in json.loads(done.stdout) if lab.tag in f["subject"])
            assert (found["id"], found["subject"], found["severity"]) == ("missing_keepalive", subject, "warning")
            assert found["evidence"]["connects"] >= 20
            text = agent.command("advise").stdout
        alone = agent.command("advise", "--for", "3s")
    for printed in (text, alone.stdout):
        assert f"WARNING missing_keepalive: {subject}\n" in printed
        assert "                    proxy_http_version 1.1;\n" in printed
        assert "  runbook:    docs/runbooks/missing_keepalive.md\n" in printed
        assert "\x1b" not in printed
    assert alone.stderr == f"no agent runs at {agent.socket}; observing for 3 s\n"
