"""The checkpoints of a training that are kept, in a folder that survives a kill."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchviz_cnn.core.errors import OutputError
from torchviz_cnn.runs.folder import ResultFolder
from torchviz_cnn.watch.checkpoint import Checkpoint

KIND = "watch"
_PREFIX = "step-"


class History:
    """At most `keep` checkpoints in the order of their steps, each in a file of its own; the manifest lists them.

    A file that the manifest does not list, as a kill may leave one, is not read, and goes with the next checkpoint.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], keep: int) -> None:
        self._opened, self.keep = contextlib.ExitStack(), keep
        self.folder = self._opened.enter_context(ResultFolder.run(path, KIND, identity))
        self._went_on = False
        steps = self.folder.manifest["progress"].get("steps", [])
        self.kept = [self._read(step) for step in steps]

    @property
    def facts(self) -> dict[str, Any]:
        """What was learned of the network at the first step, and is the same at all of them."""
        facts: dict[str, Any] = self.folder.manifest["progress"].get("facts", {})
        return facts

    def close(self) -> None:
        """Leave the folder to others."""
        self._opened.close()

    def add(self, checkpoint: Checkpoint, facts: Mapping[str, Any]) -> None:
        """Keep a checkpoint. The first one after a restart drops those at its step and beyond, which training left."""
        kept = [one for one in self.kept if self._went_on or one.step < checkpoint.step]
        steps = thinned([*(one.step for one in kept), checkpoint.step], self.keep)
        self.folder.save(f"{_PREFIX}{checkpoint.step}", checkpoint.tensors(), **checkpoint.texts())
        self.folder.update(steps=steps, facts=dict(facts))
        self.kept = [one for one in [*kept, checkpoint] if one.step in steps]
        self._went_on = True
        names = {self.folder.file(f"{_PREFIX}{step}") for step in steps}
        for file in set(self.folder.path.glob(f"{_PREFIX}*.safetensors")) - names:
            with contextlib.suppress(FileNotFoundError):
                file.unlink()

    def _read(self, step: int) -> Checkpoint:
        name = f"{_PREFIX}{step}"
        try:
            return Checkpoint.of(*self.folder.load_with_metadata(name))
        except (KeyError, ValueError) as error:
            raise OutputError(f"{self.folder.file(name)} holds no step of a training: {error}") from error


def thinned(steps: Sequence[int], keep: int) -> list[int]:
    """At most `keep` of these steps, spread evenly, with the first and the last.

    Of all but these two, one goes at a time whose neighbours are nearest to each other.

    >>> thinned([0, 1, 2, 3, 4, 5], 4)
    [0, 2, 4, 5]
    """
    kept = list(steps)
    while len(kept) > keep:
        gaps = [after - before for before, after in zip(kept, kept[2:], strict=False)]
        del kept[gaps.index(min(gaps)) + 1]
    return kept


def spread(count: int, most: int) -> list[int]:
    """The places of at most `most` of so many things, spread evenly, the first and the last among them.

    >>> spread(9, 3), spread(2, 3)
    ([0, 4, 8], [0, 1])
    """
    if count <= most:
        return list(range(count))
    return [round(place * (count - 1) / (most - 1)) for place in range(most)]
