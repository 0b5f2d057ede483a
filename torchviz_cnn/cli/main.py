"""The command line: the parser of all commands, its errors in one line, and what surrounds a command."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import re
import shlex
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import shtab

import torchviz_cnn
from torchviz_cnn.cli.arguments import Command, in_options
from torchviz_cnn.cli.commands import ORDER
from torchviz_cnn.core.errors import TorchvizError, TorchvizWarning, did_you_mean, one_line

_EXIT_CODES = """exit codes:
  0 done; 1 done, but photos were skipped; 2 a mistake, which one line tells; 130 Ctrl-C"""
_EPILOG = """torchviz-cnn COMMAND --help has the options of a command, with examples. Begin with:
  torchviz-cnn demo
  torchviz-cnn predict photo.jpg
  torchviz-cnn cam photo.jpg --out heatmaps

completion of commands and options with the Tab key, in bash, fish and zsh (in a folder of $fpath):
  torchviz-cnn --print-completion bash > ~/.local/share/bash-completion/completions/torchviz-cnn
  torchviz-cnn --print-completion fish > ~/.config/fish/completions/torchviz-cnn.fish
  torchviz-cnn --print-completion zsh > ~/.zsh/completions/_torchviz-cnn"""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and completes the names of files."""

    commands: Mapping[str, argparse.ArgumentParser] = MappingProxyType({})
    """The parser of each command, where it has commands."""

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        action = super().add_argument(*names, **options)
        if options.get("type") is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        return action

    def error(self, message: str) -> NoReturn:
        message = " ".join(message.split())
        if message.endswith("required: IMAGE"):
            message += "; photos go before options that take several values"
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        if unknown:
            options = {one for parser in self.commands.values() for one in parser._option_string_actions}
            message += did_you_mean(unknown[1], sorted(options))
        elif message.startswith("unrecognized arguments:") and message.endswith(".tar"):
            message += "; a pattern of tar files is put in quotes, so that the shell does not make a list of it"
        wrong = re.match(r"argument COMMAND: invalid choice: '(.*?)'", message)
        if wrong:
            message = f"no command {wrong[1]!r}{did_you_mean(wrong[1], ORDER) or ';'} there are {', '.join(ORDER)}"
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; without a command it shows the help.

    Returns:
        The exit code: 0; 1 where photos were skipped (0 in a shared run, which torchrun would take for a failed one);
        2 for a user's mistake; 130 for Ctrl-C; 141 where nobody reads what is printed.
    """
    commands = _commands()
    parser = _parser(commands)
    given = list(sys.argv[1:] if arguments is None else arguments)
    args = parser.parse_args(given or ["--help"])
    args.command_line, args.skipped = shlex.join(["torchviz-cnn", *given]), []
    args.options = set(parser.commands[args.command]._option_string_actions)
    try:
        with _surroundings(args.options):
            commands[args.command].run(args)
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a shell reports a program that SIGPIPE ended
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:  # the user's network or file may raise anything; --traceback shows where
        if args.traceback:
            raise
        own = isinstance(error, TorchvizError)
        text = in_options(error, args.options) if own else f"{type(error).__name__}: {one_line(error)}"
        print(f"{parser.prog}: error: {text}", file=sys.stderr)
        return 2
    return int(bool(args.skipped))


def _commands() -> dict[str, Command]:
    files = [importlib.import_module(f"torchviz_cnn.cli.commands.{name}") for name in ORDER]
    return {file.COMMAND.name: file.COMMAND for file in files}


def _parser(commands: dict[str, Command]) -> _Parser:
    parser = _Parser(
        "torchviz-cnn",
        usage="torchviz-cnn COMMAND [options]",
        description="See what a convolutional network sees: one command for each way of looking at it.",
        epilog=f"{_EPILOG}\n\n{_EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"torchviz-cnn {torchviz_cnn.__version__}")
    shtab.add_argument_to(parser, "--print-completion", help="print what completes commands and options in a shell")
    below = parser.add_subparsers(
        dest="command", required=True, title="commands", metavar="COMMAND", prog="torchviz-cnn"
    )
    for name, command in commands.items():
        made = below.add_parser(name, help=command.run.__doc__, description=command.run.__doc__)
        command.add_arguments(made)
        made.add_argument("--traceback", action="store_true", help=argparse.SUPPRESS)
        _write_manual(made, command)
    parser.commands = below.choices
    return parser


def _write_manual(parser: argparse.ArgumentParser, command: Command) -> None:
    """Let the help begin with what must be given, and end with examples and exit codes."""
    parser.usage = " ".join(filter(None, [parser.prog, command.takes, "[options]"]))
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    examples = "\n".join(["examples:", *(f"  torchviz-cnn {line}" for line in command.examples)])
    parser.epilog = "\n\n".join(filter(None, [parser.epilog, examples, _EXIT_CODES]))


@contextlib.contextmanager
def _surroundings(options: Collection[str]) -> Iterator[None]:
    """Networks in the current folder can be imported, warnings are one line, and any name can be printed.

    What warnings advise are these options.
    """
    path = list(sys.path)
    sys.path.insert(0, os.getcwd())
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = partial(_show_warning, options)
            yield
    finally:
        sys.path[:] = path


def _show_warning(
    options: Collection[str], message: Warning | str, category: type[Warning], *where: Any, **rest: Any
) -> None:
    if issubclass(category, TorchvizWarning):
        with contextlib.suppress(OSError):
            print(f"torchviz-cnn: warning: {in_options(message, options)}", file=sys.stderr)
