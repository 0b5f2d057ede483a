"""One run of gradient ascent: what it needs to know of the network, its batches, and the work shared out among the cores."""

from __future__ import annotations

import contextlib
import copy
import itertools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from torchviz_cnn.ascent import objectives
from torchviz_cnn.ascent.climb import Climb
from torchviz_cnn.ascent.objectives import Objective
from torchviz_cnn.ascent.parameters import InputScale, fourier, pixels
from torchviz_cnn.ascent.recipes import Recipe
from torchviz_cnn.ascent.twins import made_for_bfloat16, narrowed, output_of, prepare, twin
from torchviz_cnn.ascent.workers import side_by_side
from torchviz_cnn.core.errors import InputError, ModelError
from torchviz_cnn.hooks.manager import HookManager
from torchviz_cnn.hooks.network import preprocess_of
from torchviz_cnn.layers.defaults import input_channels
from torchviz_cnn.media.images import Preprocess

Precision = Literal["float32", "bfloat16", "auto"]
Size = int | tuple[int, int]
Tick = Callable[[int], None]
Part = Callable[[nn.Module, Sequence[int]], tuple[Objective, Tensor]]
"""For a model and some places among the images: their objective, and which rows of it they are."""

_CACHE = 8 << 20
"""Bytes that the largest tensor of a batch should keep to on a CPU: larger ones cost more in memory than they save."""
_GPU_BYTES = 4 << 30
_LARGEST_BATCH = 64
_LARGEST = 100_000_000


@dataclass(frozen=True)
class Measured:
    """What one image takes on the way to what is looked at."""

    largest: int
    """Bytes of the largest tensor that is kept for the gradient."""
    total: int
    """Bytes of all of them."""
    weights: int
    """Bytes of the weights that take part."""
    shapes: dict[str, tuple[int, ...]]
    """The shape of what each layer asked for gives, without the batch."""


@dataclass(frozen=True, eq=False)
class Found:
    """What a run gives, in the order of what was asked for."""

    values: Tensor
    scores: Tensor
    dead: Tensor


class AscentRun:
    """What stays the same for all images of one call. Raises InputError for options that do not fit the model."""

    def __init__(
        self, model: nn.Module, recipe: Recipe, *, size: Size | None = None, start: Tensor | None = None, seed: int = 0,
        precision: Precision = "float32", preprocess: Preprocess | None = None, batch_size: int | None = None,
        compile: bool = False,
    ) -> None:  # fmt: skip
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
        channels = input_channels(model)
        self.recipe, self.seed, self.batch_size, self.compile = recipe, seed, batch_size, compile
        self.device, self.dtype = like.device, like.dtype
        self.start = None if start is None else _start(start, channels, size, recipe)
        height, width = _size(size, recipe) if self.start is None else self.start.shape[2:]
        self.shape = (channels, height, width)
        self._narrow: dict[str, bool] = {}
        self.layout = torch.channels_last
        """How images lie in memory: channels last, which is faster, until a layer that is measured minds."""
        if preprocess is not None and not isinstance(preprocess, Preprocess):
            raise InputError(f"preprocess is a Preprocess, not a {type(preprocess).__name__}")
        self.scale = InputScale.of(preprocess or preprocess_of(model), channels)
        self.low_precision = self._low_precision(precision)
        if batch_size is not None and not (isinstance(batch_size, int) and batch_size >= 1):
            raise InputError(f"batch_size is at least 1, not {batch_size!r}")
        low, high = recipe.noise
        self.parameters = (
            fourier(self.shape, self.scale)
            if recipe.parameters == "fourier"
            else pixels(self.shape, self.scale, low, high)
        )

    def measure(self, lent: nn.Module, objective: Objective) -> Measured:
        """Run one image as far as the objective needs; raises LayerError for a layer that is not there or not reached."""
        saved: dict[int, int] = {}
        own = {p.untyped_storage().data_ptr() for p in lent.parameters()}
        shapes: dict[str, tuple[int, ...]] = {}
        weights: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            place = tensor.untyped_storage().data_ptr()
            into = weights if place in own else saved
            into[place] = max(into.get(place, 0), tensor.numel() * tensor.element_size())
            return tensor.detach()  # an operation that kept its own output would be a circle that is never freed

        def shape_of(name: str, output: object) -> None:
            shapes[name] = tuple(output.shape[1:]) if isinstance(output, Tensor) else ()

        noise = self.parameters.start(torch.Generator().manual_seed(0), 0)
        x = self.parameters.images(noise[None]).to(self.device, self.dtype).requires_grad_()
        if objective.layers or objective.needs_output:
            with HookManager(lent) as hooks, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                hooks.on_forward(objective.layers, shape_of)
                for layout in dict.fromkeys((self.layout, torch.contiguous_format)):
                    self.layout = layout
                    try:
                        hooks.run(x.clone(memory_format=layout), stop_early=not objective.needs_output)
                        break
                    except RuntimeError as error:  # some networks ask for the usual layout: `x.view(len(x), -1)` does
                        if layout is torch.contiguous_format:
                            sides = " x ".join(map(str, self.shape))
                            raise ModelError(
                                f"{type(lent).__name__} does not run on an image of {sides}: {error}"
                            ) from error
                hooks.require_reached()
        return Measured(max(saved.values(), default=1), max(sum(saved.values()), 1), sum(weights.values()), shapes)

    def _fast_batch(self, measured: Measured) -> int:
        if self.batch_size is not None:
            return self.batch_size
        if self.device.type == "cpu":
            # As large as the caches like it; and where the weights are what is read most, several images to one reading.
            count = max(_CACHE / measured.largest, 2 * measured.weights / measured.total)
        else:
            count = _GPU_BYTES / (3 * measured.total)
        power = 1
        while power * 2 <= min(count, _LARGEST_BATCH * (1 if self.device.type == "cpu" else 8)):
            power *= 2
        return power

    def climb_channels(
        self, lent: nn.Module, layer: str, channels: Sequence[int], measured: Measured, tick: Tick, *,
        sizes: Sequence[int] | None = None, ended: Callable[[Sequence[int], Found], None] | None = None,
    ) -> Found:  # fmt: skip
        """A pattern for each channel of a layer, with the bits that it has in any other batch, on a CPU.

        `sizes` of batches instead of what fits the cores: each then runs on one core, so that its bits are the same
        on any number of them. `ended` is called with the channels of each batch as it is finished.
        """
        if sizes is None:
            most = max(1, -(-len(channels) // self._cores()))
            size = self.batch(lent, layer, channels, measured, most)
            batches: list[Sequence[int]] = [
                range(i, min(i + size, len(channels))) for i in range(0, len(channels), size)
            ]
            alone = (
                len(batches) == 1 and self._cores() > 1 and not self._alike(lent, layer, channels, batches, cores=True)
            )
        else:
            ends = list(itertools.accumulate(sizes))
            batches, alone = [range(end - size, end) for end, size in zip(ends, sizes, strict=True)], True

        def done(places: Sequence[int], found: Found) -> None:
            if ended is not None:
                ended([channels[place] for place in places], found)

        part, starts = self._parts(lent, layer, channels), self._starts(len(channels))
        return self._climb(lent, layer, channels, batches, part, tick, starts, done, alone=alone)

    def batch(
        self, lent: nn.Module, layer: str, channels: Sequence[int], measured: Measured, most: int = _LARGEST_BATCH
    ) -> int:
        """How many channels to take at once: as many as is fast, where a pattern then has the bits that it has alone."""
        size = min(self._fast_batch(measured), most, len(channels))
        if self.batch_size is not None or size == 1 or self.device.type != "cpu" or self.compile:
            return size
        return size if self._alike(lent, layer, channels, [range(size)]) else 1

    def _alike(
        self, lent: nn.Module, layer: str, channels: Sequence[int], batches: list[Sequence[int]], cores: bool = False
    ) -> bool:
        """Whether a step in a batch (with `cores`: on all of them) gives the first and last the bits it gives them alone.

        How convolutions sum up depends on shapes and numbers of threads, not on values: what one step shows, all do.
        """
        one = self.with_recipe(replace(self.recipe, steps=1))
        size, starts = len(batches[0]), self._starts(len(channels))

        def step(places: Sequence[int], together: Sequence[Sequence[int]], alone: bool) -> Found:
            asked = [channels[place] for place in places]
            part, own = self._parts(lent, layer, asked), None if starts is None else starts[list(places)]
            return one._climb(lent, layer, asked, list(together), part, lambda n: None, own, alone=alone)

        whole, each = step(range(size), [range(size)], not cores), step([0, size - 1], [[0], [1]], True)
        ends = [0, size - 1]
        return torch.equal(whole.values[ends], each.values) and torch.equal(whole.scores[ends], each.scores)

    def _starts(self, count: int) -> Tensor | None:
        """An image to start from for each of so many patterns."""
        return None if self.start is None else self.start.expand(count, -1, -1, -1)

    def _parts(self, lent: nn.Module, layer: str, channels: Sequence[int]) -> Part:
        narrow = self._narrows(lent, layer)

        def part(model: nn.Module, places: Sequence[int]) -> tuple[Objective, Tensor]:
            asked = [channels[place] for place in places]
            if narrow and model is not lent and narrowed(model, lent, layer, asked):
                asked = list(range(len(asked)))
            objective = objectives.channel(layer, asked, border=self.recipe.border, rectify=self.recipe.rectify)
            return objective, torch.arange(len(asked))

        return part

    def climb_objective(
        self, lent: nn.Module, objective: Objective, count: int, measured: Measured, tick: Tick
    ) -> Found:
        """So many images for one objective."""
        size = min(self._fast_batch(measured), max(1, -(-count // self._cores())))
        if objective.couples:
            size = count
        batches: list[Sequence[int]] = [range(i, min(i + size, count)) for i in range(0, count, size)]
        return self._climb(
            lent, "", range(count), batches, lambda model, places: (objective, torch.tensor(places)), tick,
            self._starts(count),
        )  # fmt: skip

    def _climb(
        self, lent: nn.Module, about: str, numbers: Sequence[int], batches: list[Sequence[int]],
        part: Part, tick: Tick, starts: Tensor | None,
        ended: Callable[[Sequence[int], Found], None] = lambda places, found: None, alone: bool = False,
    ) -> Found:  # fmt: skip
        climb = Climb(
            self.recipe, self.parameters, self.shape, self.seed, about, self.device, self.dtype, self.low_precision,
            self.layout, self.compile,
        )  # fmt: skip
        # Written into as it comes: put together at the end, there would be two of it.
        count, steps = len(numbers), self.recipe.steps + 1
        whole = Found(
            torch.empty(count, *self.shape, dtype=torch.float32, device=self.device),
            torch.empty(count, steps, dtype=torch.float32, device=self.device),
            torch.empty(count, dtype=torch.bool, device=self.device),
        )

        def work(model: nn.Module, places: Sequence[int], check: Callable[[], None]) -> Found:
            def step() -> None:
                check()
                tick(len(places))

            objective, rows = part(model, places)
            start = None if starts is None else starts[list(places)]
            return Found(*climb(model, objective, [numbers[place] for place in places], rows, start, step))

        def done(index: int, batch: Found) -> None:
            places = list(batches[index])
            whole.values[places], whole.scores[places], whole.dead[places] = batch.values, batch.scores, batch.dead
            ended(batches[index], batch)

        copied = twin(lent)
        model = lent if copied is None else copied
        if copied is not None:
            prepare(copied, self.device, self.low_precision)
        if copied is not None and self.device.type == "cpu" and not self.compile and (alone or len(batches) > 1):
            others = [twin(copied) for _ in range(min(self._cores(), len(batches)) - 1)]
            side_by_side([copied, *(m for m in others if m is not None)], batches, work, done, lambda: tick(0))
        else:
            for index, places in enumerate(batches):
                done(index, work(model, places, lambda: None))
        return whole

    def _narrows(self, lent: nn.Module, layer: str) -> bool:
        """Whether one channel of a layer can be computed without the others, and is then what it is among them."""
        if layer not in self._narrow:
            copied = twin(lent)
            self._narrow[layer] = False
            if copied is not None and narrowed(copied, lent, layer, [0]):
                x = self.parameters.images(self.parameters.start(torch.Generator().manual_seed(0), 0)[None])
                x = x.to(self.device, self.dtype)
                with contextlib.suppress(RuntimeError), torch.no_grad():
                    one, all_of_it = (output_of(model, layer, x.clone()) for model in (copied, lent))
                    scale = float(all_of_it.abs().max())
                    self._narrow[layer] = torch.allclose(one[:, 0], all_of_it[:, 0], rtol=1e-2, atol=1e-2 * scale)
        return self._narrow[layer]

    def with_recipe(self, recipe: Recipe) -> AscentRun:
        """The same run by another recipe for the same images."""
        other = copy.copy(self)
        other.recipe = recipe
        return other

    def is_linear(self, lent: nn.Module, layer: str) -> bool:
        """Whether what a layer gives depends linearly on the image, as a first convolution's output does."""
        with HookManager(lent) as hooks:
            kept: list[Tensor] = []
            hooks.on_forward(layer, lambda name, output: kept.append(output))
            gradients = []
            for seed in range(2):
                x = self.parameters.start(torch.Generator().manual_seed(seed), 0)
                leaf = self.parameters.images(x[None]).detach().to(self.device, self.dtype).requires_grad_()
                hooks.run(leaf.clone())
                weights = torch.rand(kept[-1].shape, generator=torch.Generator().manual_seed(2), device="cpu").to(
                    kept[-1]
                )
                gradients.append(torch.autograd.grad((kept[-1] * weights).sum(), leaf)[0])
        return bool(torch.allclose(gradients[0], gradients[1], rtol=1e-3, atol=1e-5 * float(gradients[0].abs().max())))

    def _cores(self) -> int:
        return torch.get_num_threads() if self.device.type == "cpu" and not self.compile else 1

    def _low_precision(self, precision: Precision) -> bool:
        if precision not in get_args(Precision):
            raise InputError(f"precision is 'float32', 'bfloat16' or 'auto', not {precision!r}")
        if self.dtype != torch.float32 or precision == "float32":
            return False
        return precision == "bfloat16" or made_for_bfloat16(self.device)


def _size(size: Size | None, recipe: Recipe) -> tuple[int, int]:
    given = recipe.size if size is None else size
    try:
        sides: Any = given if isinstance(given, (tuple, list)) else (given, given)
        height, width = (operator.index(side) for side in sides)
    except (TypeError, ValueError):
        raise InputError(f"size is a side in pixels or (height, width), not {size!r}") from None
    if height < 1 or width < 1 or height * width > _LARGEST:
        raise InputError(f"size is at least 1 pixel and at most {_LARGEST:,} in all, not {size!r}")
    return height, width


def _start(start: Tensor, channels: int, size: Size | None, recipe: Recipe) -> Tensor:
    if recipe.parameters != "pixels":
        raise InputError("start is an image of pixels: ask for parameters='pixels' with it")
    if not isinstance(start, Tensor) or start.ndim not in (3, 4) or start.shape[-3] != channels:
        shape = tuple(start.shape) if isinstance(start, Tensor) else type(start).__name__
        raise InputError(
            f"start is an image ({channels}, H, W), or one for each pattern (n, {channels}, H, W), not {shape}"
        )
    if not start.numel() or not start.is_floating_point() or not bool(start.isfinite().all()):
        raise InputError(f"start is an image of finite floating point values, as preprocess gives, not {start.dtype}")
    if size is not None and tuple(start.shape[-2:]) != _size(size, recipe):
        raise InputError(f"start is {tuple(start.shape[-2:])}, which is not the size asked for, {size}")
    return (start if start.ndim == 4 else start[None]).detach()
