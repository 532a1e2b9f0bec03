# SPDX-License-Identifier: Apache-2.0
"""``tidegate import``: the config of this program that another program's config asks for."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer

from tidegate.errors import ConfigError

app = typer.Typer(help="Print the config that another program's config asks for.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Print the config that another program's config asks for."""


@app.command()
def istio(
    file: Annotated[Path, typer.Argument(help="A file with a DestinationRule.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.", show_default=False)] = False,
) -> None:
    """Print the pools of an Istio DestinationRule, with a comment on every part that has no equivalent."""
    from tidegate.importers.istio import read  # noqa: PLC0415 - of no use to the agent
    from tidegate.importers.written import as_json, lines  # noqa: PLC0415

    try:
        text = file.read_bytes()
    except OSError as error:
        raise ConfigError([f"{file}: can't be read: {error.strerror}"]) from error
    rules = read(text, str(file))
    if json:
        typer.echo(jsonlib.dumps(as_json(rules, str(file))))
        return
    for line in lines(rules, str(file)):
        typer.echo(line)


@app.command()
def nginx(
    file: Annotated[Path, typer.Argument(help="nginx.conf, or a part of it.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.", show_default=False)] = False,
) -> None:
    """Print the pools and rate limits of nginx's config, and what is worth a second look in it."""
    from tidegate.importers.nginx import read  # noqa: PLC0415 - of no use to the agent
    from tidegate.importers.proxied import as_json, lines  # noqa: PLC0415

    found = read(file)
    if json:
        typer.echo(jsonlib.dumps(as_json(found)))
        return
    for line in lines(found, str(file)):
        typer.echo(line)
