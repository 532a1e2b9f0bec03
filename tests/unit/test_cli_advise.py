# SPDX-License-Identifier: Apache-2.0
"""What ``tidegate advise`` prints."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
from typer.testing import CliRunner

from tests.unit.picture import endpoint, program, view, window
from tidegate.advice import advise
from tidegate.cli.advise import lines
from tidegate.cli.main import app
from tidegate.control.client import NoAgentError
from tidegate.model.finding import Finding
from tidegate.model.limits import Advice, Residency
from tidegate.model.snapshot import View

pytestmark = pytest.mark.unit
RUNNER = CliRunner()


def finding() -> Finding:
    shown = view([endpoint(connects=200)], resources=[program("nginx", "1.22.1")])
    (found,) = advise(window(shown), Advice(), Residency())
    return found


EXPECTED = """\
WARNING missing_keepalive: shop.service -> 10.0.0.6:5000
  shop.service (nginx 1.22.1) opens 200 connections a second to 10.0.0.6:5000, each for 1.0
  requests: keep-alive doesn't work.
  evidence:   connects_per_second 200, connects 200, exchanges_per_connection 1, lifetime_seconds
              0.001, open 0, closed_first_by_upstream_share 1, window_seconds 10, program nginx
              1.22.1
  do:         1. Speak HTTP/1.1 to the upstream and don't ask it to close; before 1.29.7 nginx does
              neither by itself (this is 1.22.1).
                in nginx: each location whose proxy_pass leads to 10.0.0.6:5000:
                    proxy_http_version 1.1;
                    proxy_set_header Connection "";
"""


def test_a_finding_is_read_in_one_look() -> None:
    text = "\n".join(lines(finding()))
    assert text.startswith(EXPECTED)
    assert text.endswith("  runbook:    docs/runbooks/missing_keepalive.md")
    assert "  refuted by: requests that are rarer than" in text


def test_a_terminal_gets_the_severity_in_colour_and_nothing_else() -> None:
    plain, coloured = lines(finding()), lines(finding(), colour=True)
    assert coloured[0] == "\x1b[33;1mWARNING\x1b[0m missing_keepalive: shop.service -> 10.0.0.6:5000"
    assert [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in coloured] == plain


class Agent:
    """Stands for the control socket of an agent."""

    def __init__(self, shown: View) -> None:
        self._shown = shown

    def __call__(self, _: Path) -> Agent:
        return self

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def watch(self) -> Iterator[View]:
        yield self._shown


@pytest.mark.parametrize(
    ("findings", "text"),
    [((), "no findings\n"), (None, "the agent's version doesn't judge what it sees\n")],
)
def test_an_agent_without_findings(findings: tuple[Finding, ...] | None, text: str) -> None:
    with patch("tidegate.cli.advise.ControlClient", Agent(view(findings=findings))):
        result = RUNNER.invoke(app, ["advise"])
        assert (result.exit_code, result.stdout) == (0, text)
        assert json.loads(RUNNER.invoke(app, ["advise", "--json"]).stdout) == []


def test_json_is_the_list_of_findings() -> None:
    with patch("tidegate.cli.advise.ControlClient", Agent(view(findings=(finding(),)))):
        (found,) = json.loads(RUNNER.invoke(app, ["advise", "--json"]).stdout)
    assert found.keys() >= {
        "id",
        "severity",
        "subject",
        "evidence",
        "remedies",
        "runbook",
        "refuted_by",
        "confidence",
    }


def test_a_duration_that_is_none_is_wrong_usage() -> None:
    result = RUNNER.invoke(app, ["advise", "--for", "soon"])
    assert str(result.exception) == "--for: expected a duration like 500ms, 10s or 1m30s, found 'soon'"
    assert isinstance(result.exception, Exception)
    assert not isinstance(result.exception, NoAgentError)
