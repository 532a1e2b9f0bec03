# SPDX-License-Identifier: Apache-2.0
"""The files of a network namespace, as kernels wrote them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidegate.signals.namespace_files import NamespaceFiles, read

pytestmark = pytest.mark.unit

NETSTAT = (
    "TcpExt: SyncookiesSent SyncookiesRecv ListenOverflows ListenDrops TCPFoo\n"
    "TcpExt: 4 0 117 119 -1\n"
    "IpExt: InNoRoutes ListenDrops\n"
    "IpExt: 1 2\n"
)
SOCKSTAT = "sockets: used 11\nTCP: inuse 1 orphan 0 tw 8 alloc 142 mem 28\nUDP: inuse 0 mem 0\nTCP6: inuse 3\n"


def files(tmp_path: Path, **sysctls: str) -> tuple[Path, Path]:
    (tmp_path / "net").mkdir()
    (tmp_path / "net/netstat").write_text(NETSTAT)
    (tmp_path / "net/sockstat").write_text(SOCKSTAT)
    for name, text in sysctls.items():
        place = tmp_path / "sys" / name.replace("__", "/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    return tmp_path / "net", tmp_path / "sys"


def test_counters_and_limits(tmp_path: Path) -> None:
    found = files(
        tmp_path,
        core__somaxconn="4096\n",
        ipv4__tcp_tw_reuse="2\n",
        ipv4__tcp_timestamps="1\n",
        netfilter__nf_conntrack_count="12\n",
        netfilter__nf_conntrack_max="262144\n",
    )
    assert read(*found) == NamespaceFiles(117, 119, 4, 8, 4096, 2, 1, 12, 262144)


def test_without_conntrack_and_from_outside(tmp_path: Path) -> None:
    net, sysctls = files(tmp_path, core__somaxconn="128\n")
    assert read(net, sysctls) == NamespaceFiles(117, 119, 4, 8, 128, None, None, None, None)
    assert read(net, None) == NamespaceFiles(117, 119, 4, 8, *[None] * 5)


def test_a_namespace_that_is_gone(tmp_path: Path) -> None:
    assert read(tmp_path / "gone", tmp_path / "gone") == NamespaceFiles(*[None] * 9)


def test_a_table_without_its_numbers_is_none(tmp_path: Path) -> None:
    net, _ = files(tmp_path)
    (net / "netstat").write_text(NETSTAT.splitlines()[0])
    (net / "sockstat").write_text("")
    assert read(net, None) == NamespaceFiles(*[None] * 9)
