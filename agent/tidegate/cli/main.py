# SPDX-License-Identifier: Apache-2.0
"""The program ``tidegate``: its commands, and how every failure reaches its user."""

from __future__ import annotations

import os
import sys

import typer

from tidegate import __version__
from tidegate.cli import advise, breaker, config, doctor, importing, pools, ratelimit, run, top
from tidegate.errors import ConfigError, TidegateError

app = typer.Typer(
    name="tidegate",
    help="What every service on this node does to the network, from the kernel's own events.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command(name="run")(run.run)
app.command(name="top")(top.top)
app.command(name="advise")(advise.advise)
app.command(name="doctor")(doctor.doctor)
app.add_typer(config.app, name="config")
app.add_typer(ratelimit.app, name="ratelimit")
app.add_typer(breaker.app, name="breaker")
app.add_typer(pools.app, name="pools")
app.add_typer(importing.app, name="import")


@app.command()
def version(json: bool = typer.Option(False, "--json", help="Print JSON.")) -> None:
    """Print the version."""
    typer.echo(f'{{"version": "{__version__}"}}' if json else f"tidegate {__version__}")


def main() -> None:
    """Run the command line; failures become one message and an exit code."""
    try:
        app()
    except ConfigError as error:
        typer.echo(str(error), err=True)  # each line begins with its place in the file
        sys.exit(error.exit_code)
    except TidegateError as error:
        typer.echo(f"tidegate: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the flush at exit succeeds
        sys.exit(0)
    except Exception as error:
        if os.environ.get("TIDEGATE_TRACEBACK"):
            raise
        typer.echo(
            f"tidegate: internal error: {type(error).__name__}: {error}; please report it with the output of "
            "the same command under TIDEGATE_TRACEBACK=1",
            err=True,
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
