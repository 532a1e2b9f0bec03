# SPDX-License-Identifier: Apache-2.0
"""The nginx driver beside agents, operators and an nginx that stop half way, or aren't there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab.lab import Lab
from tests.lab.rigs.nginx import SERVERS, NginxRig
from tests.lab.rigs.rig import ENDPOINTS, journal
from tests.lab.test_pools_nginx import until
from tidegate.errors import DriverError
from tidegate.model.driver import Use
from tidegate.pools import nginx, nginx_servers
from tidegate.pools.nginx_process import _children, _children_by_all

pytestmark = pytest.mark.lab

FIRST, SECOND, THIRD = ENDPOINTS
ALL_ACTIVE = dict.fromkeys(ENDPOINTS, Use.ACTIVE)


def test_what_is_written_and_not_reloaded_is_not_in_force(lab: Lab, tmp_path: Path) -> None:
    rig = NginxRig(lab)
    driver = rig.driver(journal(tmp_path, "nginx"))
    assert driver.read() == ALL_ACTIVE
    text = rig.include.read_text(encoding="ascii")
    rig.include.write_text(text.replace(f"server {FIRST}", f"server {FIRST} down"), encoding="ascii")
    assert driver.read() == ALL_ACTIVE
    assert driver.apply({}) == []
    assert set(rig.reached(30)) == set(ENDPOINTS)
    driver.apply({SECOND: 0})
    assert driver.read() == {FIRST: Use.HELD, SECOND: Use.EJECTED, THIRD: Use.ACTIVE}
    assert set(rig.reached(30)) == {THIRD}


def test_an_agent_that_died_before_the_reload_is_made_good(lab: Lab, tmp_path: Path) -> None:
    rig = NginxRig(lab)
    before = rig.state()
    died = rig.driver(journal(tmp_path, "nginx"))
    change = died._change({FIRST: 0})
    change.write()
    following = rig.driver(journal(tmp_path, "nginx"))
    assert following.read()[FIRST] not in (Use.ACTIVE, Use.EJECTED), "it can't be told who is right"
    assert following.apply({FIRST: 0})
    assert following.read()[FIRST] is Use.EJECTED
    assert set(rig.reached(30)) == {SECOND, THIRD}
    # And with what was let back.
    rig.include.write_bytes(nginx_servers.edit(rig.include.read_bytes(), ENDPOINTS, {}))
    third = rig.driver(journal(tmp_path, "nginx"))
    assert third.read()[FIRST] is not Use.ACTIVE
    assert third.restore()
    assert third.read() == ALL_ACTIVE
    assert set(rig.reached(30)) == set(ENDPOINTS)
    assert rig.state() == before


def test_times_of_before_the_clock_was_set_tell_nothing(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = NginxRig(lab)
    rig.driver(journal(tmp_path, "nginx")).apply({FIRST: 0})
    assert rig.driver(journal(tmp_path, "nginx")).read()[FIRST] is Use.EJECTED, "its workers are younger"
    driver = rig.driver(journal(tmp_path, "nginx"))
    offset = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    monkeypatch.setattr(nginx, "_offset", lambda: offset + 3600)
    for _ in range(2):
        assert driver.read()[FIRST] is not Use.EJECTED, "it can't be told any more"
    assert driver.apply({FIRST: 0})[-1].command.startswith("kill -HUP")
    assert driver.read()[FIRST] is Use.EJECTED


def test_other_lines_that_an_operator_writes_meanwhile_stay(lab: Lab, tmp_path: Path) -> None:
    rig = NginxRig(lab)
    driver = rig.driver(journal(tmp_path, "nginx"))
    driver.apply({FIRST: 0, SECOND: 0})

    def change(text: str) -> str:
        return text.replace("# the inventory's", "# our").replace("max_fails=0", "max_fails=2")

    rig.edit(change)
    assert driver.read() == {FIRST: Use.EJECTED, SECOND: Use.EJECTED, THIRD: Use.ACTIVE}
    driver.restore()
    assert rig.include.read_text(encoding="ascii") == change(SERVERS)


def test_an_nginx_that_was_killed_comes_back_with_its_ejections(lab: Lab, tmp_path: Path) -> None:
    rig = NginxRig(lab)
    driver = rig.driver(journal(tmp_path, "nginx"))
    driver.apply({FIRST: 0})
    for pid in (rig.proxy.pid, *rig.proxy._workers()):
        os.kill(pid, signal.SIGKILL)
    rig.proxy._process.wait()
    assert (rig.proxy.directory / "nginx.pid").exists(), "its pid file has stayed"
    with pytest.raises(DriverError, match=r"nginx isn't running: .*nginx\.pid") as caught:
        driver.apply({FIRST: 0})
    assert caught.value.away
    rig.start()
    assert driver.read() == ALL_ACTIVE | {FIRST: Use.EJECTED}
    assert driver.apply({FIRST: 0}) == [], "it has read the file at its start"
    assert set(rig.reached(30)) == {SECOND, THIRD}


def test_what_is_put_back_while_nginx_is_away_is_not_there_when_it_starts(lab: Lab, tmp_path: Path) -> None:
    rig = NginxRig(lab)
    before = rig.state()
    driver = rig.driver(journal(tmp_path, "nginx"))
    driver.apply({FIRST: 0})
    rig.stop()
    assert "isn't running" in driver.restore()[-1].answer
    assert rig.state() == before
    assert not list(tmp_path.glob("*.json"))
    rig.start()
    driver.apply({})  # reloads, if nginx was so fast that nobody can tell what it has read
    assert driver.read() == ALL_ACTIVE
    assert set(rig.reached(30)) == set(ENDPOINTS)


def test_a_file_that_is_missing_is_made(lab: Lab, tmp_path: Path) -> None:
    rig = NginxRig(lab)
    rig.include.unlink()
    driver = rig.driver(journal(tmp_path, "nginx"))
    assert "made of the pool's endpoints" in "\n".join(driver.discover().warnings)
    assert driver.read() == ALL_ACTIVE
    assert driver.apply({}) == []
    driver.apply({FIRST: 0})
    assert set(rig.reached(30)) == {SECOND, THIRD}
    assert rig.include.stat().st_mode == (rig.proxy.directory / "nginx.conf").stat().st_mode
    driver.restore()
    assert rig.include.read_bytes() == nginx_servers.generate(ENDPOINTS), "nginx would not start without it"
    assert not list(tmp_path.glob("*.json"))
    assert set(rig.reached(30)) == set(ENDPOINTS)


def test_without_any_server_left_nginx_answers_502(lab: Lab, tmp_path: Path) -> None:
    rig = NginxRig(lab)
    driver = rig.driver(journal(tmp_path, "nginx"))
    driver.apply(dict.fromkeys(ENDPOINTS, 0))
    assert rig.reached(10) == {"502": 10}


def test_workers_that_do_not_end_are_counted(lab: Lab, tmp_path: Path) -> None:
    rig = NginxRig(lab)
    driver = rig.driver(journal(tmp_path, "nginx"))
    assert driver.old_workers() == (0, 0)
    script = (
        "import socket, sys; s = socket.create_connection(('10.0.0.16', 80)); s.send(b'GET / HTTP/1.1\\r\\n'); "
        "print('ready', flush=True); sys.stdin.read()"
    )
    client = rig.client.popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert client.stdin is not None
    assert client.stdout is not None
    assert client.stdout.readline() == "ready\n"
    driver.apply({FIRST: 0})
    assert sorted(_children(rig.proxy.pid)) == sorted(_children_by_all(rig.proxy.pid))
    count, memory = driver.old_workers()
    assert (count, memory > 100_000) == (1, True)
    assert driver.read()[FIRST] is Use.EJECTED, "for new requests they don't count"
    client.stdin.close()
    client.stdout.close()
    until(lambda: driver.old_workers() == (0, 0), "the old worker ends after its last connection")


def test_a_program_that_is_no_nginx_is_told(lab: Lab, tmp_path: Path) -> None:
    rig = NginxRig(lab)
    for program, what in (("/nonexistent/nginx", "can't be run: No such file"), ("/bin/true", "expected nginx")):
        rig.program = program
        with pytest.raises(DriverError, match=what):
            rig.driver(journal(tmp_path, "nginx")).discover()
