# SPDX-License-Identifier: Apache-2.0
"""``tidegate config``: check a file, show what is in effect, print the schema."""

from __future__ import annotations

import json as jsonlib
import os
from pathlib import Path
from typing import Annotated

import typer

from tidegate.config import load, to_builtins, to_yaml
from tidegate.config import schema as schema_of
from tidegate.errors import ConfigError

app = typer.Typer(help="Check a config file, show the effective config, print its schema.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="Print JSON.", show_default=False)]


@app.command()
def check(file: Annotated[Path, typer.Argument(help="Config file.")], json: Json = False) -> None:
    """Report every error of a config file as FILE:LINE:COL: path: message."""
    errors: list[str] = []
    try:
        load(file)
    except ConfigError as error:
        if not json:
            raise
        errors = error.complaints
    # Bytes, because a file may have a name that no encoding takes.
    typer.echo(jsonlib.dumps({"file": str(file), "errors": errors}) if json else os.fsencode(file) + b": ok")
    if errors:
        raise typer.Exit(ConfigError.exit_code)


@app.command()
def show(
    file: Annotated[Path | None, typer.Option("-c", "--config", help="Config file.")] = None,
    json: Json = False,
) -> None:
    """Print the effective config: the file's keys, and the defaults of all others."""
    config = load(file)
    typer.echo(jsonlib.dumps(to_builtins(config)) if json else to_yaml(config).rstrip())


@app.command()
def schema(json: Json = True) -> None:  # noqa: ARG001
    """Print the JSON Schema of a config file."""
    typer.echo(jsonlib.dumps(schema_of(), indent=2))
