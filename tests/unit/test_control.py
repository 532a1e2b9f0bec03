# SPDX-License-Identifier: Apache-2.0
"""The control socket over real Unix sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.unit.test_outputs import view
from tidegate.control.client import ControlClient, NoAgentError
from tidegate.control.protocol import MAX_REQUEST
from tidegate.control.server import ControlServer, Peer
from tidegate.errors import TidegateError, UnavailableError, UsageError
from tidegate.model.snapshot import View

pytestmark = pytest.mark.unit
NOBODY = 65534


class Serving:
    """A server in a loop of its own thread, as the agent has it; a context manager."""

    def __init__(self, path: Path, max_clients: int = 4, queue: int = 3) -> None:
        self.path = path
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self.server = ControlServer(
            path, version="1.2.3", methods={"fail": _fail, "whoami": _whoami}, max_clients=max_clients, queue=queue
        )

    def __enter__(self) -> Serving:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.server.start(), self.loop).result(5)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self.server.close(), self.loop).result(5)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def publish(self, shown: View) -> float:
        """Publish in the server's loop; return the seconds that it took there."""

        async def timed() -> float:
            began = time.perf_counter()
            self.server.publish(shown)
            return time.perf_counter() - began

        return asyncio.run_coroutine_threadsafe(timed(), self.loop).result(5)

    def until(self, loss: str, count: int) -> None:
        """Wait until a loss has been counted so often."""
        end = time.monotonic() + 5
        while self.server.losses()[loss] != count:
            assert time.monotonic() < end, self.server.losses()


def _fail(params: Mapping[str, Any], _peer: Peer) -> Any:
    raise UsageError(f"bad {params['what']}")


def _whoami(_params: Mapping[str, Any], peer: Peer) -> Any:
    return peer._asdict()


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    with Serving(tmp_path / "control.sock") as running:
        yield running


def raw(path: Path, sent: bytes) -> list[dict[str, Any]]:
    """Talk as socat does: send, shut down the write side, read to the end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(5)
        client.connect(str(path))
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as lines:
            return [json.loads(line) for line in lines]


def read_to_the_end(client: socket.socket) -> bytes:
    """Return what comes until the other side closes or resets."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while part := client.recv(1 << 20):
            received += part
    return received


def test_socket_is_its_owners_alone(serving: Serving) -> None:
    assert serving.path.stat().st_mode & 0o777 == 0o600


def test_a_method_is_told_who_asks(serving: Serving) -> None:
    asked = raw(serving.path, b'{"method":"whoami"}\n')[1]["result"]
    assert asked == {"pid": os.getpid(), "uid": os.geteuid(), "gid": os.getegid()}
    # Each connection has a peer of its own.
    code = (
        "import os, sys; from pathlib import Path; from tidegate.control.client import ControlClient as C\n"
        "print(os.getpid(), C(Path(sys.argv[1])).request('whoami')['pid'])"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, str(serving.path)], check=True, capture_output=True, text=True
    ).stdout.split()
    assert said[0] == said[1] != str(os.getpid())


def test_hello_and_answers_carry_the_id(serving: Serving) -> None:
    lines = raw(serving.path, b'{"method":"version","id":7}\n\n{"method":"version","id":"x"}\n')
    assert lines[0] == {"tidegate": "1.2.3", "protocol": 1}
    assert lines[1:] == [
        {"id": 7, "result": {"version": "1.2.3"}},
        {"id": "x", "result": {"version": "1.2.3"}},
    ]


def test_snapshot_before_the_first_tick_is_an_error_and_after_it_the_view(serving: Serving) -> None:
    with ControlClient(serving.path) as client:
        with pytest.raises(TidegateError, match="no snapshot yet"):
            client.request("snapshot")
        serving.publish(view("shop.service"))
        assert msgspec.convert(client.request("snapshot"), View) == view("shop.service")


def test_watch_gives_every_view_in_order(serving: Serving) -> None:
    views = [view(f"s{n}.service") for n in range(20)]
    serving.publish(views[0])
    with ControlClient(serving.path) as client:
        watching = client.watch()
        assert next(watching) == views[0]
        for shown in views[1:]:
            serving.publish(shown)
            assert next(watching) == shown


def test_slow_reader_is_dropped_and_a_fast_one_misses_nothing(serving: Serving) -> None:
    large = view(*(f"{n:04}.service" for n in range(400)))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as slow, ControlClient(serving.path) as fast:
        slow.connect(str(serving.path))
        slow.sendall(b'{"method":"watch"}\n')
        serving.publish(large)
        watching = fast.watch()
        assert next(watching) == large
        slowest = 0.0
        for _ in range(20):
            slowest = max(slowest, serving.publish(large))
            assert next(watching) == large
        serving.until("control_clients_slow", 1)
        assert slowest < 0.1
        slow.settimeout(5)
        assert len(read_to_the_end(slow)) < 10 * len(msgspec.json.encode(large))


def test_view_is_encoded_once_however_many_watch(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = 0
    encode = msgspec.json.encode

    def counting(value: Any) -> bytes:
        nonlocal encoded
        encoded += isinstance(value, View)
        return encode(value)

    with ControlClient(serving.path) as one, ControlClient(serving.path) as other:
        serving.publish(view("a"))
        streams = [one.watch(), other.watch()]
        for stream in streams:
            next(stream)
        monkeypatch.setattr(msgspec.json, "encode", counting)
        serving.publish(view("b"))
        for stream in streams:
            next(stream)
        assert encoded == 1


def test_clients_past_the_limit_are_told_so(serving: Serving) -> None:
    clients = [ControlClient(serving.path) for _ in range(4)]
    for client in clients:
        client.request("version")
    with ControlClient(serving.path) as refused, pytest.raises(TidegateError, match="4 clients are connected"):
        refused.request("version")
    assert serving.server.losses()["control_clients_refused"] == 1
    for client in clients:
        client.close()


def test_another_user_is_refused(serving: Serving) -> None:
    serving.path.chmod(0o666)
    for parent in serving.path.parents:
        if parent.stat().st_uid == os.geteuid() and "pytest" in str(parent):
            parent.chmod(0o755)
    script = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print(s.makefile().read())"
    )
    nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    done = subprocess.run(
        [*nobody, "/usr/bin/python3", "-c", script, str(serving.path)], capture_output=True, text=True, check=True
    )
    hello, error = (json.loads(line) for line in done.stdout.split("\n") if line)
    assert hello["protocol"] == 1
    assert error["error"] == {
        "message": "control socket: expected uid 0 or 0, found uid 65534; run as root",
        "exit_code": 3,
    }
    assert serving.server.losses()["control_peers_refused"] == 1


@pytest.mark.parametrize(
    ("request_line", "message"),
    [
        (b"no json", "request: not understood: JSON is malformed"),
        (b"[]", "request: not understood: Expected `object`"),
        (b'{"method": 1}', "request: not understood: Expected `str`"),
        (b'{"method": "nothing"}', "method nothing: not known; known here: fail, snapshot, version, watch"),
        (b'{"method": "fail", "params": {"what": "thing"}}', "bad thing"),
        (b'{"method": "\xff"}', "request: not understood: 'utf-8' codec can't decode"),
    ],
)
def test_bad_request_is_an_error_and_the_connection_stays(
    serving: Serving, request_line: bytes, message: str
) -> None:
    _, error, answer = raw(serving.path, request_line + b'\n{"method":"version"}\n')
    assert error["error"]["message"].startswith(message)
    assert answer["result"] == {"version": "1.2.3"}


def test_line_past_the_limit_ends_the_connection(serving: Serving) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(5)
        client.connect(str(serving.path))
        client.sendall(b"x" * (MAX_REQUEST + 1) + b"\n")
        with client.makefile("rb") as lines:
            _, error = [json.loads(line) for line in lines]
    assert error["error"]["message"] == f"request: longer than {MAX_REQUEST} bytes"


def test_errors_become_the_exceptions_that_they_were(serving: Serving) -> None:
    with ControlClient(serving.path) as client, pytest.raises(UsageError, match="bad thing"):
        client.request("fail", {"what": "thing"})


def test_no_agent(tmp_path: Path) -> None:
    with pytest.raises(NoAgentError, match="no agent listens there"):
        ControlClient(tmp_path / "none.sock")


def test_another_protocol_names_both_versions(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            accepted, _ = listener.accept()
            with accepted:
                accepted.sendall(b'{"tidegate":"9.9","protocol":99}\n')

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(UnavailableError, match=r"speaks protocol 1, the agent \(version 9.9\) 99"):
            ControlClient(path)
        thread.join()


def test_stale_socket_is_replaced_and_a_live_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    with Serving(path):
        other = ControlServer(path, version="1", methods={}, max_clients=1, queue=1)
        with pytest.raises(UnavailableError, match="another agent listens there"):
            asyncio.run(other.start())
        with ControlClient(path) as client:
            assert client.request("version") == {"version": "1.2.3"}
    assert not path.exists()


def test_close_leaves_a_file_that_is_not_its_own(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Serving(path):
        path.unlink()
        path.write_text("mine", encoding="ascii")
    assert path.read_text(encoding="ascii") == "mine"


def test_path_that_is_too_long_says_so(tmp_path: Path) -> None:
    server = ControlServer(tmp_path / ("x" * 120), version="1", methods={}, max_clients=1, queue=1)
    with pytest.raises(UnavailableError, match="expected at most 107 bytes"):
        asyncio.run(server.start())
