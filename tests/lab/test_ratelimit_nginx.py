# SPDX-License-Identifier: Apache-2.0
"""The reference: what a real nginx passes and refuses by limit_req, the limiter passes and refuses too."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from lab.gateway import Nginx
from lab.lab import Lab
from lab.network import enter
from tests.kernel.limiter_rig import rig
from tests.kernel.test_ratelimit_policy import packet
from tests.lab.remains import wait_until
from tidegate.config.limits import Bucket, Limits, RateLimit
from tidegate.ratelimit.policy import compiled

pytestmark = pytest.mark.lab

#: limit_req reckons by nginx's own clock, which stands still while nginx works off what has come, and has a zero
#: of its own: $msec is another one, up to a millisecond apart. $connection_time is by the clock of limit_req, so
#: all requests come over one connection.
SERVERS = """\
limit_req_zone $binary_remote_addr zone=one:1m rate=10r/s;
log_format times '$connection_time $msec $status';
server {
    listen 80;
    keepalive_requests 100000;
    access_log access.log times;
    location / { limit_req zone=one burst=20 nodelay; try_files /none =204; }
}
"""
_ASK = """
import http.client, sys, time
connection = http.client.HTTPConnection(sys.argv[1], timeout=10)
for line in sys.stdin:
    time.sleep(float(line))
    connection.request("GET", "/")
    connection.getresponse().read()
"""


def gaps(rng: random.Random) -> list[float]:
    """Return seconds before each request: bursts, near the rate, and pauses in which all is forgotten."""
    made = [0.0] * 40
    for _ in range(12):
        made += [rng.choice((0.05, 0.13, 0.31)), *[0.0] * rng.randint(0, 8)]
    made += [rng.uniform(0.0, 0.03) for _ in range(150)]
    return [*made, 2.5, *[0.0] * 60]


def test_the_verdicts_are_those_of_a_real_nginx(lab: Lab) -> None:
    gateway = lab.host("gateway", 16)
    nginx, wanted = Nginx(gateway, "gateway", SERVERS), gaps(random.Random(10))
    client = lab.host("client", 17)
    asked = "".join(f"{gap}\n" for gap in wanted)
    argv = enter(client.namespace, [sys.executable, "-c", _ASK, gateway.v4])
    subprocess.run(argv, input=asked, text=True, check=True, timeout=120)
    log = nginx.directory / "access.log"
    wait_until(lambda: log.exists() and log.read_text("ascii").count("\n") == len(wanted), "all requests logged")
    lines = [line.split() for line in log.read_text(encoding="ascii").splitlines()]
    arrivals = [round(float(since) * 1000) for since, _, _ in lines]
    by_nginx = [{"204": "pass", "503": "drop"}[status] for _, _, status in lines]
    made = compiled(RateLimit(default=Limits(syn=Bucket(rate=10, burst=20))), {80}, ())
    with rig() as opened:
        opened.maps.put_in_force(made.policies, made.ports, anew=True)
        begin, by_limiter = opened.now, list[str]()
        for ms in arrivals:
            opened.now = begin + ms * 1_000_000
            by_limiter.append(opened.judge(packet("10.0.0.17", 80))[0])
    assert by_limiter == by_nginx
    assert by_nginx.count("pass") >= 21 + 21
    assert by_nginx.count("drop") > 100
    # Both clocks of nginx tell the same but for their milliseconds' ends.
    since = [float(ms) - float(lines[0][1]) for _, ms, _ in lines]
    assert since == pytest.approx([(ms - arrivals[0]) / 1000 for ms in arrivals], abs=0.0101)
