# SPDX-License-Identifier: Apache-2.0
"""``tidegate config``: check a file, show what is in effect, print the schema."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer

from tidegate.config import load
from tidegate.config.printer import schema as schema_of
from tidegate.config.printer import to_builtins, to_yaml

app = typer.Typer(help="Check a config file, show the effective config, print its schema.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def check(file: Annotated[Path, typer.Argument(help="Config file.")], json: Json = False) -> None:
    """Report every error of a config file as FILE:LINE:COL: path: message."""
    load(file)
    typer.echo(jsonlib.dumps({"file": str(file), "errors": []}) if json else f"{file}: ok")


@app.command()
def show(
    file: Annotated[Path | None, typer.Option("-c", "--config", help="Config file.")] = None,
    json: Json = False,
) -> None:
    """Print the effective config: the file's keys, and the defaults of all others."""
    config = load(file)
    typer.echo(jsonlib.dumps(to_builtins(config)) if json else to_yaml(config).rstrip())


@app.command()
def schema() -> None:
    """Print the JSON Schema of a config file."""
    typer.echo(jsonlib.dumps(schema_of(), indent=2))
