"""Words that depend on a number."""

from __future__ import annotations


def counted(count: int, one: str, several: str | None = None) -> str:
    """A number with its noun, in the singular or the plural; `several` is the plural where it is not formed with s.

    >>> counted(1, "photo"), counted(2000, "photo"), counted(0, "class"), counted(2, "photo was", "photos were")
    ('1 photo', '2,000 photos', '0 classes', '2 photos were')
    """
    plural = several or one + ("es" if one.endswith(("s", "x")) else "s")
    return f"{count:,} {one if count == 1 else plural}"


def are(count: int, one: str) -> str:
    """What there is so many of, after `there`.

    >>> are(1, "photo"), are(2, "photo")
    ('is 1 photo', 'are 2 photos')
    """
    return f"{'is' if count == 1 else 'are'} {counted(count, one)}"
