"""Every error and warning of this library.

    TorchvizError
    ├── LayerError        (ValueError)    a layer's name, the place it runs, the shape it gives
    ├── TargetError       (ValueError)    a class index that the network does not have, a shape that does not fit
    ├── InputError        (ValueError)    a tensor or option that a method cannot work with
    │   ├── ShardError                    a tar file of photos that is missing, broken, changed, or does not answer
    ├── ImageError        (ValueError)    a photo that cannot be read or drawn
    ├── ModelError        (ValueError)    a network that cannot be built, or not explained by this method
    │   └── NotFiniteError                one whose numbers are NaN or infinite
    ├── CheckpointError   (ValueError)    weights that cannot be read or do not fit
    ├── OutputError       (OSError)       a result that cannot be written
    ├── RankError         (RuntimeError)  a process of a shared run that does not answer
    ├── WorkerError       (RuntimeError)  a process that reads photos, which has ended
    └── HookError         (RuntimeError)  a hook manager used after it was closed

    TorchvizWarning       (UserWarning)
    ├── CheckpointWarning weights that may not be right
    ├── DeadFilterWarning a filter to which no gradient comes back
    ├── EmptyMapWarning   a heatmap without any positive evidence
    ├── GeometryWarning   a heatmap drawn on a photo whose preprocessing is not known
    ├── ImageWarning      a picture whose range of values, or bands for red, green and blue, had to be guessed
    └── SkippedWarning    images or labels of a dataset that were left out, or values that are not numbers

Messages say what was asked, what was there, and the nearest match.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TorchvizError(Exception):
    """Base of all errors raised on purpose by this library."""


class LayerError(TorchvizError, ValueError):
    """A layer that does not exist, is never reached, or has no spatial map."""


class TargetError(TorchvizError, ValueError):
    """A target class out of range, or of a shape that does not fit the batch."""


class InputError(TorchvizError, ValueError):
    """A tensor or an option that a method cannot work with."""


class ShardError(InputError):
    """A tar file of photos that is missing or broken, has changed since it was indexed, or whose server fails."""


class ImageError(TorchvizError, ValueError):
    """A photo that cannot be read or drawn."""


class ModelError(TorchvizError, ValueError):
    """A network that cannot be built, or that this method cannot explain."""


class NotFiniteError(ModelError, InputError):
    """An input with NaN or infinity in it, or a network whose scores, maps or patterns have."""


class CheckpointError(TorchvizError, ValueError):
    """Weights that cannot be read, are not safe to read, or do not fit the network."""


class OutputError(TorchvizError, OSError):
    """A result that cannot be written where it was asked."""


class RankError(TorchvizError, RuntimeError):
    """Another process of a shared run has ended or does not answer."""


class WorkerError(TorchvizError, RuntimeError):
    """A process that reads photos has ended, most often as memory ran out."""


class HookError(TorchvizError, RuntimeError):
    """A hook manager used after it was closed."""


class TorchvizWarning(UserWarning):
    """Base of all warnings of this library."""


class DeadFilterWarning(TorchvizWarning):
    """Gradient ascent has no gradient to follow: nothing that was tried makes the filter active."""


class EmptyMapWarning(TorchvizWarning):
    """A heatmap has no positive value: the map holds no evidence for the class."""


class CheckpointWarning(TorchvizWarning):
    """Weights were loaded that may not be right: they are not finite, or their order had to be guessed."""


class SkippedWarning(TorchvizWarning):
    """Images of a dataset could not be read, or gave no numbers, or labels are not classes, and were left out."""


class ImageWarning(TorchvizWarning):
    """The range of a picture's values, or which of its bands are red, green and blue, had to be guessed."""


class GeometryWarning(TorchvizWarning):
    """The region of the photo that the network saw is not known, so the whole photo is assumed."""


def kind_of(value: object) -> str:
    """What kind of object a value is, with its article.

    >>> kind_of(3), kind_of(None)
    ('an int', 'a NoneType')
    """
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOaeiou' else 'a'} {name}"


def one_line(error: BaseException) -> str:
    """What an error says, on one line.

    >>> one_line(InputError("no map\\n  of it"))
    'no map of it'
    """
    return " ".join(str(error).split())


def did_you_mean(asked: str, known: Iterable[str]) -> str:
    """`"; did you mean 'features.29'?"` for the nearest of the known names, or `""` where none is near.

    >>> did_you_mean("featurs.29", ["features.29", "classifier.6"])
    "; did you mean 'features.29'?"
    """
    names = list(known)
    folded = {name.casefold(): name for name in names}
    near = difflib.get_close_matches(asked.casefold(), folded, n=1, cutoff=0.6)
    return f"; did you mean {folded[near[0]]!r}?" if near else ""


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
