"""One run of gradient ascent: what it needs to know of the network, its batches, and the work shared out among the cores."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from torchviz_cnn.errors import InputError, ModelError
from torchviz_cnn.hooks import HookManager
from torchviz_cnn.images import Preprocess, preprocess_of
from torchviz_cnn.layers import input_channels
from torchviz_cnn.methods import objectives
from torchviz_cnn.methods.climb import Climb
from torchviz_cnn.methods.image_parameters import InputScale, fourier, pixels
from torchviz_cnn.methods.objectives import Objective
from torchviz_cnn.methods.recipes import Recipe
from torchviz_cnn.methods.workers import side_by_side, twin
from torchviz_cnn.names import named_layers

Precision = Literal["float32", "bfloat16", "auto"]
Size = int | tuple[int, int]
Tick = Callable[[int], None]
Part = Callable[[nn.Module, Sequence[int]], tuple[Objective, Tensor]]
"""For a model and some places among the images: their objective, and which rows of it they are."""

_CACHE = 8 << 20
"""Bytes that the largest tensor of a batch should keep to on a CPU: larger ones cost more in memory than they save."""
_GPU_BYTES = 4 << 30
_LARGEST_BATCH = 64


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
        self.layout = torch.channels_last
        """How images lie in memory: channels last, which is faster, unless the network minds."""
        self.scale = InputScale.of(preprocess or preprocess_of(model), channels)
        self.low_precision = self._low_precision(precision)
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch_size is at least 1, not {batch_size}")
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
            return tensor

        def shape_of(name: str, output: object) -> None:
            shapes[name] = tuple(output.shape[1:]) if isinstance(output, Tensor) else ()

        noise = self.parameters.start(torch.Generator().manual_seed(0), 0)
        x = self.parameters.images(noise[None]).to(self.device, self.dtype).requires_grad_()
        if objective.layers or objective.needs_output:
            with HookManager(lent) as hooks, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                hooks.on_forward(objective.layers, shape_of)
                for layout in (torch.channels_last, torch.contiguous_format):
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

        return self._climb(lent, layer, channels, batches, self._parts(lent, layer, channels), tick, done, alone=alone)

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
        part, ends = self._parts(lent, layer, channels), [batches[0][0], batches[0][-1]]
        asked = [channels[place] for place in ends]
        whole = one._climb(lent, layer, channels[: len(batches[0])], batches[:1], part, lambda n: None, alone=not cores)
        each = one._climb(lent, layer, asked, [[0], [1]], self._parts(lent, layer, asked), lambda n: None, alone=True)
        return torch.equal(whole.values[ends], each.values) and torch.equal(whole.scores[ends], each.scores)

    def _parts(self, lent: nn.Module, layer: str, channels: Sequence[int]) -> Part:
        def part(model: nn.Module, places: Sequence[int]) -> tuple[Objective, Tensor]:
            asked = [channels[place] for place in places]
            if model is not lent and _narrowed(model, lent, layer, asked):
                asked = list(range(len(asked)))
            recipe = self.recipe
            return objectives.channel(layer, asked, border=recipe.border, rectify=recipe.rectify), torch.arange(
                len(asked)
            )

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
            lent, "", range(count), batches, lambda model, places: (objective, torch.tensor(places)), tick
        )

    def _climb(
        self, lent: nn.Module, about: str, numbers: Sequence[int], batches: list[Sequence[int]],
        part: Part, tick: Tick,
        ended: Callable[[Sequence[int], Found], None] = lambda places, found: None, alone: bool = False,
    ) -> Found:  # fmt: skip
        climb = Climb(
            self.recipe, self.parameters, self.shape, self.seed, about, self.device, self.dtype, self.low_precision,
            self.layout, self.compile,
        )  # fmt: skip
        # Written into as it comes: put together at the end, there would be two of it.
        count, steps = len(numbers), self.recipe.steps + 1
        whole = Found(
            torch.empty(count, *self.shape, device=self.device),
            torch.empty(count, steps, device=self.device),
            torch.empty(count, dtype=torch.bool, device=self.device),
        )

        def work(model: nn.Module, places: Sequence[int], check: Callable[[], None]) -> Found:
            def step() -> None:
                check()
                tick(len(places))

            objective, rows = part(model, places)
            start = None if self.start is None else self.start.expand(len(numbers), -1, -1, -1)[list(places)]
            return Found(*climb(model, objective, [numbers[place] for place in places], rows, start, step))

        def done(index: int, batch: Found) -> None:
            places = list(batches[index])
            whole.values[places], whole.scores[places], whole.dead[places] = batch.values, batch.scores, batch.dead
            ended(batches[index], batch)

        copied = twin(lent)
        model = lent if copied is None else copied
        if copied is not None:
            _prepare(copied, self.device, self.low_precision)
        if copied is not None and self.device.type == "cpu" and not self.compile and (alone or len(batches) > 1):
            others = [twin(copied) for _ in range(min(self._cores(), len(batches)) - 1)]
            side_by_side([copied, *(m for m in others if m is not None)], batches, work, done, lambda: tick(0))
        else:
            for index, places in enumerate(batches):
                done(index, work(model, places, lambda: None))
        return whole

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
                weights = torch.rand(kept[-1].shape, generator=torch.Generator().manual_seed(2)).to(kept[-1])
                gradients.append(torch.autograd.grad((kept[-1] * weights).sum(), leaf)[0])
        return bool(torch.allclose(gradients[0], gradients[1], rtol=1e-3, atol=1e-5 * float(gradients[0].abs().max())))

    def _cores(self) -> int:
        return torch.get_num_threads() if self.device.type == "cpu" and not self.compile else 1

    def _low_precision(self, precision: Precision) -> bool:
        if precision not in get_args(Precision):
            raise InputError(f"precision is 'float32', 'bfloat16' or 'auto', not {precision!r}")
        if self.dtype != torch.float32 or precision == "float32":
            return False
        return precision == "bfloat16" or _made_for_bfloat16(self.device)


def _narrowed(model: nn.Module, lent: nn.Module, layer: str, channels: Sequence[int]) -> bool:
    """Leave a twin's convolution only the output channels asked for, where it is plain; gives whether it was.

    The layer ends the forward pass, so the others of its channels would be computed for nothing.
    """
    original = named_layers(lent).get(layer)
    if type(original) is not nn.Conv2d or original.groups > 1 or original._forward_hooks or original._forward_pre_hooks:
        return False
    if original._parameters.get("weight") is None:  # made by a parametrisation or a hook
        return False
    copy = named_layers(model)[layer]
    for name in ("weight", "bias"):
        tensor = original._parameters[name]
        if tensor is not None:
            kept = tensor.detach()[list(channels)].to(copy._parameters[name].dtype)  # type: ignore[union-attr]
            copy._parameters[name] = nn.Parameter(kept, requires_grad=False)
    return True


_LOWERED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def _prepare(model: nn.Module, device: torch.device, low_precision: bool) -> None:
    """Give a twin weights as they are read at every step: in bfloat16, and on a GPU channels last."""
    kind = torch.bfloat16 if low_precision else None
    order = torch.channels_last if device.type == "cuda" else torch.preserve_format
    for module in model.modules():
        if type(module) in _LOWERED and (low_precision or order is torch.channels_last):
            for name, tensor in module._parameters.items():
                if tensor is not None:
                    how = order if tensor.ndim == 4 else torch.preserve_format
                    made = tensor.detach().to(dtype=kind or tensor.dtype, memory_format=how)
                    module._parameters[name] = nn.Parameter(made, requires_grad=False)


def _made_for_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, bool)()) for name in names)


def _size(size: Size | None, recipe: Recipe) -> tuple[int, int]:
    given = recipe.size if size is None else size
    try:
        height, width = (int(side) for side in ((given, given) if isinstance(given, int) else given))
    except (TypeError, ValueError):
        raise InputError(f"size is a side in pixels or (height, width), not {size!r}") from None
    if height < 1 or width < 1:
        raise InputError(f"size is at least 1 pixel, not {size!r}")
    return height, width


def _start(start: Tensor, channels: int, size: Size | None, recipe: Recipe) -> Tensor:
    if recipe.parameters != "pixels":
        raise InputError("start is an image of pixels: ask for parameters='pixels' with it")
    if not isinstance(start, Tensor) or start.ndim not in (3, 4) or start.shape[-3] != channels:
        shape = tuple(start.shape) if isinstance(start, Tensor) else type(start).__name__
        raise InputError(
            f"start is an image ({channels}, H, W), or one for each pattern (n, {channels}, H, W), not {shape}"
        )
    if size is not None and tuple(start.shape[-2:]) != _size(size, recipe):
        raise InputError(f"start is {tuple(start.shape[-2:])}, which is not the size asked for, {size}")
    return (start if start.ndim == 4 else start[None]).detach()
