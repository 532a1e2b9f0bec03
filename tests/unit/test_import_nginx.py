# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tidegate.cli.main import app
from tidegate.config import parse
from tidegate.errors import ConfigError
from tidegate.importers.nginx import Read, read
from tidegate.importers.proxied import as_json, lines

pytestmark = pytest.mark.unit

STORY = """\
limit_req_zone $binary_remote_addr zone=a:10m rate=10r/s;
upstream auth_service { server 10.0.0.5:4000; keepalive 32; }
upstream inventory_service { server 10.0.0.6:5000; keepalive 32; }
server {
    listen 80;
    location /auth/ {
        limit_req zone=a burst=20 nodelay;
        proxy_pass http://auth_service;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
    }
    location /inventory/ {
        proxy_pass http://inventory_service;
    }
}
"""


def _read(directory: Path, text: str) -> Read:
    file = directory / "nginx.conf"
    file.write_text(text, encoding="utf-8")
    found = read(file)
    parse("\n".join(lines(found, str(file))).encode(), "printed")
    return found


def _json(directory: Path, text: str) -> dict[str, Any]:
    return as_json(_read(directory, text))


def test_the_story(tmp_path: Path) -> None:
    file = tmp_path / "nginx.conf"
    file.write_text(STORY, encoding="utf-8")
    result = CliRunner().invoke(app, ["import", "nginx", "--json", str(file)])
    found = json.loads(result.stdout)
    assert {name: pool["endpoints"] for name, pool in found["pools"].items()} == {
        "auth_service": ["10.0.0.5:4000"],
        "inventory_service": ["10.0.0.6:5000"],
    }
    assert found["rate_limit"] == {"ports": {"80": {"syn": {"rate": "10r/s", "burst": 20}}}}
    assert found["not_taken"] == []
    assert [each.removeprefix(str(file))[:26] for each in found["findings"]] == [
        ":7: location /auth/: a rej",
        ":13: location /inventory/:",
        ":13: location /inventory/:",
    ]
    assert 'lacks proxy_http_version 1.1 and proxy_set_header Connection ""' in found["findings"][1]
    assert "limit_req_status 429" in found["findings"][0]
    assert found["findings"][2].endswith("has no limit_req")
    printed = "\n".join(lines(_read(tmp_path, STORY), "nginx.conf"))
    assert printed.count("keepalive 32") == 2


@pytest.mark.parametrize(
    ("outer", "inner", "finding"),
    [
        ('proxy_http_version 1.1; proxy_set_header Connection "";', "", False),
        ('proxy_http_version 1.1; proxy_set_header Connection "";', "proxy_set_header Host $host;", True),
        ("proxy_set_header Host $host;", 'proxy_http_version 1.1; proxy_set_header Connection "";', False),
        ('proxy_http_version 1.1; proxy_set_header Connection "";', "proxy_http_version 1.0;", True),
    ],
)
def test_a_level_with_headers_inherits_none(tmp_path: Path, outer: str, inner: str, finding: bool) -> None:
    text = (
        f"http {{ {outer} upstream u {{ server 10.0.0.1; keepalive 4; }} server {{ location / {{ "
        f"location /in {{ {inner} proxy_pass http://u; }} }} }} }}"
    )
    assert any("keep-alive" in each for each in _read(tmp_path, text).findings) is finding


def test_what_has_no_equivalent_is_said(tmp_path: Path) -> None:
    text = """
http {
  set_real_ip_from 10.0.0.0/8;
  limit_req_zone $http_x zone=k:1m rate=30r/m;
  limit_conn_zone $binary_remote_addr zone=c:1m;
  upstream u { server unix:/run/u.sock; server app.example:80 weight=3; server [fd00::1]:81 backup; }
  server { listen 8080; limit_conn c 5; location / { limit_req zone=k; proxy_pass http://$name; } }
}
stream { upstream 123 { server 10.0.0.9:53; } server { listen 53 udp; proxy_pass 123; } }
"""
    found = _json(tmp_path, text)
    assert {name: pool["endpoints"] for name, pool in found["pools"].items()} == {
        "u": ["[fd00::1]:81"],
        "123": ["10.0.0.9:53"],
    }
    assert found["rate_limit"] == {"ports": {}}
    said = "\n".join(found["not_taken"])
    for part in (
        "unix:",
        "app.example",
        "weight=3",
        "backup",
        "$http_x",
        "limit_conn;",
        "set_real_ip",
        "variables",
    ):
        assert part in said


#: Valid for nginx (nginx -t), with what real ones have.
REAL = """
user www-data;
events { worker_connections 768; }
http {
  limit_req_zone $binary_remote_addr zone=a:10m rate=5r/m;
  upstream web { zone web 64k; least_conn; server 127.0.0.1:8080 weight=5 max_fails=3; keepalive 16; }
  map $http_upgrade $cu { default upgrade; '' close; }
  server {
    listen 127.0.0.1:9080; listen [::1]:9443; listen unix:/run/x.sock;
    limit_req zone=a burst=5; limit_req_status 429;
    location / {
      proxy_pass http://WEB/;
      location ~ "^/[a-z]{2,4}$" {
        proxy_http_version 1.1; proxy_set_header Connection $cu; proxy_pass http://web;
      }
      if ($request_uri ~* "/[a-z0-9_-]+/(.*)") { proxy_pass http://localhost:80/$1; }
    }
  }
}
"""


def test_a_config_like_real_ones(tmp_path: Path) -> None:
    found = _json(tmp_path, REAL)
    assert found["pools"]["web"]["endpoints"] == ["127.0.0.1:8080"]
    limit = {"syn": {"rate": "5/m", "burst": 5}}
    assert found["rate_limit"] == {"ports": {"9080": limit, "9443": limit}}
    assert [("proxy_http_version" in each, "Connection" in each) for each in found["findings"]] == [
        (True, True),
        (False, True),
    ]


def test_a_limit_above_servers_is_theirs_unless_they_have_their_own(tmp_path: Path) -> None:
    text = """
http {
  limit_req zone=a;
  limit_req_zone $binary_remote_addr zone=a:1m rate=2r/s;
  limit_req_zone $binary_remote_addr zone=b:1m rate=7r/s;
  server { listen 81; }
  server { listen 82; limit_req zone=b burst=3; }
}
"""
    assert _json(tmp_path, text)["rate_limit"]["ports"] == {
        "81": {"syn": {"rate": "2r/s"}},
        "82": {"syn": {"rate": "7r/s", "burst": 3}},
    }


def test_includes_are_followed_by_patterns(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "a.conf").write_text("upstream a { server 10.0.0.1:1; }", encoding="utf-8")
    (tmp_path / "conf.d" / "b.conf").write_text("upstream b { server 10.0.0.2:2; }", encoding="utf-8")
    found = _read(tmp_path, "http { include conf.d/*.conf; }")
    assert [upstream.name for upstream in found.upstreams] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("http {\n", ":1: unexpected end of file"),
        ("http {\n}}\n", ':2: unexpected "}"'),
        ("\ninclude nginx.conf;\n", ":2: more than 500 includes"),
        ("\ninclude none.conf;\n", ":2: can't be read"),
        ("include a\0*;", ":1: expected a file"),
        ("user root", ":1: unexpected end of file"),
    ],
)
def test_errors_name_their_place(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "nginx.conf"
    with pytest.raises(ConfigError) as error:
        _read(tmp_path, text)
    assert f"{file}{message}" in str(error.value)


_WORDS = st.sampled_from(
    ["server", "listen", "upstream", "location", "limit_req", "limit_req_zone", "zone=a:1m", "zone=a", "rate=9r/m",
     "proxy_pass", "http://a", "a", "$binary_remote_addr", "10.0.0.1:80", "[::1]:9", "true", "1.5", "99999",
     "keepalive", "{", "{", "}", "}", ";", ";", ";", "burst=7", "burst=x", '""', "\u00e4", "if", "http"]
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_WORDS, max_size=30))
def test_any_words_are_a_config_or_a_complaint(tmp_path: Path, words: list[str]) -> None:
    try:
        _read(tmp_path, " ".join(words))
    except ConfigError as error:
        assert str(error).startswith(str(tmp_path))  # noqa: PT017 - only complaints about the file
