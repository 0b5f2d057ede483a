"""`merge`: one result of runs that each looked at a piece of a dataset, equal to that of a single run."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchviz_cnn.core.errors import InputError, OutputError, counted, kind_of
from torchviz_cnn.hooks.network import Model, module_of
from torchviz_cnn.runs.folder import STATE, ResultFolder, difference, model_checksum, short
from torchviz_cnn.topk.passes import RunState, require_some
from torchviz_cnn.topk.pieces.cutting import Piece, images
from torchviz_cnn.topk.pieces.outcome import result_of
from torchviz_cnn.topk.result import KIND, RESULTS, TopActivations
from torchviz_cnn.topk.written.storing import copy_index, saved_origin


def merge(
    *folders: str | Path,
    out: str | Path | None = None,
    dataset: Any = None,
    model: Model | None = None,
    preprocess: Any = None,
) -> TopActivations:
    """Make one result of several runs of `top_activations`, each of which looked at a piece of the same dataset.

    It is the result of a single run over all these pieces, to the last bit where pieces begin at multiples of the
    batch size (and the batch size, number of threads and hardware are the same), and with `exact=True` wherever they
    begin: what is merged are the candidates and the sums that each run kept, not rounded results. Pieces may be of any
    number and sizes and come in any order. Where they do not make up the whole dataset, the result is that of a larger
    piece, which may be merged again.

    Args:
        folders: where finished runs have their results: what they were given as `out`.
        out: a folder to keep the result in, as if a single run had made it: the same call of `top_activations`
            with this `out`, and without `start` and `end`, reads it.
        dataset, model, preprocess: for patches and projections, as for `TopActivations.load`.

    Returns:
        TopActivations: as `top_activations` gives it.

    Raises:
        InputError: for no folders, for pieces that overlap, for images between them that no piece has, and for a model
            of other weights.
        OutputError: for a folder that is not finished, with how far it is, for one of another network, dataset or
            options, and where `out` holds something else.

    >>> import tempfile, torch
    >>> from torchviz_cnn.topk.mining import top_activations
    >>> model, dataset = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)), torch.rand(20, 3, 16, 16)
    >>> path = Path(tempfile.mkdtemp())
    >>> for name, start, end in (("a", 0, 8), ("b", 8, 20)):
    ...     _ = top_activations(model, dataset, ["0"], batch_size=4, start=start, end=end, out=path / name)
    >>> merged, whole = merge(path / "b", path / "a"), top_activations(model, dataset, ["0"], batch_size=4)
    >>> torch.equal(merged.values["0"], whole.values["0"]), torch.equal(merged.images["0"], whole.images["0"])
    (True, True)
    """
    if not folders:
        raise InputError("merge takes the folders of at least one run")
    if isinstance(folders[0], (list, tuple)):
        what = kind_of(folders[0])
        raise InputError(
            f"merge names a file or folder by a str or a Path, not by {what}; it takes folders one by one: write "
            "merge(*folders)"
        )
    parts = sorted((_Part.read(path) for path in folders), key=lambda part: part.piece.start)
    first = parts[0]
    for part in parts[1:]:
        first.require_same(part)
    _require_adjacent(parts)
    if model is not None and model_checksum(module_of(model)) != first.identity["weights"]:
        raise InputError(f"{first.folder.path} was made with other weights than those of the model that is given")
    piece = Piece(first.piece.start, parts[-1].piece.end, first.piece.count)
    about = TopActivations.load(first.folder.path, dataset, model, preprocess)
    state = _joined(parts)
    require_some(state.skipped, piece)
    top = result_of(state, piece, first.identity["k"], about.fields, about.target, about.source, about.model)
    if out is not None:
        if about.source is not None:
            about.source.require_apart(out)
        origin = saved_origin(first.folder.load_with_metadata(RESULTS)[1]["about"])
        with ResultFolder.run(out, KIND, {**first.identity, **piece.identity()}) as folder:
            state.save(folder)
            copy_index(first.folder.path, folder.path)
            top.write(folder, origin)
    return top


_ELSEWHERE = "the same run makes it in another folder, as its result is in this one (`TopActivations.save` writes none)"
"""What to do where the state is missing or broken."""


@dataclass(frozen=True, eq=False)
class _Part:
    """A finished run over a piece."""

    folder: ResultFolder
    piece: Piece
    identity: dict[str, Any]
    """But for the piece."""

    @classmethod
    def read(cls, path: str | Path) -> _Part:
        """The run that a folder has. Raises OutputError for one that is not finished, or cannot be merged."""
        folder = ResultFolder.read(path, KIND)
        identity = dict(folder.manifest["identity"])
        try:
            count = int(identity["images"])
            start, end = map(int, identity.pop("piece", (0, count)))
        except (KeyError, TypeError, ValueError) as error:
            raise OutputError(f"the manifest of {path} is not that of top activations: {error}") from error
        piece = Piece(start, end, count)
        if not folder.has(RESULTS):
            done = folder.manifest["progress"].get("images", 0)
            raise folder.without_result(RESULTS, f"{done:,} of its {counted(len(piece), 'image')}")
        if not folder.has(STATE):
            raise OutputError(f"{path} has no {folder.file(STATE).name}, by which runs are merged; {_ELSEWHERE}")
        return cls(folder, piece, identity)

    def require_same(self, other: _Part) -> None:
        """Raise OutputError where another piece is not of the same network, dataset and options."""
        different = difference(self.identity, other.identity)
        if different is not None:
            field, here, there = different[0], *map(short, different[1:])
            raise OutputError(
                f"{other.folder.path} is not of the same run as {self.folder.path}: its {field} is {there}, there "
                f"it is {here}"
            )

    def state(self) -> RunState:
        """What the run kept. Raises OutputError for what is not of all its images."""
        state = RunState.load(self.folder, _ELSEWHERE)
        if state.done != len(self.piece) or list(state.tallies) != self.identity["layers"]:
            raise OutputError(f"{self.folder.file(STATE)} is broken: it is not of {self.piece}; {_ELSEWHERE}")
        return state


def _require_adjacent(parts: Sequence[_Part]) -> None:
    """Raise InputError for pieces that overlap, and for images between them that no piece has."""
    missing = []
    for one, other in itertools.pairwise(parts):
        if other.piece.start < one.piece.end:
            end = min(one.piece.end, other.piece.end)
            both = f"{images(other.piece.start, end)} {'is' if end == other.piece.start + 1 else 'are'}"
            raise InputError(f"{both} in {one.folder.path} and in {other.folder.path}: pieces do not overlap")
        if other.piece.start > one.piece.end:
            missing.append(images(one.piece.end, other.piece.start))
    if missing:
        raise InputError(f"no folder has {' and '.join(missing)} of {parts[0].piece.count:,}: run them as well")


def _joined(parts: Sequence[_Part]) -> RunState:
    """What a single run would have kept. One after the other is read, as a state can be large."""
    state = parts[0].state()
    for part in parts[1:]:
        other = part.state()
        for layer, tally in state.tallies.items():
            more = other.tallies[layer]
            rankings = ((tally.activation, more.activation), (tally.relevance, more.relevance))
            if any((a and a.exact is None) != (b and b.exact is None) for a, b in rankings):
                raise OutputError(
                    f"one of {parts[0].folder.path} and {part.folder.path} alone has values in double precision: run "
                    "the other where the network runs in it"
                )
            tally.activation = tally.activation.best([more.activation])
            if tally.relevance is not None and more.relevance is not None:
                tally.relevance = tally.relevance.best([more.relevance])
            tally.sums = tally.sums.plus([more.sums])
        state.skipped |= other.skipped
        state.done += other.done
        state.seconds += other.seconds
    return state
