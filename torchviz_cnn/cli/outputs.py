"""The files that a command writes: what their names say, and what they never overwrite."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from torchviz_cnn.core.errors import OutputError
from torchviz_cnn.runs import files

_NOTES = "made.jsonl"


def notes(folder: Path) -> dict[str, str]:
    """What commands made in a folder: the name of each file, and what it is made from. Other lines say nothing."""
    made: dict[str, str] = {}
    with contextlib.suppress(OSError), (folder / _NOTES).open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            with contextlib.suppress(ValueError, RecursionError):
                note = json.loads(line)
                made |= {name: str(how) for name, how in note.items()} if isinstance(note, dict) else {}
    return made


class Outputs:
    """The names of the files that a command writes. It overwrites what the same command made, and nothing else.

    `made.jsonl` in the folder notes which photos and options each file is made from.
    """

    def __init__(self, args: argparse.Namespace, photos: Iterable[Path]) -> None:
        files.require_place(args.out, folder=True)
        self._out, self._notes = args.out, args.out / _NOTES
        self._used = {path.resolve() for path in photos}
        ignored = {"images", "out", "batch_size", "command_line", "skipped", "traceback", "device"}
        given = {name: value for name, value in vars(args).items() if value is not None and name not in ignored}
        self._options = ", ".join(f"{name} {value}" for name, value in sorted(given.items()))
        self._made = notes(args.out)

    def path(self, parts: Sequence[str], ending: str, photos: Iterable[Path]) -> Path:
        """A path for one file: see `paths`."""
        return self.paths(parts, [ending], photos)[0]

    def paths(self, parts: Sequence[str], endings: Sequence[str], photos: Iterable[Path]) -> list[Path]:
        """A path for each ending, after the parts of a name; with a number after it where one is another's."""
        made = f"{', '.join(str(path.resolve()) for path in photos)}: {self._options}"
        name = files.safe_name("_".join(map(files.safe_name, parts)))
        for copy in itertools.count(1):
            paths = [self._out / f"{name}{f'-{copy}' * (copy > 1)}{ending}" for ending in endings]
            if all(self._is_free(path, made) for path in paths):
                break
        self._used |= {path.resolve() for path in paths}
        self._note({path.name: made for path in paths if self._made.get(path.name) != made})
        return paths

    def _is_free(self, path: Path, made: str) -> bool:
        is_own = self._made.get(path.name) == made
        return path.resolve() not in self._used and (is_own or not os.path.lexists(path))

    def _note(self, made: dict[str, str]) -> None:
        if not made:
            return
        self._made |= made
        try:
            self._out.mkdir(parents=True, exist_ok=True)
            with self._notes.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(made) + "\n")
        except OSError as error:
            raise OutputError(f"cannot write {self._notes}: {error.strerror or error}") from error


def together(photos: dict[Path, str], part: Sequence[Path]) -> str:
    """The name of what is made from a batch."""
    return photos[part[0]] + (f"_and_{len(part) - 1}_more" if len(part) > 1 else "")
