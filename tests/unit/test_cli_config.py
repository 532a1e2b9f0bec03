# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from tidegate.cli.config import app
from tidegate.config import Config, parse, schema, to_builtins
from tidegate.errors import ConfigError

pytestmark = pytest.mark.unit
RUNNER = CliRunner()


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "bad.yaml"
    path.write_text("bogus: 1\ncontrol: {queue: 0}\n", encoding="utf-8")
    return path


def complaints(path: Path) -> list[str]:
    return [
        f"{path}:1:1: bogus: not known to this version; known here: {', '.join(Config.__struct_fields__)}",
        f"{path}:2:18: control.queue: expected 1 to 1024, found '0'",
    ]


def test_check_of_a_good_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.touch()
    result = RUNNER.invoke(app, ["check", str(path)])
    assert (result.exit_code, result.stdout) == (0, f"{path}: ok\n")
    result = RUNNER.invoke(app, ["check", "--json", str(path)])
    assert (result.exit_code, json.loads(result.stdout)) == (0, {"file": str(path), "errors": [], "warnings": []})


def test_check_of_a_bad_file_raises_every_complaint(bad: Path) -> None:
    result = RUNNER.invoke(app, ["check", str(bad)])
    assert isinstance(result.exception, ConfigError)
    assert result.exception.complaints == complaints(bad)
    assert result.stdout == ""


def test_check_of_a_bad_file_as_json(bad: Path) -> None:
    result = RUNNER.invoke(app, ["check", str(bad), "--json"])
    said = {"file": str(bad), "errors": complaints(bad), "warnings": []}
    assert (result.exit_code, json.loads(result.stdout)) == (2, said)


def test_check_reads_files_of_networks(tmp_path: Path) -> None:
    path, networks = tmp_path / "a.yaml", tmp_path / "allow"
    networks.write_text("10.0.0.0/8\n# none\n10.0.0.1/8\n", encoding="utf-8")
    path.write_text(f"rate_limit: {{allow_files: [{networks}]}}", encoding="utf-8")
    result = RUNNER.invoke(app, ["check", str(path), "--json"])
    (complaint,) = json.loads(result.stdout)["errors"]
    assert complaint.startswith(f"{networks}:3: expected a network like")
    assert result.exit_code == 2
    assert isinstance(RUNNER.invoke(app, ["check", str(path)]).exception, ConfigError)


def test_memory_of_a_config(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("rate_limit: {interfaces: [eth0], max_sources: 65536}", encoding="utf-8")
    result = RUNNER.invoke(app, ["memory", str(path), "--cpus", "4", "--json"])
    found = json.loads(result.stdout)
    maps = {row["map"]: row for row in found["maps"]}
    assert maps["ratelimit_sources"] == {
        "map": "ratelimit_sources",
        "maps": 1,
        "entries": 65536,
        "bytes": 65536 * 128 + 896,
        "most": 65536 * 128 + 896,
    }
    assert maps["ratelimit_counts"]["bytes"] == 312 + 48 * (8 + 4 * 16)
    assert found["bytes"] == sum(row["bytes"] for row in maps.values())
    assert found["most"] == sum(row["most"] for row in maps.values()) > found["bytes"]
    lines = RUNNER.invoke(app, ["memory", str(path), "--cpus", "4"]).stdout.splitlines()
    assert lines[-2].split()[-2:] == [str(found["bytes"]), str(found["most"])]
    assert len(lines) == len(maps) + 3


def test_show_without_a_file_is_all_defaults() -> None:
    result = RUNNER.invoke(app, ["show"])
    assert parse(result.stdout.encode(), "f") == Config()
    result = RUNNER.invoke(app, ["show", "--json"])
    assert json.loads(result.stdout) == to_builtins(Config())


def test_show_of_a_file_is_in_the_notation_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("services: {idle: 90s}\nmetrics: {listen: off}\n", encoding="utf-8")
    result = RUNNER.invoke(app, ["show", "-c", str(path)])
    shown = yaml.load(result.stdout, Loader=yaml.BaseLoader)
    assert shown["services"]["idle"] == "90s"
    assert shown["metrics"]["listen"] == "off"
    assert parse(result.stdout.encode(), "f").metrics.listen is None


def test_show_refuses_a_bad_file(bad: Path) -> None:
    assert isinstance(RUNNER.invoke(app, ["show", "-c", str(bad)]).exception, ConfigError)


@pytest.mark.parametrize("arguments", [["schema"], ["schema", "--json"]])
def test_schema_is_json(arguments: list[str]) -> None:
    assert json.loads(RUNNER.invoke(app, arguments).stdout) == schema()


@pytest.mark.parametrize("arguments", [["check"], ["show", "--nope"], ["bogus"]])
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    assert RUNNER.invoke(app, arguments).exit_code == 2
