"""Gradient ascent on the input: what a filter, a class, or any objective wants to see."""

from __future__ import annotations

import contextlib
import queue
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from torchviz_cnn.ascent import objectives
from torchviz_cnn.ascent.ascent_run import AscentRun, Found, Precision, Size
from torchviz_cnn.ascent.objectives import Objective
from torchviz_cnn.ascent.recipes import Normalize, Optimizer, Parameters, Preset, Quality, choose
from torchviz_cnn.ascent.result import Patterns
from torchviz_cnn.ascent.transformations import Transformation
from torchviz_cnn.core.errors import DeadFilterWarning, InputError, LayerError
from torchviz_cnn.core.names import named_layers, resolve
from torchviz_cnn.hooks.untouched import untouched
from torchviz_cnn.media.images import Preprocess


def filter_patterns(
    model: nn.Module, layer: str, channels: int | Iterable[int] | None = None, *, size: Size | None = None,
    steps: int | None = None, step: float | None = None, preset: Preset | None = None, quality: Quality | None = None,
    normalize: Normalize | None = None, border: int | None = None, rectify: bool | None = None,
    parameters: Parameters | None = None, optimizer: Optimizer | None = None,
    transformations: Sequence[Transformation] | None = None, start: Tensor | None = None, seed: int = 0,
    precision: Precision = "float32", preprocess: Preprocess | None = None, batch_size: int | None = None,
    compile: bool = False, progress: bool = False,
) -> Patterns:  # fmt: skip
    """What channels of a layer want to see: for each, an image that makes it strong, by gradient ascent from noise.

    `channels`: one, several, or all of the layer. `preset`: `"dlwp-2025"` (the default) and `"dlwp-2017"` are the
    textbook's two editions; `"clean"`, the same as `quality="clean"`, changes the image's spectrum in decorrelated colours
    while it moves about a little. The other options replace one constant each of the preset (see `Recipe`): `size` in pixels
    or (H, W), `steps`, `step`, `normalize`, `border`, `rectify`, `parameters`, `optimizer`, `transformations`. For a network's
    first convolution `rectify=True` is wanted, see `objectives.channel`.

    Images are on the scale of the model's input, and so are steps. Noise is drawn on a photo's scale, 0..1, and brought to the
    model's by its preprocessing, where `load_model` knows it or `preprocess` tells; else 0..1 it is. `start`, an image
    (C, H, W) or one for each channel, takes the noise's place. The noise of a channel depends on (seed, layer, channel)
    alone, and no pattern on what other channels were asked for.

    Only the part of the network up to the layer runs, of a convolution only the channels asked for. `precision="auto"`
    computes in bfloat16 where the processor is made for it. `batch_size`: as suits the network, if not told. `compile` uses
    `torch.compile`.

    Gives `Patterns`: `values` (n, C, H, W) and `scores` (n, steps + 1). A channel to which no gradient comes back is started
    anew twice, then listed in `dead`, with a DeadFilterWarning. Raises LayerError for a layer that is not there or gives no
    features, InputError for channels and options that do not exist, ModelError where no gradient can come back.

    Erhan et al. 2009; Simonyan et al., arXiv 1312.6034.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> found = filter_patterns(model, "2", [0, 3], size=24, steps=5)
    >>> found.values.shape, found.scores.shape, found.channels.tolist()
    (torch.Size([2, 3, 24, 24]), torch.Size([2, 6]), [0, 3])
    """
    recipe = choose(
        preset, quality, steps=steps, step=step, normalize=normalize, border=border, rectify=rectify, parameters=parameters,
        optimizer=optimizer, transformations=transformations,
    )  # fmt: skip
    with untouched(model) as lent:
        layer = one_call(lent, layer)
        run = AscentRun(
            lent, recipe, size=size, start=start, seed=seed, precision=precision, preprocess=preprocess,
            batch_size=batch_size, compile=compile,
        )  # fmt: skip
        measured = run.measure(lent, objectives.channel(layer, 0))
        chosen = chosen_channels(channels, layer, measured.shapes)
        if run.start is not None and len(run.start) not in (1, len(chosen)):
            raise InputError(f"there are {len(run.start)} images to start from, for {len(chosen)} patterns")
        with steps_bar(len(chosen), layer, "filters", recipe.steps, progress) as tick:
            found = run.climb_channels(lent, layer, chosen, measured, tick)
    return channel_patterns(run, layer, chosen, found)


def maximize(
    model: nn.Module, objective: Objective, images: int | None = None, *, size: Size | None = None,
    steps: int | None = None, step: float | None = None, preset: Preset | None = None, quality: Quality | None = None,
    normalize: Normalize | None = None, parameters: Parameters | None = None, optimizer: Optimizer | None = None,
    transformations: Sequence[Transformation] | None = None, start: Tensor | None = None, seed: int = 0,
    precision: Precision = "float32", preprocess: Preprocess | None = None, batch_size: int | None = None,
    compile: bool = False, progress: bool = False,
) -> Patterns:  # fmt: skip
    """Images that make an objective large, by gradient ascent from noise, or from `start`, a photo for instance.

    `objective`: of `torchviz_cnn.objectives`. `images`: how many, each from its own noise; by default 1, or as many as the
    objective has channels, or as `start` (n, C, H, W) has images. Everything else as for `filter_patterns`, by default
    for the size of the preset; `dead` holds the images to which no gradient comes back.

    >>> from torchviz_cnn import objectives
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> goal = objectives.channel("2", 1) - 0.1 * objectives.total_variation()
    >>> maximize(model, goal, images=2, size=24, steps=5).values.shape
    torch.Size([2, 3, 24, 24])
    """
    if not isinstance(objective, Objective):
        raise InputError(
            f"maximize takes an objective, such as objectives.channel(layer, 0), not a {type(objective).__name__}"
        )
    recipe = choose(
        preset, quality, steps=steps, step=step, normalize=normalize, parameters=parameters, optimizer=optimizer,
        transformations=transformations,
    )  # fmt: skip
    if images is not None and not (isinstance(images, int) and images >= 1):
        raise InputError(f"images is how many, at least 1, not {images!r}")
    counts = {objective.count, images, len(start) if isinstance(start, Tensor) and start.ndim == 4 else None} - {None}
    if len(counts) > 1:
        given = "noise" if start is None else f"a start {tuple(start.shape)}"
        asked = "as many as needed" if images is None else images
        raise InputError(f"{asked} images were asked for, for {objective.text}, from {given}: that does not fit")
    count = counts.pop() if counts else 1
    with untouched(model) as lent:
        for name in objective.layers:
            one_call(lent, name)
        run = AscentRun(
            lent, recipe, size=size, start=start, seed=seed, precision=precision, preprocess=preprocess,
            batch_size=batch_size, compile=compile,
        )  # fmt: skip
        measured = run.measure(lent, objective)
        with steps_bar(count or 1, "maximize", "images", recipe.steps, progress) as tick:
            found = run.climb_objective(lent, objective, count or 1, measured, tick)
    dead = tuple(i for i, gone in enumerate(found.dead.tolist()) if gone)
    if dead:
        _warn(f"no gradient comes back from {objective.text} to images {_some(dead)}: they stay noise")
    return Patterns(found.values, found.scores, objective.text, recipe, run.scale, dead=dead, seed=seed)


def channel_patterns(run: AscentRun, layer: str, channels: Sequence[int], found: Found) -> Patterns:
    """What a run found for channels of a layer; warns (DeadFilterWarning) of dead ones."""
    dead = tuple(c for c, gone in zip(channels, found.dead.tolist(), strict=True) if gone)
    if dead:
        _warn(f"no gradient comes back from channels {_some(dead)} of layer {layer!r}: they are dead on noise")
    return Patterns(
        found.values, found.scores, f"channels of {layer}", run.recipe, run.scale, layer, torch.tensor(channels), dead,
        run.seed,
    )  # fmt: skip


def one_call(model: nn.Module, layer: str) -> str:
    """The name under which a layer's call is known; raises LayerError for one that is not there, or stands for several."""
    call = resolve(model, named_layers(model), layer)
    if call.index is None:
        raise LayerError(f"{layer!r} is every call of {call.name!r}: name one, as {call.name!r} or '{call.name}#1'")
    return str(call)


def chosen_channels(
    channels: int | Iterable[int] | None, layer: str, shapes: Mapping[str, tuple[int, ...]]
) -> list[int]:
    """The channels asked for, checked against what the layer gives; all of them for None."""
    (shape,) = shapes.values()
    if len(shape) not in (1, 3):
        gives = ("B", *shape) if shape else "no tensor"
        raise LayerError(f"layer {layer!r} gives {gives}, neither maps (B, C, h, w) nor features (B, C)")
    if channels is None:
        return list(range(shape[0]))
    chosen: list[int] = objectives.indices(channels, "channel").flatten().tolist()
    wrong = [c for c in chosen if not 0 <= c < shape[0]]
    if wrong or not chosen:
        raise InputError(
            f"channel {wrong[0]} is out of range: layer {layer!r} has {shape[0]} channels, 0 to {shape[0] - 1}"
            if wrong
            else f"no channel of layer {layer!r} was asked for"
        )
    return chosen


@contextlib.contextmanager
def steps_bar(count: int, name: str, unit: str, steps: int, progress: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar in whole images, that moves at every step: what it gives takes how many images took one.

    Any thread may call that; the bar itself is moved in this one alone, as tqdm's lock is not safe from interrupts.
    """
    shape = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} {unit} [{elapsed}<{remaining}, {rate_noinv_fmt}]"
    with tqdm(
        total=count * (steps + 1), desc=name, unit=unit, unit_scale=1 / (steps + 1), bar_format=shape, leave=False,
        disable=not progress,
    ) as bar:  # fmt: skip
        own, taken = threading.get_ident(), queue.SimpleQueue[int]()

        def tick(images: int) -> None:
            taken.put(images)
            if threading.get_ident() == own:
                with contextlib.suppress(queue.Empty):
                    while True:
                        bar.update(taken.get_nowait())

        yield tick


def _some(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:10])) + f" and {len(numbers) - 10} more" * (len(numbers) > 10)


def _warn(message: str) -> None:
    warnings.warn(message, DeadFilterWarning, stacklevel=4)
