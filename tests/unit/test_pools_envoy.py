# SPDX-License-Identifier: Apache-2.0
"""EDS files are read as Envoy reads them, and what is set in them changes nothing else."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.errors import DriverError
from tidegate.pools.envoy_admin import Cluster, allowed, worth_a_look
from tidegate.pools.envoy_assignment import OUT, Assignment

pytestmark = pytest.mark.unit
TYPE = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
FIRST, SECOND, THIRD = "10.0.0.6:5000", "10.0.0.7:5000", "[fd00::8]:5000"
#: Layouts that people and programs write.
YAML = """\
# é: the inventory
resources:
- "@type": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment
  cluster_name: inventory
  endpoints:
  - locality: {zone: on}  # not a boolean to Envoy
    lb_endpoints:
    - endpoint:
        address:
          socket_address: {address: 10.0.0.6, port_value: 0x1388}
      metadata: {filter_metadata: {é: {since: 2020-01-01, octal: 010, "yes": 1_000}}}
    - {endpoint: {address: {socket_address: {address: 10.0.0.7, port_value: "5000"}}}, health_status:   HEALTHY}
    -   loadBalancingWeight: 3
        healthStatus: 'UNKNOWN' # as found
        endpoint: { address: { socketAddress: { address: "fd00:0::8", portValue: 5000 } } }
"""


def inventory(text: str, cluster: str | None = None) -> Assignment:
    return Assignment("inventory.yaml", text.encode(), cluster)


def member(endpoint: str, status: str | None = None, **more: Any) -> dict[str, Any]:
    address, _, port = endpoint.rpartition(":")
    socket = {"address": address.strip("[]"), "port_value": int(port)}
    found = {"endpoint": {"address": {"socket_address": socket}}, **more}
    return found if status is None else {**found, "health_status": status}


def response(members: Iterable[dict[str, Any]], cluster: str = "inventory") -> dict[str, Any]:
    return {
        "version_info": "1",
        "resources": [{"@type": TYPE, "cluster_name": cluster, "endpoints": [{"lb_endpoints": [*members]}]}],
    }


def test_all_layouts_are_read() -> None:
    text = YAML.replace("0x1388", "5000")
    found = inventory(text)
    assert {endpoint: found.statuses(endpoint) for endpoint in found.places} == {
        FIRST: [None],
        SECOND: ["HEALTHY"],
        THIRD: ["UNKNOWN"],
    }
    assert found.cluster == "inventory"


def test_the_text_around_what_is_set_stays() -> None:
    text = YAML.replace("0x1388", "5000")
    before = inventory(text)
    after = before.with_out([FIRST, SECOND, THIRD], "UNHEALTHY")
    expected = (
        text.replace("    - endpoint:\n", "    - health_status: UNHEALTHY\n      endpoint:\n")
        .replace("health_status:   HEALTHY", "health_status:   UNHEALTHY")
        .replace("'UNKNOWN'", "UNHEALTHY")
    )
    assert after.text.decode() == expected
    assert all(after.is_out(endpoint) for endpoint in (FIRST, SECOND, THIRD))
    back = after.with_found({endpoint: before.statuses(endpoint) for endpoint in before.places})
    assert back.text.decode() == text.replace("'UNKNOWN'", "UNKNOWN")


def test_what_was_found_is_put_back_where_others_have_written() -> None:
    """Another program has kept our status, and put it behind the other keys."""
    rewritten = yaml.safe_dump(response([member(FIRST, "DRAINING", zz=1), member(SECOND, "DRAINING")]))
    found = inventory(rewritten).with_found({FIRST: [None]})
    assert found.statuses(FIRST) == ["UNKNOWN"], "what no status means"
    assert found.statuses(SECOND) == ["DRAINING"]


def test_what_is_out_stays_as_it_is() -> None:
    before = inventory(json.dumps(response([member(FIRST, "DRAINING"), member(SECOND, "2"), member(THIRD)])))
    assert before.is_out(FIRST)
    assert before.is_out(SECOND)
    assert before.with_out([FIRST, SECOND], "UNHEALTHY") is before
    assert before.with_out(["10.0.0.6:80"], "UNHEALTHY") is before


def test_an_endpoint_that_is_there_twice_is_out_at_both_places() -> None:
    before = inventory(yaml.safe_dump(response([member(FIRST), member(SECOND), member(FIRST, "DRAINING")])))
    assert not before.is_out(FIRST)
    after = before.with_out([FIRST], "UNHEALTHY")
    assert after.statuses(FIRST) == ["UNHEALTHY", "DRAINING"]
    assert after.carries(FIRST, "UNHEALTHY", [None, "DRAINING"])
    assert not after.carries(FIRST, "UNHEALTHY", ["DRAINING", "DRAINING"]), "nothing of it was ours"
    assert not before.carries(FIRST, "UNHEALTHY", [None, "DRAINING"])
    assert after.with_found({FIRST: [None, "DRAINING"]}).text == before.text


def test_what_an_alias_stands_for_is_written_out() -> None:
    text = f"""\
resources:
- "@type": {TYPE}
  cluster_name: inventory
  endpoints:
  - lb_endpoints:
    - &shared
      endpoint: {{address: {{socket_address: {{address: 10.0.0.6, port_value: 5000}}}}}}
  - locality: {{zone: b, region: "on"}}
    lb_endpoints: [*shared, {{endpoint: {{address: {{socket_address: {{address: 10.0.0.7, port_value: 5000}}}}}}}}]
- *else
""".replace("- *else\n", "")
    before = inventory(text)
    assert before.statuses(FIRST) == [None, None]
    after = before.with_out([FIRST], "UNHEALTHY")
    assert after.statuses(FIRST) == ["UNHEALTHY", "UNHEALTHY"]
    assert after.statuses(SECOND) == [None]
    assert "zone: b" in after.text.decode()
    assert 'region: "on"' in after.text.decode()


def test_json_is_written_as_json() -> None:
    tree = response([member(FIRST, metadata={"x": "\U0001f980", "y": 1.5, "z": 12345678901234567890})])
    before = Assignment("inventory.json", json.dumps(tree).encode(), None)
    after = json.loads(before.with_out([FIRST], "DRAINING").text)
    tree["resources"][0]["endpoints"][0]["lb_endpoints"][0]["health_status"] = "DRAINING"
    assert after == tree


BROKEN = {
    "no YAML": "resources: [",
    "nothing": "",
    "no list 'resources'": "resource: []",
    "0 clusters": "resources: [{'@type': x}]",
    "two documents": "resources: []\n---\nresources: []",
    "a key is given twice": "resources: []\nresources: []",
    "0 times": yaml.safe_dump(response([], "other")),
    "both": yaml.safe_dump(response([{**member(FIRST), "healthStatus": "HEALTHY", "health_status": "HEALTHY"}])),
    "where Envoy has": yaml.safe_dump(response([member(FIRST, "SICK")])),
    "no list of keys": f"resources: [{{'@type': {TYPE}, cluster_name: inventory, endpoints: {{}}}}]",
    "an alias stands for": "resources: &a [{'@type': x, y: *a}]",
    "aliases of aliases": "a: &a [x, x, x, x]\n"
    + "\n".join(f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 8)}]" for i in range(8)),
    "depth": "- " * 5000,
    "a key that is a word": "? [a]\n: b",
    "byte order mark": "\ufeffresources: []",
}  # fmt: skip


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_what_is_no_eds_file_is_an_error(text: str) -> None:
    with pytest.raises(DriverError, match=r"inventory\.yaml: expected an EDS file") as caught:
        inventory(text, "inventory" if "other" in text else None)
    assert not caught.value.away


def test_a_name_without_text_behind_it_is_an_error() -> None:
    for name in ("inventory.pb", "inventory", "inventory.yaml.new"):
        with pytest.raises(DriverError, match=r"expected a file \.yaml, \.yml or \.json"):
            Assignment(name, YAML.encode(), None)
    for text in (b"\xff", b"[" * 100_000, b'{"resources": NaN}', b'{"a": 1, "a": 1}'):
        with pytest.raises(DriverError):
            Assignment("inventory.json", text, None)


#: Words that mean something else to some reader of YAML, end a scalar, or look like an address.
HOSTILE = (
    "no", "on", "null", "~", "010", "1:30", "1e3", "0x10", "2020-01-01", "<<", "=", "- a", "# x", "a: b", "&a",
    "*a", "!!str x", "health_status: UNHEALTHY", "'", '"', "\\", "10.0.0.6 ", "::ffff:10.0.0.6", "10.0.0.6:5000",
    "é", "\U0001f980", "a\nb", "\ta", "", " ", "%", "@", "`", "}", "]", ",", "UNHEALTHY", "? x", "| x",
    "\x85", "\u2028",
)  # fmt: skip
WORD = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=8))
STATUS = st.sampled_from([None, "UNKNOWN", "HEALTHY", "UNHEALTHY", "DRAINING", "TIMEOUT", "DEGRADED"])
ADDRESS = st.one_of(st.sampled_from(("10.0.0.6", "10.0.0.7", "fd00::8", "::ffff:10.0.0.6")), WORD)
PORT = st.one_of(st.just(5000), WORD)
#: Address, port, status and whether that stands first, and what else is said.
MEMBER = st.tuples(ADDRESS, PORT, STATUS, st.booleans(), WORD, WORD | st.integers() | st.none())
LAYOUT = st.sampled_from(["block", "flow", "mixed", "json", "quoted"])


def laid_out(tree: Any, layout: str) -> str:
    """Return a text of the tree."""
    if layout == "json":
        return json.dumps(tree)
    style = {"flow": True, "block": False}.get(layout)
    quotes = '"' if layout == "quoted" else None
    made = yaml.dump(
        tree, Dumper=yaml.CSafeDumper, default_flow_style=style, default_style=quotes, sort_keys=False, width=40
    )
    return str(made)


def read(text: bytes, layout: str) -> Any:
    return json.loads(text) if layout == "json" else yaml.load(text, yaml.CSafeLoader)


def tree_of(members: Iterable[Any]) -> Any:
    found = []
    for address, port, status, is_first, key, value in members:
        at = {"address": {"socket_address": {"address": address, "port_value": port}}}
        health = {} if status is None else {"health_status": status}
        other = {"endpoint": at, "metadata": {key: value}}
        found.append({**health, **other} if is_first else {**other, **health})
    return response(found)


def ports(tree: Any) -> list[dict[str, Any]]:
    return list(tree["resources"][0]["endpoints"][0]["lb_endpoints"])


@settings(max_examples=1000, deadline=None)
@given(st.lists(MEMBER, min_size=1, max_size=3), LAYOUT, st.sampled_from((FIRST, SECOND, THIRD)))
def test_nothing_but_the_endpoints_own_status_changes(members: Any, layout: str, endpoint: str) -> None:
    tree = tree_of(members)
    text = laid_out(tree, layout)
    tree = read(text.encode(), layout)  # what quotes make of numbers
    name = "inventory.json" if layout == "json" else "inventory.yaml"
    before = Assignment(name, text.encode(), None)
    after = before.with_out([endpoint], "UNHEALTHY")
    expected = copy.deepcopy(tree)
    for place in before.places.get(endpoint, ()):
        if place.status not in OUT:
            number = place.path[-1]
            assert isinstance(number, int)
            ports(expected)[number]["health_status"] = "UNHEALTHY"
            assert str(ports(tree)[number]["endpoint"]["address"]["socket_address"]["port_value"]) == "5000"
    assert read(after.text, layout) == expected
    for other in before.places.keys() - {endpoint}:
        assert after.statuses(other) == before.statuses(other)
    back = after.with_found({endpoint: before.statuses(endpoint)})
    assert [status or "UNKNOWN" for status in back.statuses(endpoint)] == [
        status or "UNKNOWN" for status in before.statuses(endpoint)
    ]


def test_how_many_may_be_out_before_panic() -> None:
    assert [allowed(total, 50.0) for total in (0, 1, 2, 3, 4, 5, 10)] == [0, 0, 1, 1, 2, 2, 5]
    assert allowed(3, 0.0) == 3
    assert allowed(3, 100.0) == 0


def test_what_is_worth_a_look() -> None:
    defaults = Cluster("inventory", "inventory", "/x", None, 50.0)
    (panic,) = worth_a_look(defaults, 3)
    assert "of 3 endpoints at most 1 may be out; with 2 out Envoy panics and sends to all 3" in panic
    assert "common_lb_config: {healthy_panic_threshold: {value: 0}}" in panic
    assert worth_a_look(defaults._replace(panic=0.0), 3) == []
