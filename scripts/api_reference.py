"""What the API reference of the site (mkdocs.yml) reads from docstrings, as Griffe is to see it.

The functions of `CAM_METHODS` are made by a decorator, which a reader of the source cannot know: their signature and
their docstring are those of the functions that the library has when it runs. Of all others the text is that of the
source, with three changes of form: examples are blocks of code, arguments that share a line get one each, and the `*`
of a shape is no emphasis.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import griffe

import torchviz_cnn as tvc
from torchviz_cnn.attribution.cam.formulas import CAM_METHODS

_FORMULAS = "attribution.cam.formulas"
_EXAMPLE = re.compile(r"(?:^>>> .*\n?(?:^(?!\s*$).*\n?)*)", re.M)
_SHARED = re.compile(r"^( {4})(\*?\w+(?:, \*?\w+)+): (.*(?:\n {8,}.*)*)", re.M)
_SHAPE = re.compile(r"(?<=[ (])\*(?=\w)")


class Docstrings(griffe.Extension):  # type: ignore[misc, unused-ignore]
    """Griffe's extension: it is asked once for the package."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        call = pkg[_FORMULAS]["CamFunction.__call__"]
        for name in CAM_METHODS:
            function = pkg[_FORMULAS][name]
            function.parameters = griffe.Parameters(*list(call.parameters)[1:])
            function.returns = call.returns
            function.docstring.value = inspect.getdoc(getattr(tvc, name)) or ""
        for each in _documented(pkg):
            each.docstring.value = formed(each.docstring.value)


def _documented(thing: Any) -> Any:
    """A module or class, and everything in it, that has a docstring."""
    if thing.docstring is not None:
        yield thing
    for member in thing.members.values():
        if not member.is_alias:
            yield from _documented(member)


def formed(text: str) -> str:
    """A docstring in the form that the reference reads."""
    text = _SHARED.sub(lambda row: "\n".join(f"{row[1]}{name}: {row[3]}" for name in row[2].split(", ")), text)
    parts = re.split(r"(`[^`]*`)", text)
    text = "".join(part if i % 2 else _SHAPE.sub(r"\\*", part) for i, part in enumerate(parts))
    return _EXAMPLE.sub(lambda example: f"```pycon\n{example[0].rstrip()}\n```\n", text)
