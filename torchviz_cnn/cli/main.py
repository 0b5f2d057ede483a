"""The command line: `main`, and the table of commands."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

import torchviz_cnn as tvc
from torchviz_cnn.cli import filters, layers, maps, report, top
from torchviz_cnn.core.errors import did_you_mean


class Command(NamedTuple):
    """What a command does, its docstring being its help, and what adds its arguments."""

    run: Callable[[argparse.Namespace], None]
    add_arguments: Callable[[argparse.ArgumentParser], None]


COMMANDS = {
    "demo": Command(report.run_demo, report.add_demo),
    "layers": Command(layers.layers, layers.add_layers),
    "predict": Command(layers.predict, layers.add_predict),
    "activations": Command(layers.activations, layers.add_activations),
    "filters": Command(filters.filters, filters.add_filters),
    "cam": Command(maps.cam, maps.add_cam),
    "saliency": Command(maps.saliency, maps.add_saliency),
    "deconvnet": Command(layers.deconvnet, layers.add_deconvnet),
    "occlusion": Command(maps.occlusion, maps.add_occlusion),
    "top": Command(top.top, top.add_top),
    "report": Command(report.run_report, report.add_report),
}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        wrong = re.match(r"argument command: invalid choice: '(.*?)'", message)
        if wrong:
            message = (
                f"no command {wrong[1]!r}{did_you_mean(wrong[1], COMMANDS) or ';'} there are {', '.join(COMMANDS)}"
            )
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit code: 0, 2 for a user's mistake, 130 for Ctrl-C, 141 where nobody
    reads on."""
    parser = _parser()
    args = parser.parse_args(arguments)
    args.arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        with _surroundings():
            COMMANDS[args.command].run(args)
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a program has it that the signal ended
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:  # the user's network or file may raise anything; --traceback shows where
        if args.traceback:
            raise
        kind = "" if isinstance(error, tvc.TorchvizError) else f"{type(error).__name__}: "
        print(f"{parser.prog}: error: {kind}{' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


@contextlib.contextmanager
def _surroundings() -> Iterator[None]:
    """Networks beside the user can be imported, warnings are one line, and no name is too odd for the terminal."""
    path = list(sys.path)
    sys.path.insert(0, os.getcwd())
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            yield
    finally:
        sys.path[:] = path


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("torchviz-cnn", description="See what a convolutional network sees.")
    parser.add_argument("--version", action="version", version=f"torchviz-cnn {tvc.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, command in COMMANDS.items():
        made = commands.add_parser(name, help=command.run.__doc__, description=command.run.__doc__)
        command.add_arguments(made)
        made.add_argument("--traceback", action="store_true", help=argparse.SUPPRESS)
    return parser


def _show_warning(message: Warning | str, category: type[Warning], *where: Any, **rest: Any) -> None:
    if issubclass(category, tvc.TorchvizWarning):
        with contextlib.suppress(OSError):
            print(f"torchviz-cnn: warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
