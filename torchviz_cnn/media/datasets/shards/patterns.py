"""Which tar files a pattern such as `train-{000000..000999}.tar` means."""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import re
from collections.abc import Sequence
from typing import Any

from torchviz_cnn.core.errors import InputError, ShardError, did_you_mean, kind_of

Shards = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
_BRACES = re.compile(r"\{([^{}]*)\}")
_NUMBERS = re.compile(r"(\d+)\.\.(\d+)")
_RANGE_LIKE = re.compile(r"[\[({<](\d+)(?:\.{2,3}|-|:)(\d+)[\])}>]")
"""A range of numbers as it is written elsewhere."""
_ENDINGS = (".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
"""How files are called that are taken for shards; those that turn out to be compressed are refused."""
_LOOKED_AT = 10_000
"""Among how many files of a folder the nearest name is looked for."""
_MOST = 1_000_000
"""How many shards a pattern may mean: a mistaken number is noticed before it fills the memory."""


def are_shards(place: object) -> bool:
    """Whether a string or a path means tar files, rather than a folder: it ends in .tar or the like, or is an address.

    >>> are_shards("train-{000000..000019}.tar"), are_shards("https://a.b/c.tar?signature=d"), are_shards("photos/")
    (True, True, False)
    """
    if not isinstance(place, (str, os.PathLike)) or os.path.isdir(place):
        return False
    return str(place).casefold().endswith(_ENDINGS) or (isinstance(place, str) and "://" in place)


def shard_paths(shards: Shards, local: bool | None = None) -> list[str]:
    """The paths or addresses of all shards, in the order of the pattern; a glob's in the order of their names.

    `local`: whether they are files of this system; by default those that are no addresses. Raises InputError for a
    pattern that cannot be understood and for a glob among addresses, ShardError for a glob that no file fits.
    """
    paths = list[str]()
    for one in named(shards):
        is_local = "://" not in one if local is None else local
        if is_local and os.path.isfile(one):  # its own name may have braces or brackets
            paths.append(one)
            continue
        if not is_local:
            _require_no_glob(one)
        for path in braces_expanded(one):
            paths += _fitting(path) if is_local and glob.has_magic(path) else [path]
    twice = next((path for path, other in zip(sorted(paths), sorted(paths)[1:], strict=False) if path == other), None)
    if twice is not None:
        raise InputError(f"the shard {twice} is given twice")
    other = next((path for path in paths if local is None and _system(path) != _system(paths[0])), None)
    if other is not None:
        raise InputError(f"shards lie on one file system, and {paths[0]} and {other} are on two")
    return paths


def _require_no_glob(address: str) -> None:
    """Raise InputError for an address that is a glob. What follows its ? is most often no part of a name."""
    name, _, query = address.partition("://")[2].partition("/")[2].partition("?")
    brackets = re.search(r"\[.+\]", name) is not None
    if brackets or "*" in (name or address) or (query.endswith(".tar") and "=" not in query):
        raise InputError(
            f"{address} is a glob, by which only files of this system are found, as servers are not asked what they "
            f"have: write a range, as in train-{{000..019}}.tar, or give a list of addresses{range_meant(address)}"
        )


def _system(path: str) -> str:
    """The kind of file system of a path or an address: empty for that of this machine."""
    kind = path.partition("://")[0] if "://" in path else ""
    return {"https": "http", "file": "", "local": ""}.get(kind, kind)


def named(shards: Shards) -> list[str]:
    """The patterns, paths or addresses that are given. Raises InputError for what is none."""
    several = [shards] if isinstance(shards, (str, os.PathLike)) else shards
    if not isinstance(several, Sequence) or not several:
        raise InputError(f"shards are a pattern such as 'train-{{000..019}}.tar' or a list, not {_shown(shards)}")
    for one in several:
        if not isinstance(one, (str, os.PathLike)) or not str(one):
            raise InputError(f"a shard is named by a str or a Path, not by {_shown(one)}")
    return [str(one) for one in several]


def absolute(pattern: str) -> str:
    """A pattern of files of this system as one that means them in every folder, whatever the folder here is called.

    A `~` is the home folder, as no shell replaces it in quotes.
    """
    pattern = pattern if os.path.lexists(pattern) else os.path.expanduser(pattern)
    here = os.getcwd() if os.path.isfile(pattern) or not glob.has_magic(pattern) else glob.escape(os.getcwd())
    return os.path.normpath(os.path.join(here, pattern))


def braces_expanded(pattern: str) -> list[str]:
    """All that a pattern means, as a shell expands it.

    >>> braces_expanded("{a,b}-{08..10}.tar")
    ['a-08.tar', 'a-09.tar', 'a-10.tar', 'b-08.tar', 'b-09.tar', 'b-10.tar']
    """
    pieces = _BRACES.split(pattern)
    if any("{" in piece or "}" in piece for piece in pieces[::2]):
        single = re.sub(r"\{\{([^{}]*)\}\}", r"{\1}", pattern)
        near = f"; did you mean {single!r}?" if single != pattern else ""
        raise InputError(f"the braces of {pattern!r} do not match, or one pair stands in another{near}")
    made = [pieces[0]]
    for choices, rest in zip(pieces[1::2], pieces[2::2], strict=True):
        options = _options(pattern, choices)
        if len(made) * len(options) > _MOST:
            raise InputError(f"{pattern!r} means more than {_MOST:,} shards")
        made = [f"{begun}{option}{rest}" for begun in made for option in options]
    return made


def _options(pattern: str, choices: str) -> list[str]:
    """What one pair of braces stands for."""
    if numbers := _NUMBERS.fullmatch(choices):
        first, last = numbers.groups()
        if int(last) < int(first):
            near = f"; did you mean '{{{last}..{first}}}'?"
            raise InputError(f"in {pattern!r} the last number of {{{choices}}} is below the first{near}")
        if int(last) - int(first) >= _MOST:
            raise InputError(f"{pattern!r} means more than {_MOST:,} shards")
        filled = any(len(number) > 1 and number[0] == "0" for number in (first, last))
        width = max(len(first), len(last)) if filled else 0
        return [str(number).zfill(width) for number in range(int(first), int(last) + 1)]
    if "," in choices:
        return choices.split(",")
    near = range_meant(f"{{{choices}}}")
    raise InputError(f"braces are a range as in {{000..019}} or names as in {{a,b}}, not {{{choices}}}{near}")


def _fitting(pattern: str) -> list[str]:
    """The files that a glob means, in the order of their names."""
    files = [pattern] if os.path.lexists(pattern) else sorted(glob.glob(pattern, recursive=True))
    if not files:
        raise ShardError(f"no file fits {pattern}{name_meant(pattern)}")
    return files


def range_meant(pattern: str) -> str:
    """`"; did you mean '{000..019}.tar'?"` for a range of numbers that is written in another way, or `""`.

    >>> range_meant("s3://photos/train-[000-019].tar"), range_meant("train-{000..019}.tar")
    ("; did you mean 'train-{000..019}.tar'?", '')
    """
    meant = _RANGE_LIKE.sub(r"{\1..\2}", pattern)
    if meant == pattern:
        number = re.search(r"%0?\d*d", pattern)
        return "" if number is None else f"; numbers are a range, as {{000..019}} in place of {number[0]}"
    return f"; did you mean {meant.rpartition('/')[2]!r}?"


def name_meant(path: str) -> str:
    """The range that a path of this system that is not there may have meant, or the nearest tar file of its folder."""
    folder, name = os.path.split(path)
    with contextlib.suppress(OSError), os.scandir(folder or ".") as entries:
        near = itertools.islice((one.name for one in entries if one.name.casefold().endswith(_ENDINGS)), _LOOKED_AT)
        return range_meant(path) or did_you_mean(name, near)
    return range_meant(path)


def short_names(paths: Sequence[str]) -> list[str]:
    """What shards are called: their paths below the folder that all of them lie in, so without it.

    What follows the ? of an address is no part of the name, unless it tells shards apart: it is most often a signature,
    which is nothing to save, and is another one the next time.

    >>> short_names(["s3://photos/a/0.tar", "s3://photos/b/0.tar"]), short_names(["/data/train-0.tar"])
    (['a/0.tar', 'b/0.tar'], ['train-0.tar'])
    """
    plain = [path.partition("?")[0] if "://" in path else path for path in paths]
    paths = plain if len(set(plain)) == len(paths) else paths
    parts = [path.replace(os.sep, "/").split("/") for path in paths]
    shortest, shared = min(map(len, parts)), 0
    while shared < shortest - 1 and len({part[shared] for part in parts}) == 1:
        shared += 1
    return ["/".join(part[shared:]) for part in parts]


def may_have_key(address: str) -> bool:
    """Whether an address may have what only its owner should know: a password, or the signature behind a ?.

    >>> may_have_key("https://a.b/c.tar?signature=d"), may_have_key("ftp://me:secret@a.b/c.tar"), may_have_key("c?.tar")
    (True, True, False)
    """
    rest = address.partition("://")[2]
    return "?" in rest or ":" in rest.partition("/")[0].rpartition("@")[0]


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, (str, list, tuple)) and len(value) == 0 else kind_of(value)
