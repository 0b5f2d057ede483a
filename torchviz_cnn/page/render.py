"""The page itself: the template filled, style and script inside it, and a policy that forbids every request."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any

from torchviz_cnn.page.encode import script_json

SCRIPTS = ("pictures.js", "stage.js", "layers.js", "unit.js", "report.js")


def render_page(data: Mapping[str, Any], blocks: Sequence[str], **fixed: Any) -> str:
    """The page's HTML: `data` is JSON for its script, `blocks` are decoded one by one, `fixed` and `data` fill the
    template."""
    style, script = _part("report.css"), '"use strict";\n' + "\n".join(map(_part, SCRIPTS))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    own = {"style": style, "script": script, "policy": policy, "data": script_json(data), "blocks": blocks}
    return _template().render(**data, **fixed, **own)  # type: ignore[no-any-return]


@lru_cache(maxsize=1)
def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_part("template.html"))


def _part(name: str) -> str:
    return files("torchviz_cnn.page").joinpath("web", name).read_text(encoding="utf-8").strip()


def _hash(text: str) -> str:
    """What the policy knows an element's text by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
