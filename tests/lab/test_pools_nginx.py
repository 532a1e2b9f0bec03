# SPDX-License-Identifier: Apache-2.0
"""The nginx driver under load, and with all that may go wrong around it."""

from __future__ import annotations

import contextlib
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
from tidegate.pools.keeper import Keeper, Mode
from tidegate.pools.nginx import NginxDriver
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
