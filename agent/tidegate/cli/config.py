# SPDX-License-Identifier: Apache-2.0
"""``tidegate config``: check a file, show what is in effect, print the schema, say what memory it takes."""

from __future__ import annotations

import json as jsonlib
import os
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from tidegate.config import load, to_builtins, to_yaml
from tidegate.config import schema as schema_of
from tidegate.errors import ConfigError
from tidegate.ratelimit.lists import complaints_of

app = typer.Typer(help="Check a config file, show the effective config, print its schema.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="Print JSON.", show_default=False)]


@app.command()
def check(file: Annotated[Path, typer.Argument(help="Config file.")], json: Json = False) -> None:
    """Report every error of a config file as FILE:LINE:COL: path: message, then those of the files that it names.

    What is no error but worth a second look comes as FILE:LINE:COL: path: warning: message.
    """
    errors: list[str] = []
    warnings: list[str] = []
    try:
        warnings = _check(file)
    except ConfigError as error:
        if not json:
            raise
        errors = error.complaints
    if json:
        typer.echo(jsonlib.dumps({"file": str(file), "errors": errors, "warnings": warnings}))
    else:
        for warning in warnings:
            typer.echo(os.fsencode(warning))
        # Bytes, because a file may have a name that no encoding takes.
        typer.echo(os.fsencode(file) + b": ok")
    if errors:
        raise typer.Exit(ConfigError.exit_code)


def _check(file: Path) -> list[str]:
    """Return the warnings; raises ConfigError with all errors."""
    from tidegate.breaker.configured import resolve  # noqa: PLC0415 - of no use to the agent, which is a command too
    from tidegate.config.nodes import compose  # noqa: PLC0415

    config = load(file)
    pools = resolve(config.pools)
    tree = compose(file.read_bytes(), str(file))[0] if config.pools else None
    complaints = [*complaints_of(config.rate_limit), *(said.of(str(file), tree) for said in pools.complaints)]
    if complaints:
        raise ConfigError(complaints)
    return [said.of(str(file), tree) for said in pools.warnings]


@app.command()
def show(
    file: Annotated[Path | None, typer.Option("-c", "--config", help="Config file.")] = None,
    json: Json = False,
) -> None:
    """Print the effective config: the file's keys, and the defaults of all others."""
    config = load(file)
    typer.echo(jsonlib.dumps(to_builtins(config)) if json else to_yaml(config).rstrip())


@app.command()
def memory(
    file: Annotated[Path, typer.Argument(help="Config file.")],
    cpus: Annotated[
        int | None,
        typer.Option("--cpus", min=1, max=8192, help="Possible CPUs of the node; default: of this one."),
    ] = None,
    json: Json = False,
) -> None:
    """Print the memory of the BPF maps that a config asks for: from the start, and when all are full."""
    from tidegate.footprint import footprint  # noqa: PLC0415 - opens BPF objects
    from tidegate.kernel.objects import possible_cpus  # noqa: PLC0415

    rows = footprint(load(file), cpus or possible_cpus())
    start, most = sum(row.bytes for row in rows), sum(row.most for row in rows)
    if json:
        maps = [msgspec.to_builtins(row) for row in rows]
        typer.echo(jsonlib.dumps({"maps": maps, "bytes": start, "most": most}))
        return
    typer.echo(f"{'MAP':<24} {'ENTRIES':>10} {'FROM THE START':>15} {'AT MOST':>15}")
    for row in sorted(rows, key=lambda row: -row.most):
        typer.echo(f"{row.map:<24} {row.entries:>10} {row.bytes:>15} {row.most:>15}")
    typer.echo(f"{'all, in bytes':<24} {'':>10} {start:>15} {most:>15}")
    typer.echo(f"all, in MiB {'':>23} {start / 2**20:>15.1f} {most / 2**20:>15.1f}")


@app.command()
def schema(json: Json = True) -> None:  # noqa: ARG001
    """Print the JSON Schema of a config file."""
    typer.echo(jsonlib.dumps(schema_of(), indent=2))
