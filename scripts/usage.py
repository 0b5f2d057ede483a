"""What the scripts share: the arguments that a usage line names, and mistakes told in one line with exit code 2."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from types import TracebackType

from torchviz_cnn.core.errors import InputError, TorchvizError


def arguments(usage: str) -> list[str]:
    """What is given on the command line, in as many words as the usage has; other numbers print it and end the script.

    Args:
        usage: a word for each argument; those in brackets can be left out, and `...` stands for any number of them.
    """
    tell_mistakes()
    given, most = sys.argv[1:], math.inf if "..." in usage else len(usage.split())
    least = len(re.sub(r"\[.*?\]|\.\.\.", "", usage).split())
    if not least <= len(given) <= most or {"-h", "--help"} & set(given):
        print(f"usage: python {sys.argv[0]} {usage}", file=sys.stderr)
        sys.exit(2)
    return given


def tell_mistakes() -> None:
    """From here on a wrong file, an unknown network and the like end the script with one line, without a traceback."""
    sys.excepthook = _one_line


def files_in(folder: Path, pattern: str) -> list[Path]:
    """The files of a folder that are called so, in the order of their names. Raises InputError where there are none."""
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise InputError(f"there is no file called {pattern} in {folder}")
    return paths


def _one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not isinstance(error, (TorchvizError, OSError)):
        sys.__excepthook__(kind, error, trace)
        return
    print(f"{sys.argv[0]}: error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)
