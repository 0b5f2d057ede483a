"""Tables as notebooks show them: HTML that takes its colours from the notebook, light or dark."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

from PIL import Image

_SCROLLED = "max-height:30em;overflow:auto"
_BAR = "background:linear-gradient(to right,#3b82f680 {share:.1%},#0000 0);min-width:9em"


def table(
    title: str,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    left: int = 1,
    shares: Sequence[float] | None = None,
) -> str:
    """A table with a title, in a box that scrolls where it is long.

    Args:
        title: a line above.
        head: what the columns are called.
        rows: the text of each cell.
        left: how many columns, the first ones, are text that begins at the left; the others are numbers.
        shares: of each row a share, 0..1, that is drawn as a bar behind its last cell.
    """
    cells = "".join(_cell("th", text, place < left) for place, text in enumerate(head))
    lines = [f"<tr>{cells}</tr>"]
    for number, row in enumerate(rows):
        bars = [""] * len(row)
        if shares is not None:
            bars[-1] = _BAR.format(share=min(max(shares[number], 0.0), 1.0))
        cells = "".join(_cell("td", text, place < left, bars[place]) for place, text in enumerate(row))
        lines.append(f"<tr>{cells}</tr>")
    above = f"<p>{html.escape(title)}</p>" if title else ""
    return f'<div>{above}<div style="{_SCROLLED}"><table>{"".join(lines)}</table></div></div>'


def beside(picture: Image.Image | None, text: str, side: int = 160) -> str:
    """HTML to the right of a small picture, where there is one."""
    if picture is None:
        return text
    small = picture.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    source = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    image = f'<img alt="" width="{small.width}" height="{small.height}" src="{source}">'
    return f'<div style="display:flex;flex-wrap:wrap;gap:1em;align-items:center">{image}{text}</div>'


def listed(sentences: Sequence[str]) -> str:
    """Sentences as a list."""
    return f"<ul>{''.join(f'<li>{html.escape(sentence)}</li>' for sentence in sentences)}</ul>"


def _cell(tag: str, text: str, left: bool, style: str = "") -> str:
    return f'<{tag} style="text-align:{"left" if left else "right"};{style}">{html.escape(text)}</{tag}>'
