# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from ipaddress import IPv6Network, ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.test_ratelimit_policy import rate_limit
from tidegate.kernel.layouts import RATELIMIT_PREFIX
from tidegate.ratelimit.lists import (
    AddressList,
    ListFile,
    Prefixes,
    allow_list,
    complaints_of,
    deny_list,
    divides,
    holds,
    keys_of,
    read,
)

pytestmark = pytest.mark.unit


class Clock:
    """A time that only the test moves."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def keys(*networks: str) -> Prefixes:
    return frozenset(key for network in networks for key in keys_of(network))


def write(path: Path, text: str, at: int = 1000) -> None:
    """Write a file that was last changed ``at``."""
    path.write_text(text, encoding="utf-8")
    os.utime(path, (at, at))


@pytest.mark.parametrize(
    ("network", "length", "address"),
    [
        ("192.0.2.1", 128, "::ffff:192.0.2.1"),
        ("192.0.2.0/24", 120, "::ffff:192.0.2.0"),
        ("10.0.0.0/255.0.0.0", 104, "::ffff:10.0.0.0"),
        ("0.0.0.0/0", 96, "::ffff:0.0.0.0"),
        ("::ffff:192.0.2.0/120", 120, "::ffff:192.0.2.0"),
        ("2001:db8::/32", 32, "2001:db8::"),
        ("2001:db8::1", 128, "2001:db8::1"),
    ],
)
def test_key_of_a_network(network: str, length: int, address: str) -> None:
    assert keys_of(network) == [RATELIMIT_PREFIX.pack(length, ip_address(address).packed)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("192.0.2.1/24", "'192.0.2.1/24': 192.0.2.1/24 has host bits set"),
        ("fe80::1%eth0", "'fe80::1%eth0': a network has no zone"),
        ("gateway", "'gateway'"),
        ("10.0.0.0/33", "'10.0.0.0/33'"),
        ("010.0.0.1", "'010.0.0.1'"),
    ],
)
def test_what_is_no_network(text: str, found: str) -> None:
    with pytest.raises(ValueError, match="expected a network like 10.0.0.0/8 or fd00::/8, found " + found):
        keys_of(text)


@pytest.mark.parametrize("network", ["::/0", "::/1", "::/80", "::fffe:0:0/95"])
def test_ipv6_networks_say_nothing_of_ipv4(network: str) -> None:
    found = keys(network)
    ipv4 = RATELIMIT_PREFIX.pack(96, IPv6Network("::ffff:0:0/96").network_address.packed)
    assert ipv4 not in found
    assert not holds(found, ip_address("192.0.2.1"))
    parts = [IPv6Network((key[4:], RATELIMIT_PREFIX.unpack(key)[0])) for key in found]
    missing = ip_network(network).num_addresses - sum(part.num_addresses for part in parts)
    assert missing == 1 << 32


# Of few bits, so that networks hold some of them.
addresses = st.one_of(
    st.integers(0, 255).map(lambda n: ip_address(n << 24 | n)),
    st.integers(1, 255).map(lambda n: ip_address(n << 120 | n << 56 | n)),
)


@given(addresses, st.lists(st.tuples(addresses, st.integers(0, 128)), max_size=6))
@settings(max_examples=60)
def test_holds_what_ipaddress_holds(address: object, drawn: list[tuple[object, int]]) -> None:
    networks = [
        ip_network(f"{of}/{min(length, ip_address(str(of)).max_prefixlen)}", strict=False) for of, length in drawn
    ]
    wanted = ip_address(str(address))
    assert holds(keys(*map(str, networks)), wanted) == any(wanted in network for network in networks)


@pytest.mark.parametrize(
    ("networks", "is_divided"),
    [
        ([], False),
        (["192.0.2.1", "10.0.0.0/8", "2001:db8::/64", "fd00::/8"], False),
        (["10.0.0.0/8", "2001:db8::/65"], True),
        (["2001:db8::1"], True),
        (["::/0"], True),  # which leaves out a part of ::/64
    ],
)
def test_divides(networks: list[str], is_divided: bool) -> None:
    assert divides(keys(*networks)) is is_divided


def test_lines_comments_and_blanks() -> None:
    text = b"\xef\xbb\xbf# ours\n192.0.2.0/24\r\n\n  2001:db8::/32 # Paris\n192.0.2.0/24\n10.0.0.1"
    assert read(text, "f", 100) == (keys("192.0.2.0/24", "2001:db8::/32", "10.0.0.1"), [])
    assert read(b"", "f", 100) == (frozenset(), [])


def test_every_wrong_line_is_a_complaint() -> None:
    _, complaints = read(b"10.0.0.0/8\n10.0.0.1/8\n\nhosts\n\xff\n", "/etc/allow", 100)
    assert [complaint.partition(" ")[0] for complaint in complaints] == [
        "/etc/allow:2:",
        "/etc/allow:4:",
        "/etc/allow:5:",
    ]
    assert complaints[1].startswith("/etc/allow:4: expected a network like 10.0.0.0/8 or fd00::/8, found 'hosts'")
    assert "'\\\\xff'" in complaints[2]


def test_complaints_of_a_file_that_is_no_list_are_few() -> None:
    assert len(read(b"no\n" * 100_000, "f", 100)[1]) == 20


def test_more_lines_than_there_may_be() -> None:
    text = b"".join(b"10.0.0.%d\n" % n for n in range(5))
    assert read(text, "f", 5)[1] == []
    assert read(text + b"# end\n10.0.0.9\n10.0.0.10\n", "f", 5)[1] == [
        "f:7: expected at most 5 networks (max_prefixes), found more"
    ]


def test_a_file_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "allow"
    write(path, "10.0.0.1\n")
    file = ListFile(str(path), 100, Clock(2000))
    assert file.refresh()
    assert file.prefixes == keys("10.0.0.1")
    assert not file.refresh()
    write(path, "10.0.0.2\n", at=1001)  # as long as before
    assert file.refresh()
    assert file.prefixes == keys("10.0.0.2")
    write(tmp_path / "new", "10.0.0.3\n", at=1001)  # as long and as old
    (tmp_path / "new").rename(path)
    assert file.refresh()
    assert file.prefixes == keys("10.0.0.3")
    write(path, "10.0.0.10\n", at=1001)  # as old
    assert file.refresh()
    assert file.prefixes == keys("10.0.0.10")


def test_a_file_that_has_not_changed_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "allow"
    write(path, "10.0.0.1\n")
    file = ListFile(str(path), 100, Clock(2000))
    file.refresh()
    write(path, "10.0.0.2\n")  # which nothing tells
    assert not file.refresh()
    assert file.prefixes == keys("10.0.0.1")


def test_a_file_may_change_twice_at_one_time(tmp_path: Path) -> None:
    path, clock = tmp_path / "allow", Clock(1000.5)
    write(path, "10.0.0.1\n")
    file = ListFile(str(path), 100, clock)
    file.refresh()
    write(path, "10.0.0.2\n")
    assert file.refresh()
    clock.now = 1001.0
    assert not file.refresh()
    write(path, "10.0.0.3\n")
    assert not file.refresh()  # by now such a change would have another time


def test_the_last_good_content_stays_in_force(tmp_path: Path) -> None:
    path = tmp_path / "deny"
    write(path, "10.0.0.1\n")
    file = ListFile(str(path), 100, Clock(2000))
    file.refresh()
    write(path, "10.0.0.2\nbad\n", at=1001)
    assert not file.refresh()
    assert file.complaints[0].startswith(f"{path}:2: expected a network")
    assert not file.refresh()
    assert len(file.complaints) == 1
    path.unlink()
    assert not file.refresh()
    assert file.complaints == [f"{path}: can't be read: No such file or directory"]
    assert file.prefixes == keys("10.0.0.1")
    write(path, "10.0.0.3\n", at=1002)
    assert file.refresh()
    assert (file.prefixes, file.complaints) == (keys("10.0.0.3"), [])


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, complaint in {
        tmp_path / "pipe": "expected a regular file, found another kind",
        tmp_path: "can't be read: Is a directory",
        Path("/dev/zero"): "expected a regular file, found another kind",
    }.items():
        file = ListFile(str(path), 100)
        assert not file.refresh()
        assert file.complaints == [f"{path}: {complaint}"]


def test_a_file_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidegate.ratelimit.lists._LARGEST", 1024)
    write(tmp_path / "a", "#" * 1025)
    file = ListFile(str(tmp_path / "a"), 100)
    file.refresh()
    assert file.complaints == [f"{tmp_path / 'a'}: expected at most 1KiB, found more"]


def test_a_list_is_the_config_its_files_and_what_the_node_needs(tmp_path: Path) -> None:
    path = tmp_path / "allow"
    write(path, "10.0.0.1\n")
    found = AddressList("allow", ["192.0.2.0/24"], [str(path)], 100, Clock(2000))
    assert found.refresh()
    assert found.prefixes == keys("192.0.2.0/24", "10.0.0.1")
    assert not found.refresh()
    assert found.refresh(["198.51.100.1"])
    assert found.prefixes == keys("192.0.2.0/24", "10.0.0.1", "198.51.100.1")
    assert not found.refresh(["198.51.100.1"])
    assert found.refresh([])
    write(path, "192.0.2.0/24\n", at=1001)
    assert found.refresh([])
    assert found.prefixes == keys("192.0.2.0/24")


def test_a_list_that_is_too_long_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "deny"
    write(path, "10.0.0.1\n")
    found = AddressList("deny", ["192.0.2.0/24"], [str(path)], 2, Clock(2000))
    assert found.refresh()
    write(path, "10.0.0.1\n10.0.0.2\n", at=1001)
    for _ in range(2):
        assert not found.refresh()
        assert found.prefixes == keys("192.0.2.0/24", "10.0.0.1")
        assert len(found.complaints) == 1
        assert found.complaints[0].startswith("rate_limit.deny: expected at most 2 networks with those of files")
    write(path, "10.0.0.2\n", at=1002)
    assert found.refresh()
    assert found.complaints == []


def test_lists_of_a_config(tmp_path: Path) -> None:
    write(tmp_path / "a", "10.0.0.1\n")
    write(tmp_path / "d", "10.0.0.2\nbad\n")
    config = rate_limit(
        f"allow: [192.0.2.1], management: [10.1.0.0/16], deny: [198.51.100.0/24], "
        f"allow_files: [{tmp_path / 'a'}], deny_files: [{tmp_path / 'd'}]"
    )
    allowed, denied = allow_list(config), deny_list(config)
    assert allowed.refresh()
    assert denied.refresh()
    assert allowed.prefixes == keys("192.0.2.1", "10.1.0.0/16", "10.0.0.1")
    assert denied.prefixes == keys("198.51.100.0/24")
    assert complaints_of(config) == denied.complaints
    assert len(denied.complaints) == 1
