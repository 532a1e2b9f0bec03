# SPDX-License-Identifier: Apache-2.0
"""The Envoy driver where links lead to the file: as Kubernetes mounts it, as git-sync does, or by hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lab.lab import Lab
from tests.lab.remains import wait_until
from tests.lab.rigs.envoy import YAML, EnvoyRig, settle
from tests.lab.rigs.rig import ENDPOINTS, journal
from tidegate.errors import DriverError
from tidegate.model.driver import Use

pytestmark = pytest.mark.lab
FIRST, SECOND, THIRD = ENDPOINTS
ALL_ACTIVE = dict.fromkeys(ENDPOINTS, Use.ACTIVE)
#: A path, the links on its way, and what Envoy watches.
LINKS: dict[str, tuple[str, dict[str, str], str | None]] = {
    "none": ("inventory.yaml", {}, ""),
    "the file": ("inventory.yaml", {"inventory.yaml": "real/eds.yaml"}, None),
    "a directory": (
        "inventory.yaml",
        {"..data": "..2026_01", "inventory.yaml": "..data/inventory.yaml"},
        "",
    ),
    "a directory in the path": ("current/eds/inventory.yaml", {"current": "worktrees/1"}, ""),
    "a directory above": ("etc/inventory.yaml", {"etc": "opt/envoy"}, None),
}


@pytest.mark.parametrize("layout", LINKS.values(), ids=LINKS)
def test_links_are_exchanged_and_put_back(
    lab: Lab, tmp_path: Path, layout: tuple[str, dict[str, str], str | None]
) -> None:
    eds, links, watched = layout
    rig = EnvoyRig(lab, eds=eds, links=links, watched=watched)
    real = Path(os.path.realpath(rig.eds))
    beside = real.parent / "beside.yaml"
    beside.write_text("of others", encoding="ascii")
    before = rig.state()
    driver = rig.driver(journal(tmp_path, "envoy"))
    found = driver.discover()
    assert (found.refusals, found.warnings) == ((), ())
    for out in ({FIRST: 0}, {FIRST: 0, SECOND: 0}, {SECOND: 0}):
        uses = settle(driver, out)
        assert uses == ALL_ACTIVE | dict.fromkeys(out, Use.EJECTED)
        assert set(rig.reached(60)) == {*ENDPOINTS} - out.keys()
        assert driver.apply(out) == []
    is_exchanged = os.path.realpath(rig.eds) != str(real)
    assert is_exchanged is (layout not in (LINKS["none"], LINKS["a directory above"]))
    if is_exchanged:
        assert real.read_bytes() == YAML.encode(), "what was found stays untouched"
        assert real.with_name("beside.yaml").read_text(encoding="ascii") == "of others"
    assert Path(os.path.realpath(rig.eds)).with_name("beside.yaml").exists()
    rig.restart()
    following = rig.driver(journal(tmp_path, "envoy"))
    assert following.read() == ALL_ACTIVE | {SECOND: Use.EJECTED}
    following.restore()
    wait_until(lambda: following.read() == ALL_ACTIVE, "all active")
    assert rig.state() == before, "nothing of ours is left"
    assert not list(tmp_path.glob("*.json"))
    assert set(rig.reached(60)) == {*ENDPOINTS}


class Killed(BaseException):
    """What ends a process anywhere."""


@pytest.mark.parametrize("step", ["write", "put_back", "remove"])
@pytest.mark.parametrize("layout", LINKS.values(), ids=LINKS)
def test_an_agent_that_dies_in_between_leaves_all_to_the_next(
    lab: Lab,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    layout: tuple[str, dict[str, str], str | None],
    step: str,
) -> None:
    """Killed before it writes, before it puts back, or before it removes what nobody needs any more."""
    eds, links, watched = layout
    rig = EnvoyRig(lab, eds=eds, links=links, watched=watched)
    before = rig.state()
    dying = rig.driver(journal(tmp_path, "envoy"))
    settle(dying, {FIRST: 0})
    with monkeypatch.context() as patch:

        def die(*_: object) -> None:
            raise Killed

        patch.setattr(dying._file, step, die)
        with pytest.raises(Killed):
            dying.apply({} if step == "put_back" else {SECOND: 0})
    following = rig.driver(journal(tmp_path, "envoy"))
    out = SECOND if step == "remove" else FIRST
    wait_until(lambda: following.read() == ALL_ACTIVE | {out: Use.EJECTED}, f"{out} is out")
    assert settle(following, {THIRD: 0}) == ALL_ACTIVE | {THIRD: Use.EJECTED}
    following.restore()
    wait_until(lambda: following.read() == ALL_ACTIVE, "all active")
    assert rig.state() == before
    assert not list(tmp_path.glob("*.json"))


def test_a_file_behind_our_link_is_still_the_operators(lab: Lab, tmp_path: Path) -> None:
    rig = EnvoyRig(lab, links={"inventory.yaml": "real/eds.yaml"})
    real, link = rig.directory / "real" / "eds.yaml", rig.eds
    driver = rig.driver(journal(tmp_path, "envoy"))
    settle(driver, {FIRST: 0})
    # He edits the file that he knows.
    real.write_text(YAML.replace('"HEALTHY"', "DRAINING"), encoding="utf-8")
    assert driver.read()[FIRST] is Use.ACTIVE
    assert settle(driver, {FIRST: 0}) == {FIRST: Use.EJECTED, SECOND: Use.ACTIVE, THIRD: Use.HELD}
    # He edits it by its path, which leads to ours: it is his wish all the same.
    link.write_text(link.read_text(encoding="utf-8").replace('version_info: "7"', "version_info: x"), "utf-8")
    assert settle(driver, {}) == ALL_ACTIVE | {THIRD: Use.HELD}
    expected = YAML.replace('"HEALTHY"', "DRAINING").replace('version_info: "7"', "version_info: x")
    assert real.read_text(encoding="utf-8") == expected
    assert os.readlink(link) == "real/eds.yaml"
    assert sorted(path.name for path in real.parent.iterdir()) == ["eds.yaml"]


def test_a_controller_that_moves_its_link_on_is_followed(lab: Lab, tmp_path: Path) -> None:
    eds, links, watched = LINKS["a directory"]
    rig = EnvoyRig(lab, eds=eds, links=links, watched=watched)
    driver = rig.driver(journal(tmp_path, "envoy"))
    settle(driver, {FIRST: 0})
    following = rig.directory / "..2026_02"
    following.mkdir()
    (following / "inventory.yaml").write_text(YAML.replace('"HEALTHY"', "DRAINING"), encoding="utf-8")
    (rig.directory / "..data_tmp").symlink_to("..2026_02")
    (rig.directory / "..data_tmp").rename(rig.directory / "..data")
    wait_until(lambda: driver.read() == ALL_ACTIVE | {THIRD: Use.HELD}, "the controller's")
    expected = {FIRST: Use.EJECTED, SECOND: Use.ACTIVE, THIRD: Use.HELD}
    assert settle(driver, {FIRST: 0}) == expected
    driver.restore()
    assert os.readlink(rig.directory / "..data") == "..2026_02"
    names = {path.name for path in rig.directory.iterdir()}
    assert names == {"..data", "..2026_01", "..2026_02", "inventory.yaml"}


def test_what_envoy_would_not_notice_is_refused(lab: Lab, tmp_path: Path) -> None:
    eds, links, _ = LINKS["a directory"]
    rig = EnvoyRig(lab, eds=eds, links=links)
    before = rig.state()
    driver = rig.driver(journal(tmp_path, "envoy"))
    (refusal,) = driver.discover().refusals
    assert f"watched_directory: {rig.directory} of the driver" in refusal
    assert driver.read() == ALL_ACTIVE
    with pytest.raises(DriverError, match="Envoy reads such a file again only with"):
        driver.apply({FIRST: 0})
    other = rig.driver(journal(tmp_path, "envoy"), watched_directory=str(tmp_path))
    assert any("Envoy would not notice" in refusal for refusal in other.discover().refusals)
    assert rig.state() == before
    assert not list(tmp_path.glob("*.json"))
