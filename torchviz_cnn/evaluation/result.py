"""`Trust`: what every metric says of every method on the same photos, with ranks, agreement and sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from torchviz_cnn.attribution.metrics.result import Measurement
from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import InputError, OutputError, counted, did_you_mean
from torchviz_cnn.evaluation import ranking
from torchviz_cnn.evaluation.columns import Column
from torchviz_cnn.evaluation.rows import Row
from torchviz_cnn.runs import files


class Example(NamedTuple):
    """A photo on which a method was better, or worse, than elsewhere."""

    row: Row
    photo: str
    best: bool
    picture: Image.Image
    """Its map over the photo."""
    explained: str
    """The class that is explained."""
    figures: dict[str, float]
    """What the metrics say of this map, by the name of the column."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Trust:
    """What metrics say of the maps of several methods on the same photos.

    `trust["grad_cam", "insertion"]` is a Measurement: each photo's value, their mean and its 95 % interval.
    """

    network: str
    """What the network is called."""
    explained: str
    """Which class is explained of each photo, in words."""
    names: tuple[str, ...]
    """What each photo is called."""
    sizes: tuple[int | None, ...] = field(default=(), repr=False)
    """The size of each photo's file in bytes, where it is a file."""
    weights: str = field(default="", repr=False)
    """The checksum of the network's weights."""
    classes: Tensor
    """The class that is explained of each photo: (N,); -1 where the photo is not measured."""
    categories: tuple[str, ...] | None = field(default=None, repr=False)
    """Names of the classes."""
    rows: tuple[Row, ...]
    """The methods at their layers, and two references that know nothing: a blob in the middle, and a random map."""
    columns: tuple[Column, ...]
    """The metrics."""
    measured: Mapping[tuple[str, str], Measurement] = field(repr=False)
    """What each metric says of each row, by the key of the row and the name of the column."""
    skipped: Mapping[int, str] = field(default_factory=dict)
    """Why photos could not be read, by their number."""
    notes: tuple[str, ...] = ()
    """What one has to know to read the table, in sentences."""
    examples: tuple[Example, ...] = field(default=(), repr=False)
    """Photos on which a method did best and worst."""

    def __getitem__(self, key: tuple[str, str]) -> Measurement:
        """What a column says of a row; the method's name is enough where it is at one layer."""
        row, column = self.row(key[0]), key[1]
        if (row.key, column) not in self.measured:
            names = [one.name for one in self.columns]
            raise InputError(f"no column {column!r}{did_you_mean(column, names) or ';'} there are {', '.join(names)}")
        return self.measured[row.key, column]

    def row(self, name: str) -> Row:
        """Give the row of a method, by its name, or its name and layer as `grad_cam@features.12`.

        Raises InputError, with the nearest one, for a row that is not there.
        """
        for row in self.rows:
            if name in (row.key, row.method):
                return row
        keys = [row.key for row in self.rows]
        raise InputError(f"no method {name!r} here{did_you_mean(name, keys) or ';'} there are {', '.join(keys)}")

    @property
    def methods(self) -> tuple[Row, ...]:
        """The rows without the two references."""
        return tuple(row for row in self.rows if not row.reference)

    @cached_property
    def shown(self) -> tuple[Column, ...]:
        """The columns in which anything could be measured; all of them where nothing could."""
        return tuple(column for column in self.columns if any(self.counts(column))) or self.columns

    def counts(self, column: Column) -> list[int]:
        """On how many photos a column is measured: the different numbers of all rows but 0, or 0 alone."""
        return sorted({self.measured[row.key, column.name].count for row in self.rows} - {0}) or [0]

    @cached_property
    def intervals(self) -> Mapping[tuple[str, str], tuple[float, float]]:
        """The 95 % interval of every mean, computed once."""
        return {key: measurement.interval for key, measurement in self.measured.items()}

    @cached_property
    def ranks(self) -> Mapping[str, Mapping[str, float]]:
        """The rank of each method in each column, by the column's name and the row's key; the best is 1.

        Equal means share a rank; the references, and what could not be measured, have none (NaN).
        """
        ranked = {}
        for column in self.columns:
            means = [self.measured[row.key, column.name].mean for row in self.methods]
            placed = ranking.ranks(means, column.better)
            ranked[column.name] = dict(zip([row.key for row in self.methods], placed, strict=True))
        return ranked

    @cached_property
    def agreement(self) -> Mapping[tuple[str, str], float]:
        """How far every two columns rank the methods alike: Kendall's tau-b, -1..1; NaN where it has no meaning."""
        judges = {c.name: list(self.ranks[c.name].values()) for c in self.shown if c.judges}
        return ranking.agreement(judges)

    @cached_property
    def sentences(self) -> Mapping[str, str]:
        """What the figures say of each row, for one who has to decide, by the row's key."""
        from torchviz_cnn.evaluation.written.sentences import sentences_of

        return sentences_of(self)

    @cached_property
    def verdict(self) -> tuple[str, ...]:
        """Which metrics agree on the methods and which do not, in sentences."""
        from torchviz_cnn.evaluation.written.sentences import verdict_of

        return verdict_of(self)

    def reason(self, row: Row, column: Column) -> str:
        """Say why a cell is a dash; an empty text where it is measured."""
        measurement = self.measured[row.key, column.name]
        if measurement.count:
            return ""
        counted = Counter(measurement.reasons.values())
        return counted.most_common(1)[0][0] if counted else "it is not measured yet"

    def compared(self, row: Row, other: Row, column: Column) -> int:
        """Say whether a row is better (1) or worse (-1) than another beyond chance, or neither (0).

        Both are compared photo by photo: the 95 % interval of their mean difference leaves out zero.
        """
        a, b = (self.measured[one.key, column.name].values for one in (row, other))
        return ranking.difference(a, b, column.better)

    def table(self, width: int = 100) -> str:
        """Draw the table as text of at most `width` characters a line, split into several where it is wider."""
        from torchviz_cnn.evaluation.written.tables import text_table

        return text_table(self, width)

    def save(self, path: str | Path) -> Path:
        """Write all as `.csv` (a row for each method), `.json` (with each photo's values), `.md` or `.html`.

        Raises OutputError for another kind of file, or no such place.
        """
        from torchviz_cnn.evaluation.written import page, tables

        kind = checks.path("path", path).suffix.lower()
        writers = {".csv": tables.csv_table, ".json": tables.json_record, ".md": tables.markdown, ".html": page.html}
        if kind not in writers:
            raise OutputError(f"cannot write {path}: a comparison is saved as {', '.join(writers)}")
        text = writers[kind](self)
        return files.write(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))

    def _repr_html_(self) -> str:
        from torchviz_cnn.evaluation.written.tables import notebook_table

        return notebook_table(self)

    def __str__(self) -> str:
        return "\n\n".join([self.table(), "\n".join(self.sentences.values()), "\n".join([*self.verdict, *self.notes])])

    def __repr__(self) -> str:
        metrics = sum(any(self.counts(column)) for column in self.columns)
        facts = [counted(len(self.methods), "method"), counted(metrics, "metric")]
        facts += [counted(int((self.classes >= 0).sum()), "photo")]
        return f"Trust({self.network}: {', '.join(facts)})"
