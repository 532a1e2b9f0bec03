# SPDX-License-Identifier: Apache-2.0
"""The programs of real services: what the files tell is what the programs say of themselves."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lab.lab import Lab, Service
from lab.results import Plan, Step
from lab.upstream import Behaviour
from tests.lab.remains import wait_until
from tidegate.identity.executables import program_of
from tidegate.measurement import Bounds, Measurement
from tidegate.model.resources import Executable
from tidegate.model.snapshot import View

pytestmark = pytest.mark.lab

NGINX = """\
daemon off; pid {directory}/nginx.pid; error_log stderr;
events {{}}
http {{ access_log off; server {{ listen 8080; return 204; }} }}
"""
HAPROXY = """\
defaults
    mode tcp
    timeout client 5s
    timeout server 5s
    timeout connect 5s
listen one
    bind :8081
    server there 10.0.0.6:5000
"""


def said_by(*argv: str) -> str:
    """Return what a program prints of its version."""
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("program", "option", "before"),
    [("nginx", "-v", "nginx/"), ("haproxy", "-v", "HAProxy version "), ("python3", "-V", "Python ")],
)
def test_the_version_is_what_the_program_says(program: str, option: str, before: str) -> None:
    path = shutil.which(program, path="/usr/sbin:/usr/bin")
    if path is None:
        pytest.skip(f"{program} is not installed: apt-get install {program}")
    path = str(Path(path).resolve())
    found = program_of(path, Path(path).name)
    assert found.version is not None
    assert f"{before}{found.version}" in said_by(path, option)


def opens(shop: Service, port: int) -> int:
    """Connect once to the gateway; return how many connections came of it."""
    return shop.generate(Plan((Step("10.0.0.7", port, 1, hold=True),))).endpoints[f"10.0.0.7:{port}"].established


def test_services_that_connect_have_their_programs(lab: Lab, tmp_path: Path) -> None:
    for program in ("nginx", "haproxy"):
        if shutil.which(program, path="/usr/sbin") is None:
            pytest.skip(f"{program} is not installed: apt-get install {program}")
    lab.host("inventory", 6).service("inventory_service").upstream({5000: Behaviour.ACCEPT})
    gateway = lab.host("gateway", 7)
    web, proxy, shop = gateway.service("web"), gateway.service("proxy"), lab.host("client", 16).service("shop")
    (tmp_path / "nginx.conf").write_text(NGINX.format(directory=tmp_path))
    (tmp_path / "haproxy.cfg").write_text(HAPROXY)
    web.popen(["/usr/sbin/nginx", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")])
    proxy.popen(["/usr/sbin/haproxy", "-db", "-f", str(tmp_path / "haproxy.cfg")])
    for port in (8080, 8081):
        wait_until(lambda port=port: opens(shop, port) == 1, f"port {port} open")  # type: ignore[misc]
    python = Executable(
        name="python",
        version=".".join(platform.python_version_tuple()[:2]),
        path=str(Path(sys.executable).resolve()),
    )
    with Measurement(Bounds()) as measurement:
        assert (opens(shop, 8080), opens(shop, 8081)) == (1, 1)
        views: list[View] = []

        def programs(name: str) -> dict[str, Executable]:
            unit = f"{name}{lab.tag}.service"
            rows = [row for row in views[-1].resources or () if row.service == unit]
            return {each.name: each for row in rows for each in row.executables}

        def complete() -> bool:
            views.append(measurement.measure())
            return "nginx" in programs("web") and "haproxy" in programs("proxy") and bool(programs("shop"))

        wait_until(complete, "told")
        # Their workers are there too, which are Python.
        assert set(programs("web")) == {"nginx", "python"}
        assert programs("web")["nginx"].path == "/usr/sbin/nginx"
        assert f"nginx/{programs('web')['nginx'].version}" in said_by("/usr/sbin/nginx", "-v")
        assert programs("proxy")["haproxy"].path == "/usr/sbin/haproxy"
        assert f"version {programs('proxy')['haproxy'].version}" in said_by("/usr/sbin/haproxy", "-v")
        assert programs("shop") == {"python": python}
