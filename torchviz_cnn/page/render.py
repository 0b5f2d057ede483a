"""The page itself: the template filled, style and script inside it, and a policy that forbids every request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from torchviz_cnn.runs.pages import offline_page, script_json

SCRIPTS = ("pictures.js", "stage.js", "layers.js", "unit.js", "report.js")


def render_page(data: Mapping[str, Any], blocks: Sequence[str], **fixed: Any) -> str:
    """The page's HTML: `data` is JSON for its script, `blocks` are decoded one by one, `fixed` and `data` fill the
    template."""
    script = '"use strict";\n' + "\n".join(map(_part, SCRIPTS))
    own = {"data": script_json(data), "blocks": blocks}
    return offline_page(_part("template.html"), _part("report.css"), script, **data, **fixed, **own)


def _part(name: str) -> str:
    return files("torchviz_cnn.page").joinpath("web", name).read_text(encoding="utf-8").strip()
