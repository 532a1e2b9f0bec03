# SPDX-License-Identifier: Apache-2.0
"""What programs are told to keep connections to their upstreams open: the lines, by program and version."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from tidegate.model.finding import Remedy
from tidegate.model.resources import Executable
from tidegate.model.snapshot import View

#: From this version on nginx speaks HTTP/1.1 to upstreams and keeps 32 connections, if nothing says otherwise.
NGINX_KEEPS = (1, 29, 7)

#: How executables are called, by the program that they are.
_NAMES = {
    "nginx": r"(nginx|openresty|angie)",
    "haproxy": r"haproxy",
    "envoy": r"envoy",
    "python": r"(python|pypy|gunicorn|uwsgi|uvicorn|celery)",
    "go": r"go$",
    "java": r"java",
    "node": r"(node|nodejs)",
}


def program_of(view: View, service: str, container: str) -> tuple[str, str | None]:
    """Return what a service runs that opens connections, and its version; empty where it isn't known."""
    for row in view.resources or ():
        if (row.service, row.container) == (service, container):
            return _known(row.executables)
    return "", None


def _known(executables: Iterable[Executable]) -> tuple[str, str | None]:
    found = list(executables)
    for program, pattern in _NAMES.items():
        for executable in found:
            if re.match(pattern, executable.name):
                return program, executable.version
    return "", None


def keepalive(program: str, version: str | None, upstream: str, connections: int) -> tuple[Remedy, ...]:
    """Return what makes a program keep connections; ``connections`` is how many it needs at a time.

    For a program that isn't known, the proxies and what goes for clients of any language.
    """
    if program == "nginx":
        return _nginx(version, upstream, connections)
    if program in _LINES:
        return _LINES[program](upstream, connections)
    return (
        Remedy(what="Have the client keep one pool of connections for its whole life and reuse it."),
        *_nginx(None, upstream, connections),
        *_haproxy(upstream, connections),
        *_envoy(upstream, connections),
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _nginx(version: str | None, upstream: str, connections: int) -> tuple[Remedy, ...]:
    if version is not None and _numbers(version) >= NGINX_KEEPS:
        return (
            Remedy(
                what=f"nginx {version} keeps connections by itself: find what switches it off (keepalive 0, "
                "proxy_http_version 1.0, or a Connection header) and replace it.",
                where=f"nginx: each location whose proxy_pass leads to {upstream}",
                lines=("proxy_http_version 1.1;", 'proxy_set_header Connection "";'),
            ),
            Remedy(
                what="Where the upstream block has keepalive 0, give it a number.",
                where=f"nginx: the upstream block with server {upstream}",
                lines=(f"keepalive {connections};",),
            ),
        )
    since = "" if version is None else f" (this is {version})"
    return (
        Remedy(
            what="Speak HTTP/1.1 to the upstream and don't ask it to close; before 1.29.7 nginx does neither "
            f"by itself{since}.",
            where=f"nginx: each location whose proxy_pass leads to {upstream}",
            lines=("proxy_http_version 1.1;", 'proxy_set_header Connection "";'),
        ),
        Remedy(
            what="Keep idle connections, unless the block has a keepalive line already; proxy_pass must name "
            "the block.",
            where=f"nginx: the upstream block with server {upstream}, after its server lines",
            lines=(f"keepalive {connections};",),
        ),
    )


def _haproxy(upstream: str, _connections: int) -> tuple[Remedy, ...]:
    return (
        Remedy(
            what="Keep server connections open and share them; remove option httpclose and option "
            "http-server-close from defaults, frontend and backend.",
            where=f"haproxy: the backend with server {upstream}, in mode http",
            lines=("no option httpclose", "no option http-server-close", "http-reuse safe"),
        ),
    )


def _envoy(upstream: str, _connections: int) -> tuple[Remedy, ...]:
    return (
        Remedy(
            what="Let a connection carry more than one request: 0 is no limit; remove "
            "max_requests_per_connection: 1 and an idle_timeout shorter than the pauses between requests.",
            where=f"envoy: typed_extension_protocol_options of the cluster with {upstream}",
            lines=(
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions:",
                '  "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions',
                "  common_http_protocol_options:",
                "    max_requests_per_connection: 0",
                "    idle_timeout: 60s",
                "  explicit_http_config:",
                "    http_protocol_options: {}",
            ),
        ),
    )


def _python(upstream: str, connections: int) -> tuple[Remedy, ...]:
    return (
        Remedy(
            what="Make one client when the program starts and use it for every call; a call of "
            "requests.get() or httpx.get() opens a connection of its own.",
            where=f"python: where {upstream} is called; take the lines of the library in use",
            lines=(
                "session = requests.Session()",
                f'session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize={connections}))',
                f"client = httpx.Client(limits=httpx.Limits(max_keepalive_connections={connections}))",
                f"session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit={connections}))",
            ),
        ),
    )


def _go(upstream: str, connections: int) -> tuple[Remedy, ...]:
    return (
        Remedy(
            what="Share one http.Client, keep more than the two idle connections of the default, and read each "
            "body to its end before it is closed: else the connection can't be used again.",
            where=f"go: where {upstream} is called",
            lines=(
                "transport := http.DefaultTransport.(*http.Transport).Clone()",
                f"transport.MaxIdleConnsPerHost = {connections}",
                "client := &http.Client{Transport: transport} // one for the whole program",
                "io.Copy(io.Discard, response.Body)",
                "response.Body.Close()",
            ),
        ),
    )


def _java(upstream: str, connections: int) -> tuple[Remedy, ...]:
    return (
        Remedy(
            what="Make one client and share it; each java.net.http.HttpClient has a pool of its own. Of "
            "HttpURLConnection read the whole stream and don't call disconnect().",
            where=f"java: where {upstream} is called; take the lines of the client in use",
            lines=(
                "static final HttpClient CLIENT = HttpClient.newHttpClient();",
                "PoolingHttpClientConnectionManager pool = new PoolingHttpClientConnectionManager();",
                f"pool.setDefaultMaxPerRoute({connections});",
                "CloseableHttpClient client = HttpClients.custom().setConnectionManager(pool).build();",
            ),
        ),
    )


def _node(upstream: str, connections: int) -> tuple[Remedy, ...]:
    return (
        Remedy(
            what="Give every request the same agent; before Node 19 the default agent closes each connection.",
            where=f"node: where {upstream} is called",
            lines=(
                f"const agent = new http.Agent({{ keepAlive: true, maxFreeSockets: {connections} }});",
                "http.request({ agent, /* as before */ });",
            ),
        ),
    )


_LINES: dict[str, Callable[[str, int], tuple[Remedy, ...]]] = {
    "haproxy": _haproxy,
    "envoy": _envoy,
    "python": _python,
    "go": _go,
    "java": _java,
    "node": _node,
}
