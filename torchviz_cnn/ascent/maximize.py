"""`filter_patterns` and `maximize`: images that make a filter, a class, or any objective strong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from torchviz_cnn.ascent import objectives
from torchviz_cnn.ascent.loop import Ascent, Precision
from torchviz_cnn.ascent.objectives import Objective
from torchviz_cnn.ascent.parameters import Size
from torchviz_cnn.ascent.recipes import Preset, Quality, Recipe, chosen_recipe
from torchviz_cnn.ascent.result import Patterns
from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import DeadFilterWarning, InputError, LayerError, counted, kind_of
from torchviz_cnn.core.names import LayerName, one_call
from torchviz_cnn.core.progress import progress_bar
from torchviz_cnn.core.warn import warn
from torchviz_cnn.hooks.inputs import Input
from torchviz_cnn.hooks.network import Model
from torchviz_cnn.hooks.untouched import untouched


def filter_patterns(
    model: Model,
    layer: LayerName,
    channels: int | Iterable[int] | None = None,
    *,
    size: Size | None = None,
    steps: int | None = None,
    preset: Preset | Recipe | None = None,
    quality: Quality | None = None,
    start: Input | None = None,
    seed: int = 0,
    precision: Precision = "float32",
    batch_size: int | None = None,
    compile: bool = False,
    progress: bool = False,
) -> Patterns:
    """Make for each channel of a layer an image to which it responds strongly, by gradient ascent from noise.

    The noise of a channel depends on (seed, layer, channel) alone. In any batch a pattern is the same to 1e-5
    (relative) after the first steps, and after 30 as a picture: of 8 bits, values differ by 2 on average at most. Only
    the part of the network up to the layer runs, and of a plain convolution only the channels asked for. A channel to
    which no gradient comes back is started anew twice.

    Args:
        model: a module or a Network. Noise is drawn on a photo's scale, 0..1, and brought to the input's by the
            Network's preprocessing; of a plain module, 0..1 is taken for the input's scale.
        layer: the name of a layer that gives maps (B, C, h, w) or features (B, C). For a network's first convolution
            `Recipe.named(..., rectify=True)` is wanted, see `objectives.channel`.
        channels: one, several, or all of the layer (None).
        size: side, or (height, width), of the images in pixels; by default the recipe's.
        steps: how many steps, at least 0; by default the recipe's.
        preset: the name of a preset, by default `"dlwp-2025"`, or a `Recipe`, as `Recipe.named` gives it.
        quality: `"clean"` stands for the preset of that name, `"textbook"` for the default.
        start: an image (C, H, W), one for each channel (n, C, H, W) or, with a Network, photos, in place of the noise.
        seed: seed of the noise and the movements, at least 0.
        precision: `"bfloat16"` computes the network in it, `"auto"` only where the processor is made for it.
        batch_size: how many channels are computed at once; by default as many as is fast.
        compile: whether `torch.compile` is used (False).
        progress: whether a progress bar is shown (False).

    Returns:
        `Patterns`: `values` (n, C, H, W), `scores` (n, steps + 1), and the channels that are `dead`.

    Raises:
        LayerError: for a layer that does not exist or gives no features.
        InputError: for channels and options that do not exist.
        ModelError: where no gradient can come back, or it is NaN.

    Warns:
        DeadFilterWarning: of channels to which no gradient comes back from any start.

    Erhan et al. 2009; Simonyan et al., arXiv 1312.6034.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> patterns = filter_patterns(model, "2", [0, 3], size=24, steps=5)
    >>> patterns.values.shape, patterns.scores.shape, patterns.channels.tolist()
    (torch.Size([2, 3, 24, 24]), torch.Size([2, 6]), [0, 3])
    """
    recipe = chosen_recipe(preset, quality, steps)
    with untouched(model) as module:
        name = one_call(module, layer)
        ascent = Ascent(module, model, recipe, size, start, seed, precision, batch_size, compile)
        footprint = ascent.measure(objectives.channel(name, 0))
        chosen = chosen_channels(channels, name, footprint.shapes[name])
        batches = ascent.batches(len(chosen), footprint, layer=name)
        with steps_bar(len(chosen), name, "filters", recipe.steps, progress) as bar:
            parts = [ascent.raise_channels(name, [chosen[i] for i in b], b, bar.update) for b in batches]
        values, scores, is_dead = map(torch.cat, zip(*parts, strict=True))
    index = torch.tensor(chosen, device="cpu")
    dead = tuple(index[is_dead.cpu()].tolist())
    warn_dead(name, dead)
    text = f"channels of {name}"
    return Patterns(values, scores, text, recipe, ascent.scale, name, index, dead, ascent.seed)


def maximize(
    model: Model,
    objective: Objective,
    images: int | None = None,
    *,
    size: Size | None = None,
    steps: int | None = None,
    preset: Preset | Recipe | None = None,
    quality: Quality | None = None,
    start: Input | None = None,
    seed: int = 0,
    precision: Precision = "float32",
    batch_size: int | None = None,
    compile: bool = False,
    progress: bool = False,
) -> Patterns:
    """Make images that an objective is large for, by gradient ascent from noise, or from a photo.

    Args:
        objective: what is raised, made by the functions of `torchviz_cnn.objectives`.
        images: how many, each from its own noise; by default 1, or as many as the objective has channels or classes, or
            as there are images in `start`.
        model, size, steps, preset, quality, start, seed, precision, batch_size, compile, progress: as for
            `filter_patterns`; of a recipe, `border` and `rectify` do not count, as they are the objective's.

    Returns:
        `Patterns`, in which `dead` holds the images to which no gradient comes back.

    Raises:
        InputError, LayerError, ModelError: as for `filter_patterns`; it warns as that does.

    >>> from torch import nn
    >>> from torchviz_cnn import objectives
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> goal = objectives.channel("2", 1) - 0.1 * objectives.total_variation()
    >>> maximize(model, goal, images=2, size=24, steps=5).values.shape
    torch.Size([2, 3, 24, 24])
    """
    if not isinstance(objective, Objective):
        raise InputError(f"maximize takes an objective, such as objectives.channel(layer, 0), not {kind_of(objective)}")
    asked = objective.count if images is None else checks.whole_number("images", images)
    if objective.count not in (None, asked):
        own = counted(objective.count or 0, "image")
        raise InputError(f"images={images} does not fit {objective.text}, which is for {own}")
    recipe = chosen_recipe(preset, quality, steps)
    with untouched(model) as module:
        ascent = Ascent(module, model, recipe, size, start, seed, precision, batch_size, compile)
        count = asked or (1 if ascent.start is None else len(ascent.start))
        batches = ascent.batches(count, ascent.measure(objective), together=objective.couples)
        with steps_bar(count, "maximize", "images", recipe.steps, progress) as bar:
            parts = [ascent.raise_objective(objective, batch, bar.update) for batch in batches]
        values, scores, is_dead = map(torch.cat, zip(*parts, strict=True))
    dead = tuple(is_dead.nonzero().flatten().tolist())
    if dead:
        text = f"no gradient comes back from {objective.text} to images {_some(dead)}"
        warn(f"{text}: they stay noise", DeadFilterWarning)
    return Patterns(values, scores, objective.text, recipe, ascent.scale, dead=dead, seed=ascent.seed)


def chosen_channels(channels: int | Iterable[int] | None, layer: str, shape: tuple[int, ...]) -> list[int]:
    """The channels asked for, checked against what the layer gives; all of them for None."""
    if len(shape) not in (1, 3):
        raise LayerError(f"layer {layer!r} gives {('B', *shape)}, neither maps (B, C, h, w) nor features (B, C)")
    if channels is None:
        return list(range(shape[0]))
    chosen = checks.indices("channel", channels)
    checks.require_channels(chosen, layer, shape[0])
    return [chosen] if isinstance(chosen, int) else chosen


def warn_dead(layer: str, dead: Sequence[int]) -> None:
    """Warn (DeadFilterWarning) of channels of a layer to which no gradient comes back, if there are any."""
    if dead:
        warn(f"no gradient comes back from channels {_some(dead)} of layer {layer!r}: they are dead", DeadFilterWarning)


def steps_bar(count: int, name: str, unit: str, steps: int, progress: bool) -> Any:
    """A progress bar in whole images, that moves at every step: `update` takes how many images took one."""
    total, scale = count * (steps + 1), 1 / (steps + 1)
    form = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} {unit} [{elapsed}<{remaining}, {rate_noinv_fmt}]"
    return progress_bar(progress, total=total, desc=name, unit=unit, unit_scale=scale, bar_format=form)


def _some(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:10])) + f" and {len(numbers) - 10} more" * (len(numbers) > 10)
