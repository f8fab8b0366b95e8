"""``ringraft``: the one command, its groups, and the one place where errors become exit codes."""

from __future__ import annotations

import json
import sys
from importlib import import_module

import click

from ringraft import __version__
from ringraft.cli.exits import CommandFailed, ExitCode, exit_code
from ringraft.cli.output import say
from ringraft.client import ApiError, ClientError
from ringraft.config import ConfigError

LAZY = {
    "node": "ringraft.cli.node:node",
    "dev": "ringraft.cli.dev:dev",
    "demo": "ringraft.cli.demo:demo",
    "status": "ringraft.cli.status:status",
    "work": "ringraft.cli.work:work",
    "backup": "ringraft.cli.backup:backup",
    "recover": "ringraft.cli.recover:recover",
    "config": "ringraft.cli.show_config:config",
}
"""Commands by name; a command's module is imported when it is called, so that ``--help`` is quick."""


class _Lazy(click.Group):
    def list_commands(self, context: click.Context) -> list[str]:
        return list(LAZY)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in LAZY:
            return None
        module_name, _, attribute = LAZY[name].partition(":")
        command = getattr(import_module(module_name), attribute)
        assert isinstance(command, click.Command)
        return command


@click.command(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ringraft")
def ringraft() -> None:
    """A Raft-first orchestrator for game-playing AI work.

    Nodes are found by --addr or RINGRAFT_ADDR (host:port, several with commas; 127.0.0.1:8770).
    Exit codes: 0 ok, 1 error, 2 usage, 3 a waited item failed, 4 not found, 5 no leader or nobody
    answers, 6 timed out or outcome unknown, 7 not allowed, 130 interrupted.
    """


def main() -> None:
    """The entry point of ``ringraft`` and of ``python -m ringraft``."""
    run_command(ringraft, "ringraft")


def run_command(command: click.Command, name: str) -> None:
    """Run a command and exit with its code; every failure is a sentence on stderr."""
    sys.exit(_run(command, name))


def _run(command: click.Command, name: str) -> int:
    try:
        result = command.main(prog_name=name, standalone_mode=False)
        return result if isinstance(result, int) else ExitCode.OK
    except click.exceptions.NoArgsIsHelpError as error:
        say(error.format_message())
        return ExitCode.USAGE
    except click.ClickException as error:
        error.show()
        return ExitCode.USAGE
    except (click.Abort, KeyboardInterrupt):
        say("interrupted")
        return ExitCode.INTERRUPTED
    except ConfigError as error:
        _say_faults(name, error)
        return ExitCode.USAGE
    except CommandFailed as error:
        say(f"{name}: {error}")
        return error.code
    except ClientError as error:
        _say_refusal(name, error)
        return exit_code(error)
    except BrokenPipeError:
        # The reader went away (``| head``); Python would complain once more while it closes stdout.
        sys.stdout = None
        return ExitCode.OK


def _say_faults(name: str, error: ConfigError) -> None:
    if len(error.faults) == 1:
        say(f"{name}: {error.faults[0]}")
        return
    say(f"{name}: {len(error.faults)} settings are wrong:")
    for fault in error.faults:
        say(f"  {fault}")


def _say_refusal(name: str, error: ClientError) -> None:
    if "--json" in sys.argv and isinstance(error, ApiError) and error.problem:
        say(json.dumps(error.problem))
        return
    ending = " It may have been done: ask before you repeat it." if error.outcome == "unknown" else ""
    say(f"{name}: {error}.{ending}")
