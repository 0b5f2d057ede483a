"""Words that depend on a number."""

from __future__ import annotations


def counted(count: int, one: str, several: str | None = None) -> str:
    """A number with its noun, in the singular or the plural, which by default ends in s.

    >>> counted(1, "photo"), counted(2000, "photo"), counted(0, "class", "classes")
    ('1 photo', '2,000 photos', '0 classes')
    """
    return f"{count:,} {one if count == 1 else several or one + 's'}"
