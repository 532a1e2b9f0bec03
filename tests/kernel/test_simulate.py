# SPDX-License-Identifier: Apache-2.0
"""``tidegate ratelimit simulate``: captures of each form through the real program, and files that aren't whole."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, CookedLinux, Dot1Q, Ether
from scapy.packet import Packet
from scapy.utils import PcapNgWriter, PcapWriter

from tests.lab.agent import command

pytestmark = pytest.mark.kernel

CONFIG = """
rate_limit:
  default:
    syn: {rate: 10/s, burst: 20}
    packets: {rate: 1000/s, burst: 1000}
    bytes: {rate: 1MB/s, burst: 100KB}
  allow: [192.0.2.0/24]
  deny: ["2001:db8:bad::/48"]
"""


def at(seconds: float, packet: Packet) -> Packet:
    packet.time = 1_700_000_000 + seconds
    return packet


def syn(source: str = "198.51.100.7", port: int = 443) -> Packet:
    return IP(src=source, dst="203.0.113.1") / TCP(sport=40000, dport=port, flags="S")


def simulated(directory: Path, *options: str) -> list[dict[str, object]]:
    done = run(directory, "--json", *options)
    assert done[0] == 0, done
    return [json.loads(line) for line in done[1].splitlines()]


def run(directory: Path, *options: str) -> tuple[int, str, str]:
    (directory / "config.yaml").write_text(CONFIG, encoding="utf-8")
    paths = ("--config", str(directory / "config.yaml"), "--pcap", str(directory / "capture"))
    done = command("ratelimit", "simulate", *paths, *options)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("kind", "link", "head"),
    [
        ("pcap", 1, Ether()),
        ("pcapng", 1, Ether() / Dot1Q(vlan=5)),
        ("pcap", 101, None),
        ("pcap", 113, CookedLinux()),
        ("nano", 1, Ether()),
    ],
)
def test_a_burst_by_the_captures_clock(tmp_path: Path, kind: str, link: int, head: Packet | None) -> None:
    path = str(tmp_path / "capture")
    times = [0.0] * 30 + [0.125, 0.125, 2.125]
    framed = [at(t, syn() if head is None else head / syn()) for t in times]
    if kind == "pcapng":
        with PcapNgWriter(path) as writer:
            writer.write(framed)
    else:
        with PcapWriter(path, linktype=link, nano=kind == "nano") as writer:
            writer.write(framed)
    found = simulated(tmp_path)
    assert [line["packet"] for line in found] == list(range(1, 34))
    assert {line["source"] for line in found} == {"198.51.100.7"}
    assert [line["t"] for line in found] == pytest.approx(times, abs=1e-5)
    verdicts = [(line["verdict"], line["reason"]) for line in found]
    assert verdicts[:30] == [("pass", "within")] * 21 + [("drop", "syn")] * 9
    assert [verdict for verdict, _ in verdicts[30:]] == ["pass", "drop", "pass"]


def test_every_kind_of_packet_has_a_verdict_and_a_reason(tmp_path: Path) -> None:
    sent = [
        (Ether() / syn("192.0.2.9"), "192.0.2.9", ("pass", "allowed")),
        (Ether() / IPv6(src="2001:db8:bad::1") / UDP(dport=443), "2001:db8:bad::1", ("drop", "denied")),
        (Ether() / syn(port=22), "198.51.100.7", ("pass", "port")),
        (Ether() / ARP(), None, ("pass", "not_ip")),
        (Ether() / IP(src="198.51.100.7", proto=1), "198.51.100.7", ("pass", "protocol")),
        *[
            (Ether() / IP(src="198.51.100.9") / UDP(dport=443) / bytes(60_000), "198.51.100.9", verdict)
            for verdict in [("pass", "within"), ("pass", "within"), ("drop", "bytes")]
        ],
    ]
    with PcapWriter(str(tmp_path / "capture"), linktype=1) as writer:
        writer.write([at(0.0, packet) for packet, _, _ in sent])
    found = simulated(tmp_path, "--listen", "80,443")
    assert [(line["source"], (line["verdict"], line["reason"])) for line in found] == [
        (source, verdict) for _, source, verdict in sent
    ]
    table = run(tmp_path, "--listen", "80,443")[1]
    assert "drops of 198.51.100.9" in table


@pytest.mark.parametrize("head", [Ether(), Ether() / Dot1Q(vlan=5)], ids=["plain", "VLAN"])
@pytest.mark.parametrize("ip", [IP(src="198.51.100.9"), IPv6(src="2001:db8::9")], ids=["IPv4", "IPv6"])
def test_what_the_capture_has_cut_off_counts(tmp_path: Path, head: Packet, ip: Packet) -> None:
    frame = bytes(head / ip / UDP(dport=443) / bytes(1_400))
    cut = len(frame) - 1_400 + 6  # all headers, and no more than is read of them
    with PcapWriter(str(tmp_path / "capture"), linktype=1) as writer:
        writer.write_header(frame)
        for _ in range(100):
            writer.write_packet(frame[:cut], sec=1_700_000_000, usec=0, caplen=cut, wirelen=len(frame))
    verdicts = [(line["verdict"], line["reason"]) for line in simulated(tmp_path)]
    # A burst, and the one that crosses it.
    passed = 100_000 // len(frame) + 1
    assert verdicts == [("pass", "within")] * passed + [("drop", "bytes")] * (100 - passed)


def test_a_clock_that_goes_back_locks_nobody_out(tmp_path: Path) -> None:
    times = [10.0] * 22 + [0.0] + [10.1] * 2 + [1e6, 5.0]
    with PcapWriter(str(tmp_path / "capture"), linktype=1) as writer:
        writer.write([at(t, Ether() / syn()) for t in times])
    verdicts = [line["verdict"] for line in simulated(tmp_path)]
    assert verdicts[:22] == ["pass"] * 21 + ["drop"]
    assert verdicts[22] == "pass"
    assert verdicts[-2:] == ["pass", "pass"]


@pytest.mark.parametrize("cut", [-1, -40])
def test_a_file_that_is_cut_off_is_said_with_the_packet(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "capture"
    with PcapWriter(str(path), linktype=1) as writer:
        writer.write([at(0.0, Ether() / syn()) for _ in range(3)])
    path.write_bytes(path.read_bytes()[:cut])
    code, out, error = run(tmp_path, "--json")
    assert code == 1
    assert len(out.splitlines()) == 2
    assert "packet 3" in error
    assert "Traceback" not in error


def test_whatever_is_in_a_file_nothing_breaks(tmp_path: Path) -> None:
    path, rng = tmp_path / "capture", random.Random(5)
    with PcapNgWriter(str(path)) as writer:
        writer.write([at(0.0, Ether() / syn()) for _ in range(3)])
    good = path.read_bytes()
    codes = set()
    for _ in range(30):
        broken = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        path.write_bytes(broken)
        code, _, error = run(tmp_path, "--json")
        codes.add(code)
        assert code in (0, 1), error
        assert "internal error" not in error
    assert codes == {0, 1}
    path.write_bytes(b"")
    assert run(tmp_path)[0] == 1
