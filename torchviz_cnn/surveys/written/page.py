"""A survey as one page that loads nothing: cautions, photos with their heatmaps, tables and calibration."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchviz_cnn.core import checks
from torchviz_cnn.runs import files
from torchviz_cnn.runs.encode import Blocks
from torchviz_cnn.runs.folder import versions
from torchviz_cnn.runs.pages import joined, offline_page, part, script_json
from torchviz_cnn.surveys.written import content, plots, words

if TYPE_CHECKING:
    from torchviz_cnn.surveys.result import Survey

_ROOM = "torchviz_cnn.surveys.written"
_SCRIPTS = ("heat.js", "gallery.js", "photo.js", "survey.js")
_LIBRARIES = ("torchvision", "numpy", "pillow")


def write_page(survey: Survey, folder: str | os.PathLike[str]) -> Path:
    """Write `index.html` into a folder: one page with everything in it. The photos that are shown are read.

    Raises InputError where the photos are not there, ImageError for one that cannot be read any more, and OutputError
    where the page cannot be written.
    """
    path = checks.path("a folder for the page", folder) / "index.html"
    page = html(survey)
    return files.write(path, lambda file: file.write(page.encode("utf-8")))


def html(survey: Survey) -> str:
    """The page's HTML."""
    blocks = Blocks()
    data = content.data(survey, blocks)
    fields: Mapping[str, Any] = {
        "percent": words.percent,
        "network": content.shown_text(survey.settings.network),
        "headline": words.headline(survey),
        "facts": words.facts(survey),
        "labelled": survey.labelled,
        "masks": survey.inside is not None,
        "cautions": content.cautions(survey),
        "pairs": content.pairs(survey),
        "classes": content.class_rows(survey),
        "calibration": plots.calibration(survey),
        "skipped": [(content.shown_text(name), content.shown_text(why)) for name, why in survey.skipped.items()],
        "glossary": words.glossary(survey),
        "provenance": _provenance(survey),
        "data": script_json(data),
        "blocks": blocks.texts,
    }
    script = '"use strict";\n' + joined(["pictures.js", "tables.js"], _ROOM, _SCRIPTS)
    return offline_page(part(_ROOM, "survey.html"), joined(["base.css"], _ROOM, ["survey.css"]), script, **fields)


def _provenance(survey: Survey) -> dict[str, list[tuple[str, str]]]:
    """Headings, and under each what it is called and what it is; no date, as a resumed run gives the same bytes."""
    settings = survey.settings
    guess = "nothing said how photos are prepared: this is the usual way" if settings.guessed else "as the network says"
    rows = {
        "Network": [
            ("model", settings.network),
            ("SHA-256 of the parameters and buffers", settings.weights),
            ("preparation of a photo", settings.preparation),
            ("where that comes from", guess),
        ],
        "Photos": [("folder", settings.folder or "a dataset in memory"), ("labels", settings.labels)],
        "Heatmaps": [
            ("method", settings.method_title),
            ("layer", settings.layer or "none"),
            ("photos shown of each kind", str(settings.k)),
            ("seed of the random ones", str(settings.seed)),
        ],
        "Page": [
            *versions().items(),
            *((name, version(name)) for name in _LIBRARIES),
        ],
    }
    return {heading: [(term, content.shown_text(what)) for term, what in lines] for heading, lines in rows.items()}
