# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random
import re

import pytest

from tests.unit.test_ratelimit_policy import rate_limit
from tidegate.config import Config, parse, to_yaml
from tidegate.config.keys import Audit, Privacy
from tidegate.config.limits import Bucket, ByteBucket, Feed, Limits, RateLimit
from tidegate.config.reader import parse_as
from tidegate.errors import ConfigError
from tidegate.ratelimit.lists import allow_list, deny_list
from tidegate.ratelimit.policy import compiled, sizes

pytestmark = pytest.mark.unit

CONTRACT = b"""\
rate_limit:
  interfaces: [eth0]
  mode: monitor            # off | monitor | enforce
  generic: refuse          # refuse | allow: XDP in generic mode where the driver has no native one
  persist: false
  default:                 # any of the three may be left out
    syn: {rate: 10/s, burst: 20}
    packets: {rate: 2000/s, burst: 4000}
    bytes: {rate: 12MB/s, burst: 24MB}
  ports: {"443": {syn: {rate: 50/s, burst: 100}}}
  allow: [192.0.2.0/24]
  deny: []
"""


def test_the_section_as_other_programs_write_it() -> None:
    assert parse(CONTRACT, "f").rate_limit == RateLimit(
        interfaces=["eth0"],
        default=Limits(
            syn=Bucket(rate=10.0, burst=20),
            packets=Bucket(rate=2000.0, burst=4000),
            bytes=ByteBucket(rate=12e6, burst=24_000_000),
        ),
        ports={"443": Limits(syn=Bucket(rate=50.0, burst=100))},
        allow=["192.0.2.0/24"],
    )


def test_limiter_and_feed_are_off_by_themselves() -> None:
    config = Config()
    assert config.rate_limit.interfaces == []
    assert (config.rate_limit.mode, config.rate_limit.default) == ("monitor", Limits())
    assert (config.rate_limit.feed.listen, config.rate_limit.feed.unauthorized.within) == (None, 60.0)
    assert config.privacy == Privacy(client_addresses="truncate")
    assert config.audit == Audit(max_size=16 << 20, files=8, retention=90 * 86_400.0)


def test_a_storm_keeps_the_time_of_its_kind() -> None:
    feed = rate_limit("feed: {unauthorized: {count: 5}, limited: {count: 6}}").feed
    assert (feed.unauthorized.count, feed.unauthorized.within) == (5, 60.0)
    assert (feed.limited.count, feed.limited.within) == (6, 10.0)


@pytest.mark.parametrize(
    ("text", "listen"),
    [
        ("off", None),
        ("127.0.0.1:5140", "127.0.0.1:5140"),
        ("'[::1]:5140'", "[::1]:5140"),
        ("/run/tidegate/nginx.sock", "/run/tidegate/nginx.sock"),
    ],
)
def test_where_the_feed_listens(text: str, listen: str | None) -> None:
    assert rate_limit(f"feed: {{listen: {text}}}").feed == Feed(listen=listen)


@pytest.mark.parametrize(
    ("text", "key"),
    [("443", "443"), ("'443, 80'", "80,443"), ("8000-8010", "8000-8010"), ("'81,80-82,83'", "80-83")],
)
def test_ports_have_one_text(text: str, key: str) -> None:
    assert list(rate_limit(f"ports: {{{text}: {{}}}}").ports) == [key]


PORTS = "expected ports like 443, 80,443 or 8000-8010 (1 to 65535), found"
RATE = "expected a rate like 10/s or 100/m, found"
NAME = "expected the name of an interface like eth0, or a pattern like eth*, found"
REACH = "expected a burst that is earned anew in less than 36028797s at this rate, found more"
#: Complaints by texts with a mark at their place.
BAD = {
    "default: {syn: {rate: ^10}}": f"default.syn.rate: {RATE} '10'",
    "default: {syn: {rate: ^10rps}}": f"default.syn.rate: {RATE} '10rps'",
    "default: {syn: {rate: ^10G/s}}": f"default.syn.rate: {RATE} '10G/s'",
    "default: {syn: {rate: ^0/s}}": (
        "default.syn.rate: expected more than 0/s and at most 1000000000/s, found '0/s'"
    ),
    "default: {syn: ^{burst: 10}}": "default.syn.rate: missing",
    "default: {syn: {rate: 1/s, burst: ^1MB}}": "default.syn.burst: expected a whole number, found '1MB'",
    "default: {bytes: {rate: ^1MB, burst: 1MB}}": (
        "default.bytes.rate: expected bytes in a time like 12MB/s or 64KiB/s, found '1MB'"
    ),
    "default: {bytes: {rate: 1MB/s, burst: ^65535}}": (
        "default.bytes.burst: expected 64KiB to 1024TiB, found '65535'"
    ),
    "default: {bytes: ^{rate: 1MB/s}}": "default.bytes.burst: missing",
    "default: {bytes: {rate: ^1B/h, burst: 1MB}}": "default.bytes.rate: expected 1B/s to 1TB/s, found '1B/h'",
    "default: {syn: ^{rate: 1/h, burst: 10008}}": f"default.syn: {REACH}",
    "default: {wide: {bytes: ^{rate: 1/s, burst: 1GB}}}": f"default.wide.bytes: {REACH}",
    "default: {wide: {^wide: {}}}": "default.wide.wide: unknown key; known here: syn, packets, bytes",
    "ports: {^https: {}}": f"ports: {PORTS} 'https'",
    "ports: {^0: {}}": f"ports: {PORTS} '0'",
    "ports: {^70000: {}}": f"ports: {PORTS} '70000'",
    "ports: {^80-79: {}}": f"ports: {PORTS} '80-79'",
    "ports: {^'80,': {}}": f"ports: {PORTS} '80,'",
    "ports: {'80,443': {}, ^'443,80': {}}": "ports.443,80: given twice, first as another form of 80,443",
    "^ports: {443: {}, 400-500: {}}": (
        ": ports: expected ports in one entry each, found 443 in '400-500' and '443'"
    ),
    "^udp: {443: {syn: {rate: 1/s}}}": (": udp.443.syn: expected limits of packets or bytes, as UDP has no SYN"),
    "listen: [^http]": f"listen[0]: {PORTS} 'http'",
    "listen: ^all": "listen: expected one of auto, found 'all'",
    "mode: ^on": "mode: expected one of off, monitor, enforce, found 'on'",
    "interfaces: [^eth/0]": f"interfaces[0]: {NAME} 'eth/0'",
    "interfaces: [^sixteen-letters-]": f"interfaces[0]: {NAME} 'sixteen-letters-'",
    "interfaces: [^'..']": f"interfaces[0]: {NAME} '..'",
    "allow: [^10.0.0.1/8]": (
        "allow[0]: expected a network like 10.0.0.0/8 or fd00::/8, found '10.0.0.1/8': "
        "10.0.0.1/8 has host bits set"
    ),
    "allow_files: [^/no/where]": (
        "allow_files[0]: expected a file, found none at '/no/where': No such file or directory"
    ),
    "sketch_cells: ^3000": "sketch_cells: expected a power of two like 2048 or 4096, found '3000'",
    "sketch_cells: ^512": "sketch_cells: expected 1024 to 16777216, found '512'",
    "sketch_cells: ^many": "sketch_cells: expected a power of two like 65536, found 'many'",
    "feed: {listen: ^nginx.sock}": (
        "feed.listen: expected the path of a socket like /run/tidegate/nginx.sock, ADDRESS:PORT like "
        "127.0.0.1:5140, or off, found 'nginx.sock'"
    ),
    "feed: {ban: ^{duration: 2h}}": "feed.ban: longest: expected at least the duration, 2h, found 1h",
    "^max_bans: 100": ": feed.ban.at_most: expected at most max_bans, 100, found 10000",
}


@pytest.mark.parametrize(("text", "complaint"), BAD.items())
def test_complaint_with_line_and_column(text: str, complaint: str) -> None:
    begin = "rate_limit: {"
    with pytest.raises(ConfigError) as caught:
        parse(f"{begin}{text.replace('^', '')}}}".encode(), "f")
    # A complaint that joins keys is at the section.
    column, path = (
        (len(begin), "rate_limit") if text[0] == "^" else (len(begin) + text.index("^") + 1, "rate_limit.")
    )
    assert caught.value.complaints == [f"f:1:{column}: {path}{complaint}"]


def test_more_entries_than_the_kernel_has_room_for() -> None:
    ports = ", ".join(f"{port}: {{}}" for port in range(1, 32))
    assert len(rate_limit(f"ports: {{{ports}}}, udp: {{{ports}}}").udp) == 31
    with pytest.raises(ConfigError, match=r"f:1:13: rate_limit: ports, udp: expected at most 62 .*, found 63"):
        rate_limit(f"ports: {{{ports}, 99: {{}}}}, udp: {{{ports}}}")
    networks = ", ".join(f"10.0.{n}.0/24" for n in range(256))
    assert len(rate_limit(f"allow: [{networks}], max_prefixes: 256").allow) == 256
    with pytest.raises(ConfigError, match=r"rate_limit: allow: expected at most max_prefixes, 256, .* found 257"):
        rate_limit(f"allow: [{networks}], management: [192.0.2.0/24], max_prefixes: 256")


INTERFACES = b"""\
rate_limit: {interfaces: [eth*, 'enp0s[0-9]'], mode: enforce, generic: allow, persist: true,
  listen: [443, 30000-32767], max_sources: 131072, sketch_cells: 262144, max_bans: 65536}
"""
POLICIES = b"""\
rate_limit:
  default:
    syn: {rate: 600r/m, burst: 20}
    wide:
      packets: {rate: 9/s}
  ports:
    80,443: {bytes: {rate: 64KiB/s, burst: 64KiB}}
    8000-8010:
  udp: {443: {packets: {rate: 2/s}}}
"""
LISTS = b"""\
rate_limit:
  allow: [192.0.2.0/24, '2001:db8::/32', '::/0', 10.0.0.1]
  deny: [0.0.0.0/0, 'fe80::/10']
  management: [172.16.0.0/12]
  allow_files: [/etc/hostname]
  max_prefixes: 1000
"""
FEED = b"""\
rate_limit:
  feed:
    listen: 127.0.0.1:5140
    limited: {count: 20, within: 10s}
    ban: {duration: 60s, escalation: 2, longest: 1h, at_most: 100}
privacy: {client_addresses: hash}
audit: {file: /a, max_size: 16MiB, files: 8, retention: 90d}
"""
SEEDS = [CONTRACT, INTERFACES, POLICIES, LISTS, FEED]
NUMBERS = [b"0", b"1", b"2", b"7", b"64", b"443", b"1000", b"65535", b"65536", b"1000000", b"9" * 15, b"9" * 40]
WORDS = [
    *NUMBERS, b"-1", b"1e99", b"0.0000000000000000001/s", b"1000000000/s", b"0/s", b"1r/s", b"5TB/s", b"1B/h",
    b"64KiB", b"1TiB", b"1h", b"365d", b"1-65535", b"'80,80'", b"80-", b"'::/0'", b"'::fffe:0:0/95'",
    b"10.0.0.1/8", b"'fe80::1%lo'", b"off", b"~", b"", b"true", b"[]", b"{}", b"''", b"'\"", b"&a", b"*a",
    b"!x y", b"<<", b"{<<: *a}", b"{rate: 1/s}", b"[443, 443]", b"auto", b'"\\ud83d"', b'"\\0"', b"\xc3\xa9",
    b"\xff", b"\t", b"eth*" * 30, b"/etc", b"/dev/null", b"- ", b": ", b"\n",
]  # fmt: skip
DIGITS = re.compile(rb"\d+")
TOKEN = re.compile(rb"[^\s{}\[\],:]+")


def mutated(chance: random.Random) -> bytes:
    """Return a valid file with one to three things changed in it."""
    text = chance.choice(SEEDS)
    for _ in range(chance.choice((1, 1, 2, 3))):
        start = chance.randrange(len(text))
        end, way = start + chance.randrange(8), chance.randrange(8)
        found = list((DIGITS if way < 4 else TOKEN).finditer(text))
        if way < 7 and found:
            start, end = chance.choice(found).span()
        text = text[:start] + chance.choice(NUMBERS if way < 4 else WORDS) + text[end:]
    return text


def complaints_of(text: bytes, accepted: list[RateLimit]) -> list[str]:
    try:
        accepted.append(parse(text, "f").rate_limit)
    except ConfigError as error:
        return error.complaints
    return []


def test_a_thousand_mutated_files_are_accepted_or_refused_at_their_place() -> None:
    chance = random.Random(20260101)
    accepted: list[RateLimit] = []
    refusals = [found for _ in range(1000) if (found := complaints_of(mutated(chance), accepted))]
    assert len(accepted) + len(refusals) == 1000
    assert min(len(accepted), len(refusals)) > 150
    for complaint in (complaint for found in refusals for complaint in found):
        assert re.match(r"f:\d+:\d+: ", complaint)
    for config in accepted:
        result = compiled(config, [80, 443, 8000, 65535], range(1, 65536, 997))
        assert len(result.names) == 2 + len(config.ports) + len(config.udp)
        assert min(sizes(config).values()) > 0
        for addresses in (allow_list(config), deny_list(config)):
            addresses.refresh()
    for config in accepted[::10]:
        assert parse_as(RateLimit, to_yaml(config).encode(), "f") == config
