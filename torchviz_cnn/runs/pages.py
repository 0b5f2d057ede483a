"""A page in one file: a template filled, style and script inside it, and a policy that forbids every request."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any

_ROOM = "torchviz_cnn.runs"


def offline_page(template: str, style: str, script: str, **fields: Any) -> str:
    """The HTML of a page that loads nothing from other machines.

    The template is jinja2's and has places for `policy`, `style` and `script`; `fields` fill the others. It may include
    `provenance.html`, which pages share.
    """
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return _compiled(template).render(**fields, style=style, script=script, policy=policy)  # type: ignore[no-any-return]


def part(room: str, name: str) -> str:
    """A script, style sheet or template of a room, by the name of its package. What pages share is of this one."""
    return files(room).joinpath("web", name).read_text(encoding="utf-8").strip()


def joined(shared: Sequence[str], room: str, own: Sequence[str]) -> str:
    """Scripts, or style sheets, in one text: those that pages share, then those of a room."""
    parts = [part(_ROOM, name) for name in shared] + [part(room, name) for name in own]
    return "\n".join(parts)


def script_json(data: Any) -> str:
    """JSON that may stand inside a script element: no `<` can end it or open a comment."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    from jinja2 import DictLoader, Environment, StrictUndefined

    environment = Environment(
        loader=DictLoader({"provenance.html": part(_ROOM, "provenance.html")}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.from_string(template)


def _hash(text: str) -> str:
    """What the policy knows an element's text by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
