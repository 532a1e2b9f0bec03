# SPDX-License-Identifier: Apache-2.0
"""The metrics server: where it listens, with and without TLS."""

from __future__ import annotations

import errno
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.test_outputs import view
from tidegate.errors import UnavailableError
from tidegate.export.prometheus import Exporter, Tls
from tidegate.signals.tcp_fields import TABLE

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority with the certificates of a server (127.0.0.1) and of a client, and a stranger's."""
    directory = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    openssl(*new, "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.crt")
    openssl(*new, "-subj", "/CN=stranger", "-keyout", "stranger.key", "-out", "stranger.crt")
    for name in ("server", "client"):
        issued = ["-CA", "ca.crt", "-CAkey", "ca.key", "-addext", "subjectAltName=IP:127.0.0.1"]
        openssl(*new, *issued, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.crt")
    return directory


@pytest.fixture
def guarded(certificates: Path) -> Iterator[Exporter]:
    tls = Tls(
        cert=str(certificates / "server.crt"),
        key=str(certificates / "server.key"),
        client_ca=str(certificates / "ca.crt"),
    )
    exporter = Exporter("127.0.0.1", 0, [TABLE], tls)
    exporter.collector.show(view("shop.service"))
    yield exporter
    exporter.close()


def scrape(port: int, certificates: Path, client: str | None) -> str:
    context = ssl.create_default_context(cafile=str(certificates / "ca.crt"))
    if client:
        context.load_cert_chain(certificates / f"{client}.crt", certificates / f"{client}.key")
    with urllib.request.urlopen(f"https://127.0.0.1:{port}/metrics", timeout=5, context=context) as answer:
        return str(answer.read().decode())


def test_a_client_with_a_certificate_is_served(guarded: Exporter, certificates: Path) -> None:
    assert 'service="shop.service"' in scrape(guarded.port, certificates, "client")


@pytest.mark.parametrize("client", [None, "stranger"])
def test_a_client_without_one_is_not(guarded: Exporter, certificates: Path, client: str | None) -> None:
    with pytest.raises((urllib.error.URLError, ssl.SSLError, ConnectionError)):
        scrape(guarded.port, certificates, client)


def test_plain_http_on_loopback_and_nothing_after_close() -> None:
    exporter = Exporter("127.0.0.1", 0, [TABLE])
    exporter.collector.show(view("shop.service"))
    with urllib.request.urlopen(f"http://127.0.0.1:{exporter.port}/metrics", timeout=5) as answer:
        assert b"tidegate_tcp_connects_total" in answer.read()
    exporter.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", exporter.port))


def test_it_listens_on_ipv6() -> None:
    exporter = Exporter("::1", 0, [TABLE])
    with urllib.request.urlopen(f"http://[::1]:{exporter.port}/metrics", timeout=5) as answer:
        assert answer.status == 200
    exporter.close()


def test_files_that_are_no_certificates_are_named(tmp_path: Path) -> None:
    for name in ("cert", "key"):
        (tmp_path / name).write_text("no PEM", encoding="ascii")
    with pytest.raises(UnavailableError, match=r"metrics.tls: expected a certificate and its key in PEM"):
        Exporter("127.0.0.1", 0, [TABLE], Tls(cert=str(tmp_path / "cert"), key=str(tmp_path / "key")))


def test_port_that_is_taken_and_address_that_is_not_here() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UnavailableError) as caught:
            Exporter("127.0.0.1", port, [TABLE])
    assert f"metrics.listen 127.0.0.1:{port}: Address already in use; find who has it" in str(caught.value)
    with pytest.raises(UnavailableError, match=r"set metrics\.listen to an address of this host") as caught:
        Exporter("192.0.2.1", 0, [TABLE])
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EADDRNOTAVAIL
