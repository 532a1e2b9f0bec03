# SPDX-License-Identifier: Apache-2.0
"""``tidegate pools``: the drivers of pools, what proxies say to them, and how all of it is put back."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from tidegate.breaker.configured import members
from tidegate.config import Config, load
from tidegate.config.pools import AnyDriver, FailfastDriver
from tidegate.control.client import ControlClient
from tidegate.errors import DriverError, TidegateError, UnavailableError
from tidegate.lock import AgentLock
from tidegate.pools import failfast, making

app = typer.Typer(no_args_is_help=True, help="The drivers of pools, and what proxies say to them.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
File = Annotated[Path | None, typer.Option("-c", "--config", help="The config; the agent's own by default.")]
_CONFIG = Path("/etc/tidegate/tidegate.yaml")
#: A proxy that is away when an agent has died is tried again for so long, and so often.
_PATIENCE, _AGAIN = 120.0, 1.0


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """What one driver finds before it writes anything."""

    pool: str
    driver: str
    target: str
    version: str
    uses: dict[str, str]
    can_write: bool
    problems: tuple[str, ...]
    warnings: tuple[str, ...]


@app.command("list")
def list_(
    json: Json = False,
    socket: Annotated[Path | None, typer.Option("--socket", help="The agent's control socket.")] = None,
) -> None:
    """Show the drivers of the running agent: what each proxy says, and how its updates went."""
    with ControlClient(socket or Path(load(None).control.socket)) as client:
        rows = client.request("pools.list", {})
    if json:
        typer.echo(msgspec.json.encode(rows).decode())
        return
    if not rows:
        typer.echo("no pools: 'pools' of the config names none")
    for row in rows:
        for line in _lines(row):
            typer.echo(line)


def _lines(row: Mapping[str, Any]) -> Iterator[str]:
    version = f" {row['version']}" if row["version"] else ""
    counts = ", ".join(f"{each['count']} {each['result']}" for each in row["updates"] if each["count"])
    yield f"{row['pool']}: {row['driver']}{version}, {row['target']}: {row['standing']}" + (
        f" ({counts})" if counts else ""
    )
    for endpoint, use in row["uses"].items():
        refused = "  not taken out: too few would be left" if endpoint in row["refused"] else ""
        yield f"  {endpoint:<24} {use}{refused}"
    if row["error"]:
        yield f"  error: {row['error']}"
    for warning in row["warnings"]:
        yield f"  warning: {warning}"


@app.command()
def check(config_file: File = None, json: Json = False) -> None:
    """Look at each proxy of the config as its driver does, and whether it could write; changes nothing."""
    config = load(config_file or (_CONFIG if _CONFIG.exists() else None))
    known = members(config.pools)
    found = [
        _check(config, name, driver, section, known[name].endpoints)
        for name, pool in config.pools.items()
        for driver, section in making.names(pool.drivers)
    ]
    if json:
        typer.echo(msgspec.json.encode(found).decode())
    else:
        for each in found:
            for line in _checked_lines(each):
                typer.echo(line)
        if not found:
            typer.echo("no drivers: 'drivers' of no pool of the config names any")
    if not all(each.can_write for each in found):
        sys.exit(1)


def _checked_lines(found: Checked) -> Iterator[str]:
    version = f" {found.version}" if found.version else ""
    verdict = "could write" if found.can_write else "could NOT write"
    yield f"{found.pool}: {found.driver}{version}, {found.target}: {verdict}"
    for endpoint, use in found.uses.items():
        yield f"  {endpoint:<24} {use}"
    for problem in found.problems:
        yield f"  error: {problem}"
    for warning in found.warnings:
        yield f"  warning: {warning}"


def _check(config: Config, pool: str, name: str, section: AnyDriver, endpoints: tuple[str, ...]) -> Checked:
    if isinstance(section, FailfastDriver):
        return _check_failfast(pool, name)
    problems: list[str] = []
    warnings: tuple[str, ...] = ()
    uses: dict[str, str] = {}
    version, target = "", making.name_of(section)
    try:
        journal = making.journal_of(Path(config.breaker.journal), pool, name, section, endpoints)
        driver = making.make(section, endpoints, journal)
        target = driver.target
        try:
            found = driver.discover()
            version, warnings = found.version, found.warnings
            problems += found.refusals
            uses = {endpoint: str(use) for endpoint, use in driver.read().items()}
        finally:
            driver.close()
    except DriverError as error:
        problems.append(str(error))
    return Checked(
        pool=pool, driver=name, target=target, version=version, uses=uses, can_write=not problems,
        problems=tuple(problems), warnings=warnings,
    )  # fmt: skip


def _check_failfast(pool: str, name: str) -> Checked:
    """See whether the kernel takes the programs; whose connects they would refuse is the breaker's to say."""
    problems: list[str] = []
    warnings: tuple[str, ...] = ()
    try:
        bpf, refusal = failfast.load()
        bpf.close()
        warnings = (refusal,) if refusal else ()
    except TidegateError as error:
        problems.append(str(error))
    return Checked(
        pool=pool, driver=name, target=failfast.FailfastDriver.target, version="", uses={},
        can_write=not problems, problems=tuple(problems), warnings=warnings,
    )  # fmt: skip


@app.command()
def restore(
    config_file: File = None,
    journal: Annotated[Path | None, typer.Option("--journal", help="breaker.journal of the config.")] = None,
    lock: Annotated[Path | None, typer.Option("--lock", help="The lock of the agent.")] = None,
    instead_of: Annotated[
        int | None, typer.Option("--instead-of", help="The agent that died or hangs, by its pid.", hidden=True)
    ] = None,
) -> None:
    """Put back all that an agent has done to proxies and could not undo: to uninstall, or after it has died.

    A running agent does that itself when it stops, so it is refused while one runs.
    """
    if journal is None or lock is None:  # else it works without a config, which may be broken by now
        config = load(config_file or (_CONFIG if _CONFIG.exists() else None))
        journal = journal or Path(config.breaker.journal)
        lock = lock or Path(config.control.socket).with_name("agent.lock")
    if instead_of is not None:
        _put_back_instead(instead_of, journal, lock)
        return
    with AgentLock(lock):
        complaints = _put_back(journal, lambda: None)
    if complaints:
        raise TidegateError("\n".join(complaints))


def holder(path: Path) -> int | None:
    """Return the pid in an agent's lock."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _put_back_instead(of: int, directory: Path, lock: Path) -> None:
    """Put back what an agent can't that is dead or hangs, again and again while proxies are away."""

    def check() -> None:
        if reason := _taken_over(lock, of):
            typer.echo(reason)
            raise typer.Exit

    end = time.monotonic() + _PATIENCE
    while complaints := _put_back(directory, check):
        if time.monotonic() > end:
            raise TidegateError("\n".join(complaints))
        time.sleep(_AGAIN)


def _taken_over(lock: Path, of: int) -> str:
    """Say who does it now: another agent, or the one that hung; empty where nobody does.

    The lock isn't kept, so that another agent can start at any time; it finds the journals, as this command does.
    """
    try:
        AgentLock(lock).close()
    except UnavailableError:
        raise
    except TidegateError:
        if holder(lock) != of:
            return "another agent runs on this node, and puts back what the one before it did"
        # The lease's word comes over stdin, as it did before this command took the place of the lease's child.
        if select.select([0], [], [], 0)[0] and os.read(0, 4096):
            return "the agent goes on, and is in charge of its proxies again"
    return ""


def _put_back(directory: Path, check: Callable[[], None]) -> list[str]:
    """Put back what the journals tell, with a check before each; return what could not be, and why."""
    found, complaints = making.kept_in(directory)
    check()
    if not found and not complaints:
        typer.echo(f"nothing to put back: no journal in {directory}")
    for path, kept in found:
        check()
        try:
            driver, journal = making.from_journal(path, kept)
            try:
                with journal.turn():
                    exchanges = driver.restore() if journal.entries else []
            finally:
                driver.close()
        except DriverError as error:
            complaints.append(f"{kept.pool}: {kept.driver}: {error}")
            continue
        except Exception as error:  # noqa: BLE001 - of one driver must not keep the others from it
            complaints.append(f"{kept.pool}: {kept.driver}: {path}: a fault of this program: {error!r}")
            continue
        for exchange in exchanges:
            typer.echo(f"{kept.pool}: {kept.driver}: {exchange.command}: {exchange.answer.strip() or 'done'}")
    return complaints
