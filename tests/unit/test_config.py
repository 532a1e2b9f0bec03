# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from tidegate.config import Config, Listen, Tls, load, parse, schema, to_builtins, to_yaml
from tidegate.config.keys import Control, Logging, Metrics, Services, Signals, TcpSignal
from tidegate.config.reader import parse_as
from tidegate.config.shapes import shape_of
from tidegate.config.values import Duration, Rate, Section, Size
from tidegate.errors import ConfigError

pytestmark = pytest.mark.unit
EXAMPLE = Path(__file__).parents[2] / "deploy/tidegate.yaml"

FRAGMENTS = [
    "signals", "metrics", "tls", "cert", "listen", ": ", "{", "}", "[", "]", ", ", "\n", "  ", "- ", "&a ", "*a",
    "<<", "? ", "!!int ", "!x ", "~", "off", "'", '"', "\\U", "\\u", "FFFFFFFF", "d800", "%YAML ", "---", "1.",
]  # fmt: skip

KEYS = (
    "signals, services, metrics, control, advice, locations, residency, rate_limit, pools, breaker, privacy, "
    "audit, logging"
)
KNOWN = f"not known to this version; known here: {KEYS}"
LISTEN = "metrics.listen: expected ADDRESS:PORT like 127.0.0.1:19469 or [::1]:19469, or off, found"

BAD = {
    "signals: {intervall: 1s}": "f:1:11: signals.intervall: unknown key; did you mean interval?",
    "bogus: 1": f"f:1:1: bogus: {KNOWN}",
    "kubernetes:\n  a: {}": f"f:1:1: kubernetes: {KNOWN}",
    "service: {}": "f:1:1: service: not known to this version; did you mean services?",
    "\ufeff\u00e9: 1": f"f:1:1: é: {KNOWN}",
    '"\\e[2J": 1': f"f:1:1: '\\x1b[2J': {KNOWN}",
    "signals:\n  interval: 10": (
        "f:2:13: signals.interval: expected a duration like 500ms, 10s or 1m30s, found '10'"
    ),
    "signals: {interval: 5ms}": "f:1:21: signals.interval: expected 100ms to 1m, found '5ms'",
    "services: {max_rows: many}": "f:1:22: services.max_rows: expected a whole number, found 'many'",
    "services: {max_rows: 0}": "f:1:22: services.max_rows: expected 1 to 1000000, found '0'",
    "services: {max_rows: [1]}": "f:1:22: services.max_rows: expected one value, found a list",
    "services: 7": "f:1:11: services: expected keys with values, found '7'",
    "- a": "f:1:1: expected keys with values, found a list",
    "just text": "f:1:1: expected keys with values, found 'just text'",
    "metrics: {listen: 'localhost:80'}": f"f:1:19: {LISTEN} 'localhost:80'",
    "metrics: {tls: {cert: /etc/passwd}}": "f:1:16: metrics.tls.key: missing",
    "metrics:\n  tls:\n    cert: /etc/passwd\n    key: ~": "f:4:5: metrics.tls.key: expected a value, found none",
    "metrics: {tls: {cert: /etc/passwd, key: /no/where}}": (
        "f:1:41: metrics.tls.key: expected a file, found none at '/no/where': No such file or directory"
    ),
    "metrics: {tls: {cert: /etc/passwd, key: /etc}}": (
        "f:1:41: metrics.tls.key: expected a file, found a directory at '/etc'"
    ),
    "metrics: {tls: {cert: /etc/passwd, key: ''}}": (
        "f:1:41: metrics.tls.key: expected the path of a file, found ''"
    ),
    "metrics: {listen: '[127.0.0.1]:80'}": f"f:1:19: {LISTEN} '[127.0.0.1]:80'",
    "metrics: {listen: 12:30}": f"f:1:19: {LISTEN} '12:30'",
    "metrics: {listen: '127.0.0.1:65536'}": f"f:1:19: {LISTEN} '127.0.0.1:65536'",
    "services: {host_root: host}": "f:1:23: services.host_root: expected an absolute path, found 'host'",
    "control: {socket: run/a.sock}": "f:1:19: control.socket: expected an absolute path, found 'run/a.sock'",
    f"control: {{socket: /{'x' * 107}}}": (
        "f:1:19: control.socket: expected a path of at most 107 bytes, found 108"
    ),
    'control: {socket: "/a\\0"}': (
        "f:1:19: control.socket: expected text without NUL and lone surrogates, found '/a\\x00'"
    ),
    'control: {socket: "/\\ud83d\\ude00"}': (
        "f:1:19: control.socket: expected text without NUL and lone surrogates, found '/\\ud83d\\ude00'"
    ),
    "signals: {interval: \u0661s}": (
        "f:1:21: signals.interval: expected a duration like 500ms, 10s or 1m30s, found '\u0661s'"
    ),
    f"services: {{idle: {'9' * 70}h}}": (
        f"f:1:18: services.idle: expected a duration like 500ms, 10s or 1m30s, found '{'9' * 57}'..."
    ),
    "services: {idle: 999ms}": "f:1:18: services.idle: expected at least 1s, found '999ms'",
    "services: {max_rows: 0o17}": "f:1:22: services.max_rows: expected a whole number, found '0o17'",
    "services: {max_rows: 12:30}": "f:1:22: services.max_rows: expected a whole number, found '12:30'",
    "services: {max_rows: 1_000}": "f:1:22: services.max_rows: expected a whole number, found '1_000'",
    "services: {max_rows: ''}": "f:1:22: services.max_rows: expected a whole number, found ''",
    "services: ''": "f:1:11: services: expected keys with values, found ''",
    "control: {queue: !env Q}": "f:1:18: control.queue: expected no tag, found '!env'",
    "control: {queue: !!python/name:a.b 3}": (
        "f:1:18: control.queue: expected no tag, found 'tag:yaml.org,2002:python/name:a.b'"
    ),
    "control: {!env queue: 3}": "f:1:11: control.queue: expected no tag, found '!env'",
    "? [a]\n: 1": "f:1:3: expected a key, found a list",
    "control: &a {<<: *a}": "f:1:14: control.<<: merges itself",
    "control: {<<: [3]}": "f:1:16: control.<<: expected keys with values, found '3'",
    "control: &c {queue: 3}\nservices: *c": (
        "f:1:14: services.queue: unknown key; known here: max_rows, max_endpoints, idle, host_root"
    ),
    "logging: {level: off}": "f:1:18: logging.level: expected one of debug, info, warning, error, found 'off'",
    "logging: {level: info, level: info}": "f:1:24: logging.level: given twice, first at 1:11",
    "a: b: c": "f:1:5: not YAML: mapping values are not allowed here",
    "signals: {": "f:1:11: not YAML: expected the node content, but found '<stream end>'",
    "---\n{}\n---\n{}": "f:3:1: expected one document, found another",
    "a\r\n\0": "f:2:1: not YAML: character U+0000 is not allowed",
    '"\\UFFFFFFFF": 1': "f:1:4: not YAML: number out of range",
    f"%YAML 1.{'9' * 5000}\n---\n": "f:1:9: not YAML: number out of range",
    "[" * 5000: "f:1:65: not YAML: nested deeper than 64 levels",
    "a: 'x": "f:1:6: not YAML: found unexpected end of stream",
    "signals:\n\tinterval: 1s": "f:2:1: not YAML: found character '\\t' that cannot start any token",
    "signals: *x": "f:1:10: not YAML: found undefined alias 'x'",
}


@pytest.mark.parametrize(("text", "complaint"), BAD.items())
def test_complaint_with_line_and_column(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text.encode(), "f")
    assert caught.value.complaints == [complaint]
    assert caught.value.exit_code == 2


def test_all_complaints_at_once_in_the_order_of_the_file() -> None:
    text = b"""\
signals:
  intervall: 1s
  tcp: {max_rows: 3}
metrics:
  listen: nowhere
bogus: 1
control: {queue: -1}
---
{}
"""
    with pytest.raises(ConfigError) as caught:
        parse(text, "f")
    places = [complaint.split(": ")[0] for complaint in caught.value.complaints]
    assert places == ["f:2:3", "f:3:19", "f:5:11", "f:6:1", "f:7:18", "f:8:1"]


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "signals:\n", "{}", "signals: {tcp: ~}", "metrics: {tls: null}"]
)
def test_what_is_left_out_has_its_default(text: str) -> None:
    assert parse(text.encode(), "f") == Config()


def test_words_are_words_and_not_booleans_of_yaml() -> None:
    assert parse(b"metrics: {listen: off}", "f").metrics.listen is None
    assert parse(b"metrics: {listen: '[::1]:1'}", "f").metrics.listen == Listen("::1", 1)
    assert parse(b"control: {socket: '/run/1:20'}", "f").control.socket == "/run/1:20"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("10s", 10.0), ("1m", 60.0), ("0.5s", 0.5), ("1s500ms", 1.5), ("'2s'", 2.0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse(f"signals: {{interval: {text}}}".encode(), "f").signals.interval == seconds


def test_bytes_that_are_not_utf_8_are_found() -> None:
    with pytest.raises(ConfigError, match=r"f:2:4: expected UTF-8, found byte 0xff"):
        parse(b"a: 1\nb: \xff", "f")
    with pytest.raises(ConfigError, match=r"f:1:4: expected UTF-8, found byte 0xff"):
        parse(b"\xef\xbb\xbf\xc3\xa9: \xff", "f")


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.yaml: can't be read: No such file"):
        load(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="can't be read: Is a directory"):
        load(tmp_path)


def test_file_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidegate.config.reader._LARGEST", 1 << 10)
    with pytest.raises(ConfigError, match="/dev/zero: expected at most 1KiB, found more"):
        load(Path("/dev/zero"))


def test_files_of_another_host() -> None:
    text = b"metrics: {tls: {cert: /no/a, key: /no/b}}"
    assert parse(text, "f", check_files=False).metrics.tls == Tls(cert="/no/a", key="/no/b")


def test_merged_keys_give_way_to_own_ones_and_to_earlier_sources() -> None:
    text = b"control: {max_clients: 1, <<: [{queue: 2, max_clients: 7}, {queue: 3, socket: /a}]}"
    assert parse(text, "f").control == Control(max_clients=1, queue=2, socket="/a")


def test_merges_of_merges_take_no_time() -> None:
    levels = "".join(f"{{<<: [&a{i} " for i in range(20)) + "{queue: 5}"
    text = levels + "".join(f", *a{i}]}}" for i in reversed(range(20)))
    assert parse(f"control: {text}".encode(), "f").control.queue == 5


@given(
    st.one_of(
        st.binary(max_size=200),
        st.text(alphabet="aigns:{}[]&*!- \n\t'\"0<%\\Uu", max_size=60).map(str.encode),
        st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join).map(str.encode),
    )
)
def test_any_bytes_are_a_config_or_complaints(text: bytes) -> None:
    complaints: list[str] = []
    try:
        assert isinstance(parse(text, "f"), Config)
    except ConfigError as error:
        complaints = error.complaints
    assert all(re.match(r"f:\d+:\d+: ", complaint) for complaint in complaints)


milliseconds = st.integers(100, 60_000).map(lambda n: n / 1000)
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=25)
configs = st.builds(
    Config,
    signals=st.builds(
        Signals, interval=milliseconds, tcp=st.builds(TcpSignal, max_rows=st.integers(64, 1_048_576))
    ),
    services=st.builds(Services, max_rows=st.integers(1, 10**6), idle=st.integers(1, 10**6).map(float)),
    metrics=st.builds(
        Metrics,
        listen=st.one_of(st.none(), st.just(Listen("::1", 0)), st.just(Listen("10.0.0.1", 65535))),
        tls=st.one_of(st.none(), st.builds(Tls, cert=names, key=names, client_ca=st.one_of(st.none(), names))),
    ),
    control=st.builds(Control, socket=names.map(lambda s: "/" + s), queue=st.integers(1, 1024)),
    logging=st.builds(
        Logging, level=st.sampled_from(["debug", "error"]), format=st.sampled_from(["text", "json"])
    ),
)


@given(configs)
def test_what_is_printed_reads_back_the_same(config: Config) -> None:
    assert parse(to_yaml(config).encode(), "f", check_files=False) == config


def test_example_is_all_defaults_and_names_every_key() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    assert load(EXAMPLE) == Config()
    keys = re.findall(r"^ *(?:# )?(\w+):", text, re.MULTILINE)

    def names(node: dict[str, object]) -> list[str]:
        properties = node.get("properties", {})
        assert isinstance(properties, dict)
        return [n for key, inner in properties.items() for n in (key, *names(inner))]

    assert sorted(keys) == sorted(names(schema()))


def test_schema_and_effective_config_are_json() -> None:
    assert json.loads(json.dumps(schema()))["properties"]["signals"]["properties"]["interval"]["default"] == "1s"
    assert json.loads(json.dumps(to_builtins(Config())))["metrics"]["listen"] == "127.0.0.1:19469"


class Nginx(Section, frozen=True, kw_only=True, tag="nginx"):
    include: Annotated[str, Meta(pattern="^/")]


class FailFast(Section, frozen=True, kw_only=True, tag="failfast"):
    lease: Duration = 5.0


class Bucket(Section, frozen=True, kw_only=True):
    rate: Rate
    burst: Annotated[Size, Meta(ge=1)] = 1024

    def __post_init__(self) -> None:
        if self.burst < self.rate:
            raise ValueError("expected a burst of at least one second")


class Later(Section, frozen=True, kw_only=True):
    names: Annotated[list[str], Meta(max_length=3)] = msgspec.field(default_factory=list)
    ports: dict[str, Bucket] = msgspec.field(default_factory=dict)
    drivers: tuple[Nginx | FailFast, ...] = ()
    only: list[FailFast] = msgspec.field(default_factory=list)
    default: Bucket | None = None
    either: int | list[int] | Bucket = 1
    level: Literal[1, 2] = 1
    share: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    persist: bool = False


class Unreadable(Section, frozen=True, kw_only=True):
    key: complex = 0j


LATER = b"""\
names: [off, '443', 1:20]
ports: {443: {rate: 50/s, burst: 100}, 80: {rate: 100/m}}
drivers:
  - nginx: {include: /etc/nginx/a.conf}
  - failfast:
only: [{failfast: {lease: 1m}}]
default: {rate: 0.5/s, burst: 1GiB}
either: [1, 2]
level: 2
persist: true
share: 1e-2
"""


def test_a_section_is_declared_by_its_struct_alone() -> None:
    later = parse_as(Later, LATER, "f")
    assert later == Later(
        names=["off", "443", "1:20"],
        ports={"443": Bucket(rate=50.0, burst=100), "80": Bucket(rate=100 / 60)},
        drivers=(Nginx(include="/etc/nginx/a.conf"), FailFast()),
        only=[FailFast(lease=60.0)],
        default=Bucket(rate=0.5, burst=1 << 30),
        either=[1, 2],
        level=2,
        persist=True,
        share=0.01,
    )
    assert parse_as(Later, to_yaml(later).encode(), "f") == later
    assert parse_as(Later, b"either: {rate: 1/s}", "f").either == Bucket(rate=1.0)


BAD_LATER = {
    "names: [a, [b]]": "f:1:12: names[1]: expected one value, found a list",
    "names: [a, b, c, d]": "f:1:8: names: expected 0 to 3 entries, found 4",
    "names: a": "f:1:8: names: expected a list, found 'a'",
    "drivers: [{nginx: {}}]": "f:1:19: drivers[0].nginx.include: missing",
    "drivers: [{nginx: 3}]": "f:1:19: drivers[0].nginx: expected keys with values, found '3'",
    "drivers: [{nginx: {include: a}}]": (
        "f:1:29: drivers[0].nginx.include: expected text that matches ^/, found 'a'"
    ),
    "drivers: [{ngnix: {}}]": "f:1:12: drivers[0].ngnix: unknown key; did you mean nginx?",
    "drivers: [{}]": "f:1:11: drivers[0]: expected one of nginx, failfast, found 0 keys",
    "drivers: [nginx]": "f:1:11: drivers[0]: expected one of nginx, failfast over its keys, found 'nginx'",
    "ports: {443: {rate: 1}}": "f:1:21: ports.443.rate: expected a rate like 10/s or 100/m, found '1'",
    "ports: {443: }": "f:1:13: ports.443.rate: missing",
    "default: {rate: 9/s, burst: 2}": "f:1:10: default: expected a burst of at least one second",
    "default: {rate: 0/s, burst: 0kB}": "f:1:29: default.burst: expected at least 1, found '0kB'",
    "share: 1": "f:1:8: share: expected more than 0 and less than 1, found '1'",
    "share: .nan": "f:1:8: share: expected a number, found '.nan'",
    "persist: yes": "f:1:10: persist: expected true or false, found 'yes'",
    "level: 3": "f:1:8: level: expected one of 1, 2, found '3'",
}


@pytest.mark.parametrize(("text", "complaint"), BAD_LATER.items())
def test_complaints_of_lists_maps_and_unions(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_as(Later, text.encode(), "f")
    assert caught.value.complaints == [complaint]


def test_a_type_without_a_notation_is_a_mistake_of_ours() -> None:
    with pytest.raises(TypeError, match="no notation"):
        schema(Unreadable)
    with pytest.raises(TypeError, match="may hold one scalar"):
        shape_of(int | str)
    with pytest.raises(TypeError, match="may hold one scalar"):
        shape_of(Bucket | FailFast | dict[str, int])


def test_schema_of_lists_maps_and_unions() -> None:
    keys = schema(Later)["properties"]
    assert keys["drivers"]["items"]["properties"].keys() == {"nginx", "failfast"}
    assert keys["drivers"]["items"]["maxProperties"] == 1
    assert keys["ports"]["additionalProperties"]["required"] == ["rate"]
    assert keys["names"] == {
        "type": ["array", "null"], "items": {"type": "string"}, "maxItems": 3, "default": []
    }  # fmt: skip
    assert keys["level"] == {"enum": [1, 2, None], "default": 1}
