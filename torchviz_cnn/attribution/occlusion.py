"""Occlusion sensitivity: what happens to a class score where a square hides part of the picture."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from torchviz_cnn.attribution.result import ClassMap, of_targets, warn_of_empty
from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import InputError, counted
from torchviz_cnn.core.progress import progress_bar
from torchviz_cnn.hooks.inputs import Input, Output, Wrt, prepared
from torchviz_cnn.hooks.network import Model
from torchviz_cnn.media import render
from torchviz_cnn.media.images import Geometry, Preprocess
from torchviz_cnn.runs import files
from torchviz_cnn.scores.targets import Score, Target, asked, check_score, scores_of

_BATCH_ON_CPU = 8  # images at a time on a CPU: more fall out of its cache, and take up to twice as long each
_BATCH_ON_GPU = 128


@dataclass(frozen=True, eq=False, kw_only=True)
class Occlusion(ClassMap):
    """How a class score changes as a patch is slid over the picture. Raw values; scaled only where drawn.

    `values` (B, H, W) is how much the score drops (a cross-entropy: rises), for each pixel the mean over the patches
    that hide it; `logits` are those without a patch.
    """

    scores: Tensor
    """The score with the patch at each place: (B, rows, columns), or (B, K, rows, columns), float32."""
    clean: Tensor
    """The score of the whole picture: (B,) or (B, K)."""
    patch: tuple[int, int]
    stride: tuple[int, int]
    method: str = "occlusion"

    def _title(self) -> str:
        return f"drop under a patch of {self.patch[0]} x {self.patch[1]}"

    def _comparison(
        self, photo: Image.Image, index: int, nth: int, seed: int, geometry: Geometry | Preprocess | None
    ) -> tuple[str, Image.Image | render.Array]:
        """The score itself by place of the patch, as in the paper's figure 7."""
        return "score by patch", self._of(self.scores, index, nth).cpu().numpy()

    def save(self, path: str | Path) -> Path:
        """Write values, scores, clean, target, logits, patch and stride to a `.npz` file. Raises OutputError."""
        arrays = {
            name: getattr(self, name) for name in ("values", "scores", "clean", "target", "logits", "patch", "stride")
        }
        return files.save_arrays(path, arrays)

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.scores.shape))
        return f"Occlusion(patch {self.patch}, stride {self.stride}: {shape}, classes {self.target.tolist()})"


def occlusion(
    model: Model,
    x: Input,
    target: Target = None,
    *,
    patch: int | tuple[int, int] = 32,
    stride: int | tuple[int, int] | None = None,
    fill: float | Tensor = 0.0,
    score: Score = "logit",
    batch_size: int | None = None,
    progress: bool = False,
    output: Output = None,
    wrt: Wrt = None,
) -> Occlusion:
    """Slide a patch over the picture and see where the score of a class falls.

    The patches start in the top left corner, and the last ones reach over the edge if need be. Every occluded picture
    runs through the whole network.

    Args:
        model, x, target, output: as for `saliency`.
        patch: a side, or height and width, in pixels of the input.
        stride: how far the patch moves at a time; by default half the patch.
        fill: the patch's value, or one for each channel (C,); 0 is the mean grey of a network with the usual
            normalisation.
        score: as for `saliency`; the paper's figure 7 shows `probability`.
        batch_size: how many occluded images run at a time; by default what is fast on the device.
        progress: whether to show a bar.
        wrt: of several inputs, the one that patches hide; by default the first batch of images.

    Returns:
        An Occlusion with `values` (B, H, W), 0 where no patch comes, and `scores` (B, rows, columns); with K after B
        for (B, K).

    Raises:
        TargetError: for a class that the network does not have.
        InputError: for a patch, stride or fill that does not fit.

    Warns:
        EmptyMapWarning: where no patch changes anything.

    Zeiler & Fergus, arXiv 1311.2901, section 4.2.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5))
    >>> hidden = occlusion(model, torch.rand(4, 3, 8, 8), target=1, patch=4)
    >>> hidden.values.shape, hidden.scores.shape
    (torch.Size([4, 8, 8]), torch.Size([4, 3, 3]))
    """
    check_score(score)
    sides = checks.sides("patch", patch)
    steps = checks.sides("stride", tuple(max(side // 2, 1) for side in sides) if stride is None else stride)
    if batch_size is not None:
        checks.whole_number("batch_size", batch_size)
    with prepared(model, x, output=output, wrt=wrt, dims=(2,)) as given, torch.no_grad():
        height, width = given.x.shape[2:]
        if sides[0] > height or sides[1] > width:
            raise InputError(f"a patch of {sides[0]} x {sides[1]} does not fit an input of {height} x {width}")
        colour = _colour(fill, given.x)
        rows, columns = _starts(height, sides[0], steps[0]), _starts(width, sides[1], steps[1])
        corners = [(top, left) for top in rows for left in columns]
        at_once = batch_size or (_BATCH_ON_CPU if given.x.device.type == "cpu" else _BATCH_ON_GPU)
        targets = asked(given, target, score)
        occluded = []
        with progress_bar(progress, total=len(corners) * len(given.x), unit=" patches") as bar:
            for part in _batches(len(given.x), corners, at_once):
                images = [image for image, _ in part]
                pictures = given.x[images]
                for picture, (_, (top, left)) in zip(pictures, part, strict=True):
                    picture[:, top : top + sides[0], left : left + sides[1]] = colour
                occluded.append(scores_of(given, pictures, images, targets))
                bar.update(len(part))
        scores = torch.cat(occluded).view(len(given.x), len(rows), len(columns), -1).permute(0, 3, 1, 2).contiguous()
        drops = targets.scores[:, :, None, None] - scores
        drops = -drops if score == "cross_entropy" else drops
        values = _spread(drops, corners, sides, (height, width))
        why = "no patch changes the score of {target} in image {image}"
        warn_of_empty(~values.flatten(2).any(2), targets, why, "occlusion ")
        return Occlusion(
            scores=targets.squeezed(scores),
            clean=targets.squeezed(targets.scores),
            values=targets.squeezed(values),
            patch=sides,
            stride=steps,
            **of_targets(given, targets),
        )


def _batches(images: int, corners: list[tuple[int, int]], size: int) -> Iterator[list[tuple[int, tuple[int, int]]]]:
    """All pairs of an image and a corner, `size` at a time."""
    pairs = [(image, corner) for image in range(images) for corner in corners]
    for start in range(0, len(pairs), size):
        yield pairs[start : start + size]


def _spread(drops: Tensor, corners: list[tuple[int, int]], sides: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """For each pixel the mean of the drops (B, K, rows, columns) under the patches that hide it: (B, K, H, W)."""
    total = drops.new_zeros(*drops.shape[:2], *size)
    count = drops.new_zeros(size)
    for (top, left), drop in zip(corners, drops.flatten(2).unbind(2), strict=True):
        place = (slice(top, top + sides[0]), slice(left, left + sides[1]))
        total[..., place[0], place[1]] += drop[..., None, None]
        count[place] += 1
    return total / count.clamp(min=1)


def _starts(size: int, patch: int, stride: int) -> list[int]:
    return [i * stride for i in range(math.ceil((size - patch) / stride) + 1) if i * stride < size]


def _colour(fill: float | Tensor, x: Tensor) -> Tensor:
    try:
        colour = torch.as_tensor(fill, dtype=x.dtype, device=x.device).detach().flatten()
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            f"fill is a number or one for each of {counted(x.shape[1], 'channel')}, not {fill!r}"
        ) from None
    if len(colour) not in (1, x.shape[1]):
        raise InputError(
            f"fill is a number or one for each of {counted(x.shape[1], 'channel')}, "
            f"not {counted(len(colour), 'number')}"
        )
    if not bool(colour.isfinite().all()):
        raise InputError(f"fill is a finite number, not {colour.tolist()}")
    return colour[:, None, None]
