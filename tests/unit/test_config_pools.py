# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import yaml
from typer.testing import CliRunner

from tests.unit.test_import_istio import LARGE, STORY
from tidegate.breaker.configured import members, resolve
from tidegate.breaker.lint import most_out, warnings
from tidegate.cli.main import app
from tidegate.config import Config, parse, schema, to_yaml
from tidegate.config.pools import AnyDriver, FailfastDriver, NginxDriver, Pool
from tidegate.errors import ConfigError
from tidegate.model.outliers import ConnectionPool, OutlierDetection, Policy, Probe

pytestmark = pytest.mark.unit
EXAMPLE = Path(__file__).parents[2] / "deploy/tidegate.yaml"
CONTRACT = b"""\
pools:
  inventory:
    endpoints: ["10.0.0.6:5000", "10.0.0.7:5000"]
    mode: monitor          # off | monitor | enforce
    min_healthy: 1
    outlier_detection: {consecutive_5xx: 3, interval: 10s, base_ejection_time: 30s, max_ejection_percent: 100}
    # or destination_rule: FILE
    drivers:
      - nginx: {include: /etc/nginx/upstreams/inventory.conf}
      - failfast: {}
"""


def pools(text: str) -> dict[str, Pool]:
    return parse(f"pools: {text}".encode(), "f", check_files=False).pools


def test_the_section_as_other_programs_write_it() -> None:
    config = parse(CONTRACT, "f")
    assert config.pools["inventory"] == Pool(
        endpoints=["10.0.0.6:5000", "10.0.0.7:5000"],
        min_healthy=1,
        outlier_detection=OutlierDetection(consecutive_5xx=3, max_ejection_percent=100),
        drivers=[NginxDriver(include="/etc/nginx/upstreams/inventory.conf"), FailfastDriver()],
    )
    assert parse(to_yaml(config).encode(), "f") == config


def test_nothing_is_watched_by_itself() -> None:
    assert Config().pools == {}
    (pool,) = pools("{a: {endpoints: ['[::ffff:10.0.0.6]:80', '[fd00::6]:80']}}").values()
    assert pool.endpoints == ["10.0.0.6:80", "[fd00::6]:80"]
    assert members({"a": pool})["a"].policy == Policy() == Policy(mode="monitor", min_healthy=1)


def test_a_pool_as_a_policy() -> None:
    (pool,) = pools(
        "{a: {mode: enforce, min_healthy: 2, recovery: probe, probe: {permits: 3, wait: 2s}, "
        "connect_timeout: 200ms, response_timeout: 5s, slow_response_threshold: 1s, slow_response_percent: 50, "
        "healthy_panic_threshold: 40, connection_pool: {max_connections: 7}}}"
    ).values()
    (member,) = members({"a": pool}).values()
    assert member.policy == Policy(
        mode="enforce", min_healthy=2, recovery="probe", probe=Probe(permits=3, wait=2.0), connect_timeout=0.2,
        response_timeout=5.0, slow_response_threshold=1.0, slow_response_percent=50, healthy_panic_threshold=40,
    )  # fmt: skip
    assert member.connection_pool == ConnectionPool(max_connections=7)


def test_the_example_documents_every_key_of_a_pool_with_its_default() -> None:
    block = re.search(r"(?:^#   .*\n)+", EXAMPLE.read_text(encoding="utf-8"), re.MULTILINE)
    assert block is not None
    text = "\n".join(line[1:] for line in block[0].splitlines())
    config = parse(f"pools:\n{text}".encode(), "f")
    (member,) = members(config.pools).values()
    assert (member.policy, member.connection_pool) == (Policy(), ConnectionPool())
    assert config.pools["inventory"].drivers == []

    def keys(node: dict[str, Any]) -> set[str]:
        found = set()
        for inner in [node, *node.get("anyOf", [])]:
            for key, value in inner.get("properties", {}).items():
                found |= {key, *(f"{key}.{below}" for below in keys(value))}
        return found

    def written(node: Any, path: str = "") -> set[str]:
        if not isinstance(node, dict):
            return set()
        return {f"{path}{key}" for key in node} | {
            below for key, value in node.items() for below in written(value, f"{path}{key}.")
        }

    wanted = {
        key
        for key in keys(schema()["properties"]["pools"]["additionalProperties"])
        if not key.startswith(("destination_rule.", "drivers."))
    }
    assert written(yaml.safe_load(text)["inventory"]) == wanted


def test_the_example_documents_every_key_of_a_driver_with_its_default() -> None:
    lines = re.findall(r"^#       # (?:(- .*)|( {11}.*))$", EXAMPLE.read_text(encoding="utf-8"), re.MULTILINE)
    text = "\n".join(f"    {first or more}" for first, more in lines)
    documented = parse(f"pools:\n inventory:\n  drivers:\n{text}".encode(), "f").pools["inventory"].drivers
    written = {next(iter(driver)): next(iter(driver.values())) for driver in yaml.safe_load(text)}
    kinds = {str(kind.__struct_config__.tag): kind for kind in get_args(AnyDriver)}
    assert written.keys() == kinds.keys()
    for driver in documented:
        kind = type(driver)
        tag = str(kind.__struct_config__.tag)
        assert set(written[tag]) == set(kind.__struct_fields__)
        given = {
            field.name: getattr(driver, field.name) for field in msgspec.structs.fields(kind) if field.required
        }
        assert driver == kind(**given)


BAD = {
    "{a: {outlier_detection: {base_ejection_time: 10s, max_ejection_time: 3s}}}": (
        "f:1:32: pools.a.outlier_detection: max_ejection_time: expected at least base_ejection_time, 10s, found 3s"
    ),
    "{a: {outlier_detection: {consecutive_6xx: 1}}}": (
        "f:1:33: pools.a.outlier_detection.consecutive_6xx: unknown key; did you mean consecutive_5xx?"
    ),
    "{a: {outlier_detection: {max_ejection_percent: 101}}}": (
        "f:1:55: pools.a.outlier_detection.max_ejection_percent: expected 0 to 100, found '101'"
    ),
    "{a: {outlier_detection: {interval: 0s}}}": (
        "f:1:43: pools.a.outlier_detection.interval: expected 1ms to 365d, found '0s'"
    ),
    "{a: {endpoints: ['inventory:80']}}": (
        "f:1:25: pools.a.endpoints[0]: expected ADDRESS:PORT like 10.0.0.6:5000 or [fd00::6]:5000, found "
        "'inventory:80'"
    ),
    "{a: {endpoints: ['10.0.0.6:0']}}": (
        "f:1:25: pools.a.endpoints[0]: expected ADDRESS:PORT like 10.0.0.6:5000 or [fd00::6]:5000, found "
        "'10.0.0.6:0'"
    ),
    "{a: {endpoints: ['10.0.0.6:80', '[::ffff:10.0.0.6]:80']}}": (
        "f:1:12: pools.a: endpoints: expected each once, found 10.0.0.6:80 more than once"
    ),
    "{a: {drivers: [{haproxy: {backend: b}}, {failfast: {}}, {haproxy: {backend: b, eject: maint}}]}}": (
        "f:1:12: pools.a: drivers: expected each proxy once, found haproxy /run/haproxy/admin.sock b more than "
        "once"
    ),
    "{a: {endpoints: ['10.0.0.6:80']}, b: {endpoints: ['10.0.0.6:80']}}": (
        "f:1:1: pools.b.endpoints: expected endpoints of one pool each, found 10.0.0.6:80 in a"
    ),
    "{'a b': {}}": (
        "f:1:9: pools: expected a name of letters, digits and _ . : / - that begins with a letter or digit, at "
        "most 128, found 'a b'"
    ),
    "{a: {mode: open}}": (
        "f:1:19: pools.a.mode: expected one of off, disabled, metrics_only, monitor, enforce, forced_open, found "
        "'open'"
    ),
    "{a: {destination_rule: x, outlier_detection: {}}}": (
        "f:1:12: pools.a: expected outlier_detection or destination_rule, found both"
    ),
    "{a: {destination_rule: x, connection_pool: {}}}": (
        "f:1:12: pools.a: expected connection_pool or destination_rule, found both"
    ),
    "{a: {drivers: [{nginx: {include: /a}}]}, b: {drivers: [{nginx: {include: /a}}]}}": (
        "f:1:1: pools.b.drivers: expected a file or name of one pool each, found /a in a"
    ),
    "{a: {recovery: maybe}}": "f:1:23: pools.a.recovery: expected one of time, probe, found 'maybe'",
    "{a: {drivers: [{apache: {}}]}}": (
        "f:1:24: pools.a.drivers[0].apache: unknown key; known here: nginx, dns, haproxy, envoy, failfast"
    ),
}


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_what_is_wrong_has_its_place(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        pools(text)
    assert caught.value.complaints == [BAD[text]]


def detection(**keys: Any) -> Policy:
    return Policy(outlier_detection=OutlierDetection(**keys))


@pytest.mark.parametrize(
    ("policy", "endpoints", "said"),
    [
        (Policy(), 9, "max_ejection_percent of 10 is less than one of 9 endpoints; one of them is 12"),
        (Policy(), 2, "nothing is ever ejected: max_ejection_percent of 10 is less than one of 2 endpoints"),
        (Policy(), 1, "nothing is ever ejected: min_healthy is 1, of 1 endpoint"),
        (
            Policy(min_healthy=3, outlier_detection=OutlierDetection(max_ejection_percent=100)),
            3,
            "min_healthy is 3",
        ),
        (
            Policy(min_healthy=0, outlier_detection=OutlierDetection(max_ejection_percent=100)),
            1,
            "an outage by rule",
        ),
        (
            Policy(min_healthy=0, outlier_detection=OutlierDetection(always_eject_one_host=True)),
            1,
            "outage by rule",
        ),
        (Policy(), 0, "no endpoints: nothing is watched"),
        (Policy(), None, "max_ejection_percent of 10 ejects none of fewer than 10 endpoints"),
        (Policy(mode="forced_open"), 3, "all endpoints are refused"),
        (
            detection(enforcing_consecutive_gateway_failure=100, consecutive_5xx=3, max_ejection_percent=50),
            2,
            "consecutive_gateway_failure of 5 has no effect",
        ),
        (detection(base_ejection_time=1.0, max_ejection_percent=50), 2, "base_ejection_time of 1s is less than"),
    ],
)
def test_what_a_policy_does_by_itself(policy: Policy, endpoints: int | None, said: str) -> None:
    (message,) = warnings(policy, endpoints)
    assert said in message


@pytest.mark.parametrize(
    ("policy", "endpoints"),
    [
        (Policy(), 10),
        (Policy(mode="off"), 1),
        (detection(max_ejection_percent=50), 2),
        (detection(always_eject_one_host=True), 2),
        (detection(max_ejection_percent=100), 3),
        (detection(max_ejection_percent=100), None),
    ],
)
def test_nothing_to_say(policy: Policy, endpoints: int | None) -> None:
    assert list(warnings(policy, endpoints, ConnectionPool(max_requests_per_connection=1000))) == []


def test_how_many_may_be_out() -> None:
    assert [most_out(Policy(), hosts) for hosts in (0, 1, 9, 10, 19, 20)] == [0, 0, 0, 1, 1, 2]
    assert [most_out(detection(max_ejection_percent=100), hosts) for hosts in (0, 1, 3)] == [0, 0, 2]


def test_a_rule_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rule.yaml"
    path.write_text(STORY, encoding="utf-8")
    (member,) = members(
        pools(f"{{inventory: {{endpoints: ['10.0.0.6:5000'], destination_rule: {path}}}}}")
    ).values()
    assert (member.policy.outlier_detection.consecutive_5xx, member.policy.min_healthy) == (3, 0)
    assert not member.policy.outlier_detection.split_external_local_origin_errors
    assert member.connection_pool == ConnectionPool(max_connections=100, max_requests_per_connection=10)
    own = f"{{inventory: {{mode: enforce, min_healthy: 1, healthy_panic_threshold: 5, destination_rule: {path}}}}}"
    (member,) = members(pools(own)).values()
    assert (member.policy.min_healthy, member.policy.healthy_panic_threshold) == (1, 5)


def test_a_part_of_a_rule(tmp_path: Path) -> None:
    path = tmp_path / "rule.yaml"
    path.write_text(LARGE, encoding="utf-8")

    def rule(more: str = "") -> Policy:
        return members(pools(f"{{a: {{destination_rule: {{file: {path}{more}}}}}}}"))["a"].policy

    assert (rule().connect_timeout, rule().healthy_panic_threshold) == (0.25, 30)
    assert rule(", subset: v2").outlier_detection.consecutive_local_origin_failure == 2
    assert rule(", subset: v2, port: 9090").outlier_detection.interval == 90
    assert rule(", host: reviews, port: 9090").mode == "off"
    found = resolve(pools(f"{{a: {{destination_rule: {path}}}}}"))
    said = [warning.of("f", None) for warning in found.warnings]
    assert f"{path}:11:7: items[0].spec.trafficPolicy.loadBalancer: warning: not taken: the proxy balances" in said
    assert (
        "f:1:1: pools.a.destination_rule: warning: portLevelSettings of 9080, 9090 aren't taken; port: N takes one"
        in said
    )


def test_the_check_says_all_that_is_wrong_with_rules(tmp_path: Path) -> None:
    config, rule, broken = tmp_path / "c.yaml", tmp_path / "rule.yaml", tmp_path / "broken.yaml"
    rule.write_text(f"{STORY}---\n{STORY.replace('inventory', 'auth')}", encoding="utf-8")
    broken.write_text(STORY.replace("30s", "half a minute"), encoding="utf-8")
    config.write_text(
        f"pools:\n  a:\n    destination_rule: {rule}\n  b:\n    destination_rule: {broken}\n"
        f"  c:\n    destination_rule: {{file: {rule}, host: auth, subset: v9}}\n",
        encoding="utf-8",
    )
    result = CliRunner().invoke(app, ["config", "check", "--json", str(config)])
    hosts = ["inventory.prod.svc.cluster.local", "auth.prod.svc.cluster.local"]
    first, second, third = json.loads(result.stdout)["errors"]
    assert result.exit_code == 2
    which = f"expected one rule in {rule}, found 2 of {', '.join(hosts)}; host: NAME takes one"
    assert first == f"{config}:3:5: pools.a.destination_rule: {which}"
    place = "17:25: spec.trafficPolicy.outlierDetection.baseEjectionTime"
    assert second == (f"{broken}:{place}: expected a duration like 500ms, 10s or 1m30s, found 'half a minute'")
    which = f"expected a subset of {hosts[1]} (it has none), found 'v9'"
    assert third == f"{config}:7:5: pools.c.destination_rule: {which}"
    with pytest.raises(ConfigError, match=r"pools\.a\.destination_rule: expected one rule"):
        members(parse(config.read_bytes(), "f").pools)


def test_the_check_warns(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(CONTRACT.replace(b", max_ejection_percent: 100", b""))
    result = CliRunner().invoke(app, ["config", "check", str(path)])
    pool = (
        f"{path}:2:3: pools.inventory: warning: nothing is ever ejected: max_ejection_percent of 10 is less than "
    )
    assert (result.exit_code, result.stdout.splitlines()) == (
        0,
        [
            f"{pool}one of 2 endpoints; one of them is 50",
            f"{path}: ok",
        ],
    )


def test_the_check_warns_of_a_policy_that_nobody_puts_in_force(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "pools:\n  a: {mode: enforce, endpoints: ['10.0.0.6:80'], min_healthy: 0}\n"
        "  b: {mode: enforce, drivers: [{failfast: {}}]}\n  c: {mode: monitor}\n",
        encoding="utf-8",
    )
    said = CliRunner().invoke(app, ["config", "check", str(path)]).stdout
    (line,) = [line for line in said.splitlines() if "without drivers" in line]
    assert line == (
        f"{path}:2:3: pools.a: warning: mode enforce without drivers: who is out gets requests all the same"
    )
