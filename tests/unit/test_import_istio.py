# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tidegate.cli.main import app
from tidegate.config import parse
from tidegate.errors import ConfigError
from tidegate.importers.istio import Rule, Settings, read
from tidegate.importers.written import lines
from tidegate.model.outliers import ConnectionPool, OutlierDetection

pytestmark = pytest.mark.unit

#: The rule of the story.
STORY = """\
apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata:
  name: inventory-circuit-breaker
spec:
  host: inventory.prod.svc.cluster.local
  trafficPolicy:
    connectionPool:
      tcp:
        maxConnections: 100
      http:
        http1MaxPendingRequests: 1
        maxRequestsPerConnection: 10
    outlierDetection:
      consecutive5xxErrors: 3
      interval: 10s
      baseEjectionTime: 30s
      maxEjectionPercent: 100
"""

#: All at once: ports, subsets, and what isn't taken.
LARGE = """\
kind: List
items:
- apiVersion: networking.istio.io/v1
  kind: DestinationRule
  metadata: {name: reviews}
  spec:
    host: reviews
    exportTo: ["."]
    novelty: 1
    trafficPolicy:
      loadBalancer: {simple: RANDOM}
      tls: {mode: ISTIO_MUTUAL}
      connectionPool: {tcp: {connectTimeout: 250ms, tcpKeepalive: {}}, http: {http2MaxRequests: 5, maxRetries: 0}}
      outlierDetection: {consecutiveGatewayErrors: 4, minHealthPercent: 30, consecutiveErrors: 7}
      portLevelSettings:
      - port: {number: 9080}
        outlierDetection: {consecutive5xxErrors: 0, consecutiveLocalOriginFailures: 2}
      - port: {number: 9090}
        connectionPool: {http: {maxRequestsPerConnection: 1}}
    subsets:
    - name: v1
      labels: {version: v1}
    - name: v2
      labels: {version: v2}
      trafficPolicy:
        outlierDetection: {splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 2}
        portLevelSettings:
        - port: {number: 9090}
          outlierDetection: {interval: 1m30s, baseEjectionTime: 1h}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
"""


def one(**keys: Any) -> OutlierDetection:
    """Return what Istio makes of a rule that says nothing more."""
    off = {"enforcing_success_rate": 0, "enforcing_local_origin_success_rate": 0}
    return OutlierDetection(**({"split_external_local_origin_errors": False} | off | keys))


def rule(text: str) -> Rule:
    (found,) = read(text.encode(), "f")
    return found


def detection(text: str) -> Settings:
    """Return the settings of a rule with this outlierDetection."""
    return rule(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n"
        f"spec: {{host: a, trafficPolicy: {{outlierDetection: {{{text}}}}}}}"
    ).settings()


def test_the_rule_of_the_story() -> None:
    settings = rule(STORY).settings()
    assert settings.detection == one(
        consecutive_5xx=3, interval=10.0, base_ejection_time=30.0, max_ejection_percent=100
    )
    assert settings.detection.max_ejection_time is None
    assert (settings.empties, settings.healthy_panic_threshold) == (True, 0)
    assert settings.connection_pool == ConnectionPool(max_connections=100, max_requests_per_connection=10)
    (note,) = settings.notes
    assert note.of("f").startswith(
        "f:12:9: spec.trafficPolicy.connectionPool.http.http1MaxPendingRequests: not taken: the queue is in the "
    )


def test_the_story_as_config() -> None:
    text = "\n".join(lines(read(STORY.encode(), "rule.yaml"), "rule.yaml"))
    pool = parse(text.encode(), "f").pools["inventory"]
    assert (pool.mode, pool.min_healthy, pool.endpoints) == ("monitor", 0, [])
    assert pool.outlier_detection == rule(STORY).settings().detection
    assert pool.connection_pool == rule(STORY).settings().connection_pool
    said = [line.strip() for line in text.splitlines() if line.strip().startswith("#")]
    place = "rule.yaml:12:9: spec.trafficPolicy.connectionPool.http.http1MaxPendingRequests: "
    assert said[0].startswith("# From rule.yaml.")
    assert said[1].startswith(f"# {place}")
    assert said[2] == (
        "# warning: max_ejection_percent of 100 with min_healthy of 0: a pool of one endpoint is an outage by rule"
    )
    assert said[3].startswith("# warning: max_requests_per_connection of 10 is churn of its own")


@pytest.mark.parametrize("version", ["v1", "v1beta1", "v1alpha3"])
def test_versions(version: str) -> None:
    assert rule(STORY.replace("v1beta1", version)) == rule(STORY)


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("{}", {}),
        ("consecutive5xxErrors: 0", {"consecutive_5xx": 0, "enforcing_consecutive_5xx": 0}),
        ("consecutive5xxErrors: 7", {"consecutive_5xx": 7}),
        (
            "consecutiveGatewayErrors: 2",
            {"consecutive_gateway_failure": 2, "enforcing_consecutive_gateway_failure": 100},
        ),
        (
            "consecutiveGatewayErrors: 0",
            {"consecutive_gateway_failure": 0, "enforcing_consecutive_gateway_failure": 0},
        ),
        ("maxEjectionPercent: 0", {}),  # 0 is "not set" to Istio: Envoy's 10 holds
        ("maxEjectionPercent: 40", {"max_ejection_percent": 40}),
        ("baseEjectionTime: 15m, interval: 5m", {"base_ejection_time": 900.0, "interval": 300.0}),
        ("splitExternalLocalOriginErrors: true", {"split_external_local_origin_errors": True}),
        (
            "splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 3",
            {"split_external_local_origin_errors": True, "consecutive_local_origin_failure": 3},
        ),
    ],
)
def test_the_mapping(text: str, keys: dict[str, int]) -> None:
    settings = detection(text.strip("{}"))
    assert settings.detection == one(**keys)
    assert (settings.notes, settings.empties) == ((), False)


def test_ports_take_the_place_of_all_and_subsets_of_what_they_set() -> None:
    found = read(LARGE.encode(), "f")[0]
    whole = found.settings()
    assert whole.detection == one(consecutive_gateway_failure=4, enforcing_consecutive_gateway_failure=100)
    assert (whole.healthy_panic_threshold, whole.connect_timeout) == (30, 0.25)
    at_9080 = found.settings(port=9080)
    assert at_9080.detection == one(consecutive_5xx=0, enforcing_consecutive_5xx=0)
    assert (at_9080.connection_pool, at_9080.connect_timeout, at_9080.healthy_panic_threshold) == (None, None, 0)
    at_9090 = found.settings(port=9090)
    assert at_9090.detection is None
    assert at_9090.connection_pool == ConnectionPool(max_requests_per_connection=1)
    assert found.settings(port=1) == whole
    assert found.settings("v1")[:5] == whole[:5]
    assert found.settings("v1", 9080)[:5] == at_9080[:5]
    second = found.settings("v2")
    assert second.detection == one(split_external_local_origin_errors=True, consecutive_local_origin_failure=2)
    assert (second.connect_timeout, second.healthy_panic_threshold) == (0.25, 0)
    third = found.settings("v2", 9090)
    assert third.detection == one(interval=90.0, base_ejection_time=3600.0)
    assert third.detection.longest == 3600
    assert third.connection_pool is None
    names = [(choice.subset, choice.port) for choice in found.choices()]
    assert names == [(subset, port) for subset in (None, "v1", "v2") for port in (None, 9080, 9090)]


def test_what_is_not_taken_is_named_line_by_line() -> None:
    found = read(LARGE.encode(), "f")[0]
    notes = {*found.notes, *(note for choice in found.choices() for note in choice.settings.notes)}
    assert sorted((note.line, note.path.rpartition(".")[2]) for note in notes) == [
        (8, "exportTo"), (9, "novelty"), (11, "loadBalancer"), (12, "tls"), (13, "http2MaxRequests"),
        (13, "maxRetries"), (13, "tcpKeepalive"), (14, "consecutiveErrors"),
        (17, "consecutiveLocalOriginFailures"), (22, "labels"), (24, "labels"), (31, ""),
    ]  # fmt: skip
    assert all(note.message.startswith(("not taken: ", "left out: ")) for note in notes)


def test_the_large_one_as_config() -> None:
    text = "\n".join(lines(read(LARGE.encode(), "f"), "f"))
    pools = parse(text.encode(), "f").pools
    assert list(pools) == [
        "reviews", "reviews-9080", "reviews-9090", "reviews-v1", "reviews-v1-9080", "reviews-v1-9090",
        "reviews-v2", "reviews-v2-9080", "reviews-v2-9090",
    ]  # fmt: skip
    assert (pools["reviews"].connect_timeout, pools["reviews"].healthy_panic_threshold) == (0.25, 30)
    assert (pools["reviews-9090"].mode, pools["reviews-9090"].outlier_detection) == ("off", None)
    assert text.count("no outlierDetection: nothing is ejected") == 2


HEAD = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nspec:\n"
BAD = {
    "[": "f:1:2: not YAML: expected the node content, but found '<stream end>'",
    "a: 1": "f:1:1: expected a DestinationRule, found none",
    "kind: DestinationRule": "f:1:1: expected a DestinationRule, found none",
    "apiVersion: networking.istio.io/v9\nkind: DestinationRule": (
        "f:1:13: apiVersion: expected networking.istio.io/{v1,v1beta1,v1alpha3}, found networking.istio.io/v9"
    ),
    HEAD + "  trafficPolicy: {}": "f:4:3: spec: expected a host, found none",
    HEAD + "  host: a\n  trafficPolicy: 7": ("f:5:18: spec.trafficPolicy: expected keys with values, found '7'"),
    HEAD + "  host: a\n  subsets: {}": "f:5:12: spec.subsets: expected a list, found keys with values",
    HEAD + "  host: a\n  subsets: [{}]": "f:5:13: spec.subsets[0]: expected a subset with a name, found none",
    HEAD + "  host: a\n  trafficPolicy: {outlierDetection: {interval: 10}}": (
        "f:5:48: spec.trafficPolicy.outlierDetection.interval: expected a duration like 500ms, 10s or 1m30s, "
        "found '10'"
    ),
    HEAD + "  host: a\n  trafficPolicy: {outlierDetection: {interval: 0s}}": (
        "f:5:48: spec.trafficPolicy.outlierDetection.interval: expected 1ms to 365d, found '0s'"
    ),
    HEAD + "  host: a\n  trafficPolicy: {outlierDetection: {maxEjectionPercent: 101}}": (
        "f:5:58: spec.trafficPolicy.outlierDetection.maxEjectionPercent: expected a whole number of at most 100, "
        "found '101'"
    ),
    HEAD + "  host: a\n  trafficPolicy: {outlierDetection: {splitExternalLocalOriginErrors: on}}": (
        "f:5:70: spec.trafficPolicy.outlierDetection.splitExternalLocalOriginErrors: expected true or false, "
        "found 'on'"
    ),
    HEAD + "  host: a\n  trafficPolicy: {portLevelSettings: [{port: {name: http}}]}": (
        "f:5:39: spec.trafficPolicy.portLevelSettings[0]: expected port.number of 1 to 65535, found none"
    ),
}


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_what_is_wrong_has_its_place(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text.encode(), "f")
    assert caught.value.complaints == [BAD[text]]


def test_all_that_is_wrong_is_said_at_once() -> None:
    text = STORY.replace("10s", "soon").replace("maxConnections: 100", "maxConnections: -1")
    with pytest.raises(ConfigError) as caught:
        read(text.encode(), "f")
    assert [complaint.split(": ")[0] for complaint in caught.value.complaints] == ["f:10:25", "f:16:17"]


def test_the_command(tmp_path: Path) -> None:
    path = tmp_path / "rule.yaml"
    path.write_text(STORY, encoding="utf-8")
    result = CliRunner().invoke(app, ["import", "istio", str(path)])
    assert result.exit_code == 0
    assert result.stdout.splitlines() == list(lines(read(STORY.encode(), str(path)), str(path)))
    found = json.loads(CliRunner().invoke(app, ["import", "istio", "--json", str(path)]).stdout)
    assert found["pools"]["inventory"]["outlier_detection"]["consecutive_5xx"] == 3
    assert [len(found["not_taken"]), len(found["warnings"])] == [1, 2]
    result = CliRunner().invoke(app, ["import", "istio", str(tmp_path / "none")])
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception).endswith("none: can't be read: No such file or directory")
