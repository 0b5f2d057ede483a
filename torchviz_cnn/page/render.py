"""The page itself: the template filled, style and script inside it, and a policy that forbids every request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torchviz_cnn.runs.pages import joined, offline_page, part, script_json

ROOM = "torchviz_cnn.page"
SCRIPTS = ("stage.js", "layers.js", "unit.js", "report.js")


def render_page(data: Mapping[str, Any], blocks: Sequence[str], **fixed: Any) -> str:
    """The page's HTML: `data` is JSON for its script, `blocks` are decoded one by one, `fixed` and `data` fill the
    template."""
    script = '"use strict";\n' + joined(["pictures.js"], ROOM, SCRIPTS)
    style = joined(["base.css"], ROOM, ["report.css"])
    own = {"data": script_json(data), "blocks": blocks}
    return offline_page(part(ROOM, "template.html"), style, script, **data, **fixed, **own)
