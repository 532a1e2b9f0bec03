# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.config import Config, Listen, Tls, load, parse
from tidegate.config.keys import Control, Logging, Metrics, Services, Signals, TcpSignal
from tidegate.config.printer import schema, to_builtins, to_yaml
from tidegate.errors import ConfigError

pytestmark = pytest.mark.unit
EXAMPLE = Path(__file__).parents[2] / "deploy/tidegate.yaml"

BAD = {
    "signals: {intervall: 1s}": "f:1:11: signals.intervall: unknown key; did you mean interval?",
    "bogus: 1": "f:1:1: bogus: unknown key; known here: signals, services, metrics, control, logging",
    "signals:\n  interval: 10": (
        "f:2:13: signals.interval: expected a duration like 500ms, 10s or 1m30s, found '10'"
    ),
    "signals: {interval: 5ms}": "f:1:21: signals.interval: expected `float` >= 0.1, found '5ms'",
    "services: {max_rows: many}": "f:1:22: services.max_rows: expected a whole number, found 'many'",
    "services: {max_rows: 0x10}": "f:1:22: services.max_rows: expected a whole number, found '0x10'",
    "services: {max_rows: 0}": "f:1:22: services.max_rows: expected `int` >= 1, found '0'",
    "services: {max_rows: [1]}": "f:1:22: services.max_rows: expected one value, found a list",
    "services: 7": "f:1:11: services: expected keys with values, found '7'",
    "- a": "f:1:1: expected keys with values, found a list",
    "just text": "f:1:1: expected keys with values, found 'just text'",
    "metrics: {listen: 'localhost:80'}": (
        "f:1:19: metrics.listen: expected ADDRESS:PORT like 127.0.0.1:19469 or [::1]:19469, or off, "
        "found 'localhost:80'"
    ),
    "metrics: {tls: {cert: /a}}": "f:1:16: metrics.tls.key: missing",
    "logging: {level: off}": "f:1:18: logging.level: expected one of debug, info, warning, error, found 'off'",
    "logging: {level: info, level: info}": "f:1:24: logging.level: given twice",
    "a: b: c": "f:1:5: not YAML: mapping values are not allowed here",
    "signals: {": "f:1:11: not YAML: expected the node content, but found '<stream end>'",
    "---\n{}\n---\n{}": "f:4:1: expected one document, found another",
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
"""
    with pytest.raises(ConfigError) as caught:
        parse(text, "f")
    places = [complaint.split(": ")[0] for complaint in caught.value.complaints]
    assert places == ["f:2:3", "f:3:19", "f:5:11", "f:6:1", "f:7:18"]


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
    ("text", "seconds"), [("500ms", 0.5), ("10s", 10.0), ("1m", 60.0), ("0.5s", 0.5), ("1s500ms", 1.5)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse(f"signals: {{interval: {text}}}".encode(), "f").signals.interval == seconds


def test_bytes_that_are_not_utf_8_are_found() -> None:
    with pytest.raises(ConfigError, match=r"f:2:4: expected UTF-8, found byte 0xff"):
        parse(b"a: 1\nb: \xff", "f")


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.yaml: can't be read: No such file"):
        load(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="can't be read: Is a directory"):
        load(tmp_path)


@given(
    st.one_of(st.binary(max_size=200), st.text(alphabet="aigns:{}[]&*!- \n\t'\"0", max_size=60).map(str.encode))
)
def test_any_bytes_are_a_config_or_complaints(text: bytes) -> None:
    complaints: list[str] = []
    try:
        assert isinstance(parse(text, "f"), Config)
    except ConfigError as error:
        complaints = error.complaints
    assert all(re.match(r"f:\d+:\d+: ", complaint) for complaint in complaints)


milliseconds = st.integers(100, 60_000).map(lambda n: n / 1000)
names = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=20)
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
    assert parse(to_yaml(config).encode(), "f") == config


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
