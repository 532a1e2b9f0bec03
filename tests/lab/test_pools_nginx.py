# SPDX-License-Identifier: Apache-2.0
"""The nginx driver under load, and with all that may go wrong around it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.closedloop import ClosedLoop, Request
from lab.gateway import CURRENT_NGINX, NGINX
from lab.lab import Lab
from tests.lab.rigs.nginx import MINIMUM, PORT, SERVERS, SHUTDOWN, NginxRig
from tests.lab.rigs.rig import ENDPOINTS, journal
from tidegate.errors import DriverError
from tidegate.model.driver import Standing, Use
from tidegate.pools import nginx, nginx_servers
from tidegate.pools.keeper import Keeper, Mode
from tidegate.pools.nginx import NginxDriver
from tidegate.pools.nginx_process import _children, _children_by_all
from tidegate.pools.nginx_reload import Change

pytestmark = pytest.mark.lab

FIRST, SECOND, THIRD = ENDPOINTS
ALL_ACTIVE = dict.fromkeys(ENDPOINTS, Use.ACTIVE)
PATIENCE = 10.0
TIMES = 10


def until(done: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def log_of(rig: NginxRig) -> Path:
    """Have nginx write down its reloads from the next one on, and return where."""
    path = rig.proxy.directory / "error.log"
    rig.proxy.write(rig.http, f"{SHUTDOWN}error_log {path} notice;\n")
    rig.proxy.reload()
    return path


def reloads(log: Path) -> int:
    return log.read_text(encoding="utf-8").count(", reconfiguring")


def loaded(rig: NginxRig, driver: NginxDriver) -> list[Request]:
    """Eject and let back several times while 20 clients call over connections that they keep."""
    clients = ClosedLoop(rig.client, rig.host.v4, PORT, workers=20)
    for _ in range(TIMES):
        driver.apply({FIRST: 0})
        began = time.monotonic()
        assert driver.read()[FIRST] is Use.EJECTED
        driver.apply({})
        assert time.monotonic() - began > 0.5, "reloads are a second apart"
    requests = clients.stop()
    assert {request.body for request in requests if request.status} == set(ENDPOINTS)
    return requests


def test_no_request_fails_while_endpoints_come_and_go(lab: Lab, tmp_path: Path) -> None:
    rig = NginxRig(lab, CURRENT_NGINX, MINIMUM)
    requests = loaded(rig, rig.driver(journal(tmp_path, "nginx")))
    failed = [request for request in requests if request.status != 200]
    assert not failed, f"{len(failed)} of {len(requests)}: {failed[:5]}"
    assert len(requests) > 1000


def test_of_an_older_nginx_only_connections_that_were_idle_are_reset(lab: Lab, tmp_path: Path) -> None:
    rig = NginxRig(lab, NGINX, "")
    requests = loaded(rig, rig.driver(journal(tmp_path, "nginx")))
    failed = [request for request in requests if request.status != 200]
    # The request came in while nginx closed its connection: no byte of an answer was sent, and it may be repeated.
    idle = ("ConnectionResetError", "BrokenPipeError", "IncompleteReadError: 0 bytes read")
    assert all(request.status == 0 and request.body.startswith(idle) for request in failed), failed[:5]
    assert len(failed) < len(requests) / 100
    (warning,) = [text for text in rig.driver(journal(tmp_path, "nginx")).discover().warnings if "1.27.4" in text]
    assert "keepalive_min_timeout 300ms;" in warning


def test_what_is_worth_a_look_is_told_with_what_to_write(lab: Lab, tmp_path: Path) -> None:
    rig = NginxRig(lab)
    driver = rig.driver(journal(tmp_path, "nginx"))
    found = driver.discover()
    assert found.version.startswith("nginx/1.")
    assert (found.warnings, found.refusals) == ((), ())
    rig.proxy.write(rig.http.replace(MINIMUM, "").replace(f"include {rig.include}", "server 10.0.0.6:5000"))
    rig.include.write_text("server api.internal:80; server unix:/run/api.sock;", encoding="ascii")
    text = "\n".join(driver.discover().warnings)
    assert f"no upstream includes {rig.include}" in text
    assert f"'include {rig.include};'" in text
    assert "'worker_shutdown_timeout 60s;'" in text
    assert "server api.internal:80 is no ADDRESS:PORT" in text
    assert "api.sock" not in text
    assert f"no server statement for {', '.join(ENDPOINTS)}" in text
    rig.proxy.write(rig.http.replace(MINIMUM, ""), SHUTDOWN)
    assert "add 'keepalive_min_timeout 300ms;' in http" in "\n".join(driver.discover().warnings)


def test_a_config_that_its_operator_has_broken_changes_nothing_until_it_is_mended(
    lab: Lab, tmp_path: Path
) -> None:
    rig = NginxRig(lab)
    driver = rig.driver(journal(tmp_path, "nginx"))
    before = rig.state()
    rig.proxy.write(rig.http + "bogus on;\n", SHUTDOWN)
    with pytest.raises(DriverError, match=r'nginx refuses its config: .*unknown directive "bogus"') as caught:
        driver.apply({FIRST: 0})
    assert not caught.value.away
    commands = [command for command, _ in caught.value.exchanges]
    assert commands[0] == f"write {rig.include}"
    assert " -t " in commands[1]
    assert rig.state() == before
    assert driver.read() == ALL_ACTIVE
    assert set(rig.reached(30)) == set(ENDPOINTS)
    assert driver.discover().version, "what can be told is told all the same"
    rig.proxy.write(rig.http, SHUTDOWN)
    driver.apply({FIRST: 0})
    assert set(rig.reached(30)) == {SECOND, THIRD}
    rig.proxy.write(rig.http + "bogus on;\n", SHUTDOWN)
    with pytest.raises(DriverError, match="bogus"):
        driver.restore()
    assert driver.read() == ALL_ACTIVE | {FIRST: Use.EJECTED}
    rig.proxy.write(rig.http, SHUTDOWN)
    driver.restore()
    assert rig.state() == before


def test_a_reload_that_nginx_refuses_is_undone(lab: Lab, tmp_path: Path) -> None:
    rig = NginxRig(lab)
    driver = rig.driver(journal(tmp_path, "nginx"))
    before = rig.state()
    assert driver.read() == ALL_ACTIVE
    # A test of the config passes over a port that is taken; the reload doesn't.
    script = "import socket, sys; s = socket.create_server(('', 81)); print('ready', flush=True); sys.stdin.read()"
    other = rig.host.popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdin is not None
    assert other.stdout is not None
    assert other.stdout.readline() == "ready\n"
    rig.proxy.write(rig.http + "server { listen 81; }\n", SHUTDOWN)
    with pytest.raises(DriverError, match=r"no new workers .* after SIGHUP .* error_log says why"):
        driver.apply({FIRST: 0})
    assert rig.state() == before
    assert driver.read() == ALL_ACTIVE
    assert set(rig.reached(30)) == set(ENDPOINTS)
    other.stdin.close()
    other.stdout.close()
    other.wait()
    driver.apply({FIRST: 0})
    assert driver.read() == ALL_ACTIVE | {FIRST: Use.EJECTED}
    assert set(rig.reached(30)) == {SECOND, THIRD}


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own with 64 KiB."""
    path = tmp_path / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_full_disk_changes_nothing_until_there_is_room(small: Path, lab: Lab, tmp_path: Path) -> None:
    rig = NginxRig(lab, directory=small)
    driver = rig.driver(journal(tmp_path, "nginx"))
    before = rig.state()
    with contextlib.suppress(OSError), (small / "full").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with pytest.raises(DriverError, match=r"inventory0\.conf: can't be written: No space left on device"):
        driver.apply({FIRST: 0})
    assert rig.state() == before
    assert sorted(path.name for path in small.iterdir()) == ["full", "inventory0.conf"]
    assert not list(tmp_path.glob("*.json"))
    assert driver.read() == ALL_ACTIVE
    (small / "full").unlink()
    driver.apply({FIRST: 0})
    assert set(rig.reached(30)) == {SECOND, THIRD}
    driver.restore()
    assert rig.state() == before


def test_changes_of_several_pools_at_the_same_time_are_one_reload(lab: Lab, tmp_path: Path) -> None:
    rig = NginxRig(lab, pools=2)
    log = log_of(rig)
    drivers = [rig.driver_of(path, journal(tmp_path, path.stem)) for path in rig.includes]
    before = reloads(log)
    start = threading.Barrier(2)

    def eject(driver: NginxDriver) -> None:
        start.wait()
        driver.apply({FIRST: 0})

    threads = [threading.Thread(target=eject, args=(driver,)) for driver in drivers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [driver.read()[FIRST] for driver in drivers] == [Use.EJECTED] * 2
    assert reloads(log) - before == 1
    began = time.monotonic()
    drivers[0].apply({})
    drivers[1].apply({})
    assert time.monotonic() - began > 1.5, "one after the other they are a second apart"
    assert reloads(log) - before == 3


def test_keepers_of_several_pools_share_a_reload(lab: Lab, tmp_path: Path) -> None:
    rig = NginxRig(lab, pools=3)
    log = log_of(rig)
    keepers = []
    for path in rig.includes:
        kept = journal(tmp_path, path.stem)
        driver = rig.driver_of(path, kept)
        mode = Mode(reads=True, acts=True, least=1)
        keepers.append(Keeper(path.stem, "nginx", driver, kept, mode, lambda _told: None))
    for keeper in keepers:
        keeper.start()
    until(lambda: all(keeper.row().standing is Standing.OK for keeper in keepers), "all have looked")
    before = reloads(log)
    now = time.monotonic()
    for keeper in keepers:
        keeper.want({FIRST: 0}, now)
    until(lambda: all(keeper.row().uses[FIRST] is Use.EJECTED for keeper in keepers), "all have done it")
    # The first goes at once; who comes while it is under way is in it, or all are in the next one.
    assert 1 <= reloads(log) - before <= 2
    for keeper in keepers:
        keeper.end(restore=True)
    assert all(keeper.join(PATIENCE) for keeper in keepers)
    assert reloads(log) - before <= 4
    assert {path.read_text(encoding="ascii") for path in rig.includes} == {SERVERS}


def test_a_change_that_nginx_refuses_does_not_take_that_of_another_pool_along(lab: Lab, tmp_path: Path) -> None:
    rig = NginxRig(lab, pools=2)
    driver = rig.driver(journal(tmp_path, "nginx"))
    log = log_of(rig)
    before = reloads(log)
    bad = Change(rig.includes[1], lambda found: (found or b"") + b"bogus;", like=rig.include)
    reloader = driver._reloader
    errors: list[DriverError] = []

    def make_bad() -> None:
        try:
            reloader.make(bad)
        except DriverError as error:
            errors.append(error)

    threads = [threading.Thread(target=make_bad), threading.Thread(target=driver.apply, args=({FIRST: 0},))]
    with reloader._leads:  # so that both wait for the same turn
        for thread in threads:
            thread.start()
        until(lambda: len(reloader._waiting) == 2, "both wait")
    for thread in threads:
        thread.join()
    assert [error for error in errors if 'unknown directive "bogus"' in str(error)] == errors
    assert len(errors) == 1
    assert rig.includes[1].read_text(encoding="ascii") == SERVERS
    assert driver.read()[FIRST] is Use.EJECTED
    assert reloads(log) - before == 1


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
