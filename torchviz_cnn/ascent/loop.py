"""The loop of gradient ascent: batches of images, from their noise to their patterns."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard, get_args

import torch
from torch import Tensor, nn

from torchviz_cnn.ascent import objectives
from torchviz_cnn.ascent.objectives import Evaluation, Objective
from torchviz_cnn.ascent.parameters import InputScale, Size, fourier, image_size, pixels, start_images
from torchviz_cnn.ascent.recipes import Recipe, normalized
from torchviz_cnn.ascent.transformations import moved, sampled_matrices
from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import InputError, ModelError, NotFiniteError, are, counted
from torchviz_cnn.core.names import LayerName, named_layers, one_call
from torchviz_cnn.hooks.inputs import Input, batch_of, warn_of_batch_statistics, working_dtype
from torchviz_cnn.hooks.manager import HookManager
from torchviz_cnn.hooks.network import Model, Network, preprocess_of
from torchviz_cnn.layers.defaults import input_channels
from torchviz_cnn.scores.outputs import Ending

Precision = Literal["float32", "bfloat16", "auto"]
Tick = Callable[[int], object]  # takes how many images have taken a step
# Runs the model as far as an objective needs: the activations, the output where it is needed, and how it ends.
Pass = Callable[[Tensor], tuple[dict[LayerName, Tensor], Any, Ending]]
Evaluate = Callable[[Tensor, int], Tensor]  # the objective (B,) of images from their parameters, at a step

ATTEMPTS = 3  # how many starts an image gets before it is said to be dead
_CACHE = 16 << 20  # bytes of a batch's largest tensor on a CPU: larger ones cost more in memory than they save
_GPU_BYTES = 4 << 30
_LARGEST_BATCH = 64  # on a CPU; eight times as many on a GPU
_log = logging.getLogger("torchviz_cnn")


@dataclass(frozen=True)
class Footprint:
    """Memory that one image needs up to the deepest layer of an objective."""

    largest: int  # bytes of the largest tensor that is kept for the gradient
    total: int  # bytes of all of them
    shapes: dict[LayerName, tuple[int, ...]]  # what each layer asked for gives, without the batch


Ascended = tuple[Tensor, Tensor, Tensor]
"""Of n images: their values (n, C, H, W) on the scale of the model's input, float32, the scores (n, steps + 1) at the
start and after each step, float32, and whether no gradient came back to each from any start (n,)."""


class Ascent:
    """One call's gradient ascent on a frozen model (see `untouched`), in which each image has its own random numbers.

    They depend on the seed, the layer and the channel alone. Batches of other sizes sum up in another order: after the
    first steps an image is the same to 1e-5 in any batch, after many as a picture. Raises InputError for options that
    do not fit the model.
    """

    def __init__(
        self,
        module: nn.Module,
        model: Model,
        recipe: Recipe,
        size: Size | None = None,
        start: Input | None = None,
        seed: int = 0,
        precision: Precision = "float32",
        batch_size: int | None = None,
        compile: bool = False,
    ) -> None:
        channels = input_channels(module)
        self.module, self.recipe, self.compile = module, recipe, compile
        self.seed = checks.whole_number("seed", seed, 0)
        self.batch_size = None if batch_size is None else checks.whole_number("batch_size", batch_size)
        self.device = next((p.device for p in module.parameters()), torch.get_default_device())
        self.dtype = working_dtype(module)
        self.low_precision = _low_precision(precision, self.device, self.dtype)
        self.start: Tensor | None = None
        if start is None:
            height, width = image_size(recipe.size if size is None else size)
        elif recipe.parameters == "pixels":
            self.start = start_images(start if isinstance(start, Tensor) else batch_of(model, start)[0], channels, size)
            height, width = self.start.shape[2:]
        else:
            raise InputError('start is an image of pixels: ask for Recipe.named(..., parameters="pixels") with it')
        self.shape = (channels, height, width)
        self.scale = InputScale.of(preprocess_of(model), channels)
        self.categories = model.categories if isinstance(model, Network) else None
        self.layout = torch.channels_last
        """How images lie in memory: channels last, which is faster, unless the model refuses it in `measure`."""
        if recipe.parameters == "pixels":
            self.parameters = pixels(self.shape, self.scale, *recipe.noise)
        else:
            self.parameters = fourier(self.shape, self.scale)
        self._convolutions: dict[str, nn.Conv2d | None] = {}
        self._compiled: Callable[[Tensor], dict[str, Tensor]] | None = None

    def measure(self, objective: Objective) -> Footprint:
        """Run one image as far as an objective needs it.

        Raises LayerError for a layer that is not there or not reached, ModelError where the model does not run on it.
        """
        saved: dict[int, int] = {}
        own = {p.untyped_storage().data_ptr() for p in self.module.parameters()}

        def keep(tensor: Tensor) -> Tensor:
            address = tensor.untyped_storage().data_ptr()
            if address not in own:
                saved[address] = max(saved.get(address, 0), tensor.numel() * tensor.element_size())
            # An operation that saved its own output would hold a reference cycle, which is never freed.
            return tensor.detach()

        saving = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with saving, self._forward_of(objective) as forward:
            while True:
                try:
                    activations, *_ = forward(self._first_image().requires_grad_())
                    break
                except torch.OutOfMemoryError:
                    raise
                except RuntimeError as error:
                    name, reason = type(self.module).__name__, str(error).partition("\n")[0]
                    if self.layout is torch.contiguous_format or "view" not in reason:
                        sides = " x ".join(map(str, self.shape))
                        raise ModelError(f"{name} does not run on an image of {sides}: {error}") from error
                    _log.info("%s does not run on images with channels last in memory: %s", name, reason)
                    self.layout = torch.contiguous_format
        shapes = {layer: tuple(maps.shape[1:]) for layer, maps in activations.items()}
        return Footprint(max(saved.values(), default=1), max(sum(saved.values()), 1), shapes)

    def batches(
        self, count: int, footprint: Footprint, *, layer: str | None = None, least: int = 1, together: bool = False
    ) -> list[range]:
        """Share this many images out to batches, at least `least`, each as large as is fast and fits the memory.

        Raises InputError unless there is one image to start from, or one for each.
        """
        if self.start is not None and len(self.start) not in (1, count):
            raise InputError(f"there {are(len(self.start), 'image')} to start from, for {counted(count, 'pattern')}")
        size = count if together else min(self.batch_size or self._fast_batch(footprint, layer), -(-count // least))
        if min(size, count) > 1:
            warn_of_batch_statistics(self.module)
        return [range(i, min(i + size, count)) for i in range(0, count, size)]

    def raise_channels(
        self, layer: str, channels: Sequence[int], starts: Sequence[int], tick: Tick, *, rectify: bool | None = None
    ) -> Ascended:
        """Make the patterns of one batch of a layer's channels, from these of the images to start from."""
        recipe, convolution, rows = self.recipe, self._convolution(layer), range(len(channels))
        rectify = recipe.rectify if rectify is None else rectify
        index = list(channels if convolution is None else rows)
        objective = objectives.channel(layer, index, border=recipe.border, rectify=rectify)
        with _only(convolution, channels) if convolution else contextlib.nullcontext():
            return self._ascend(objective, [f"{layer}/{channel}" for channel in channels], rows, starts, tick)

    def raise_objective(self, objective: Objective, indices: Sequence[int], tick: Tick) -> Ascended:
        """Make the images of an objective that have these numbers, as one batch."""
        return self._ascend(objective, [f"/{index}" for index in indices], indices, indices, tick)

    def is_linear(self, layer: str) -> bool:
        """Tell whether what a layer gives depends linearly on the image, as a first convolution's output does."""
        objective = objectives.channel(layer, 0)
        with self._forward_of(objective) as forward:

            def weighted(image: Tensor, step: int) -> Tensor:
                maps = forward(image)[0][layer]
                weights = torch.rand(maps.shape, generator=torch.Generator().manual_seed(2), device="cpu")
                return (maps * weights.to(maps)).sum()

            a, b = (_gradient(weighted, self._first_image(seed), 0, objective)[0] for seed in range(2))
        peak = float(a.abs().max())
        return math.isfinite(peak) and bool(torch.allclose(a, b, rtol=1e-3, atol=1e-5 * peak))

    def _ascend(
        self, objective: Objective, names: Sequence[str], rows: Sequence[int], starts: Sequence[int], tick: Tick
    ) -> Ascended:
        """Take one batch from its start to its last step; the names of its images decide on their random numbers."""
        recipe, scores = self.recipe, []
        with self._forward_of(objective, self.compile) as forward:
            evaluate = self._evaluation(objective, forward, names, rows)
            parameters, gradient, score, dead = self._started(evaluate, objective, names, starts)
            adam = torch.optim.Adam([parameters], lr=recipe.step, maximize=True) if recipe.optimizer == "adam" else None
            for step in range(recipe.steps):
                if step:
                    gradient, score = _gradient(evaluate, parameters, step, objective)
                scores.append(score)
                direction = normalized(gradient, recipe.normalize)
                if adam is None:
                    parameters.add_(direction, alpha=recipe.step)
                else:
                    parameters.grad = direction
                    adam.step()
                tick(len(names))
            scores.append(evaluate(parameters, recipe.steps).detach())
            tick(len(names))
        values, all_scores = self.parameters.images(parameters).float().contiguous(), torch.stack(scores, 1).float()
        if not all(bool(tensor.isfinite().all()) for tensor in (values, all_scores)):
            name = type(self.module).__name__
            raise NotFiniteError(
                f"{name} gives NaN or infinity while {objective.text} is raised: are its weights finite?"
            )
        return values, all_scores, dead

    def _evaluation(self, objective: Objective, forward: Pass, names: Sequence[str], rows: Sequence[int]) -> Evaluate:
        """Give what measures the objective of a batch, with each image's own movements."""
        recipe, index = self.recipe, torch.tensor(rows, device=self.device)
        movements = None
        if recipe.transformations:
            generators = [self._generator(f"movements of {name}") for name in names]
            options = recipe.steps + 1, self.shape[1:]
            each = [sampled_matrices(recipe.transformations, own, *options) for own in generators]
            movements = torch.stack(each).to(self.device)

        def evaluate(parameters: Tensor, step: int) -> Tensor:
            images = self.parameters.images(parameters)
            shown = images if movements is None else moved(images, movements[:, step])
            activations, output, ending = forward(shown.to(self.dtype))
            with torch.autocast(self.device.type, enabled=False):
                value = objective.value(Evaluation(images, activations, output, index, self.categories, ending, step))
            if not isinstance(value, Tensor) or value.shape != index.shape or not value.is_floating_point():
                what = (*value.shape, value.dtype) if isinstance(value, Tensor) else type(value).__name__
                raise InputError(f"{objective.text} gives {what}, not a number for each image: ({len(index)},)")
            return value

        return evaluate

    def _started(
        self, evaluate: Evaluate, objective: Objective, names: Sequence[str], starts: Sequence[int]
    ) -> tuple[Tensor, ...]:
        """Give the parameters at the start, their gradient and score, and which images are dead after all attempts."""
        dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        generators = [self._generator(name) for name in names]

        def noise(attempt: int) -> Tensor:
            each = [self.parameters.start(generator, attempt) for generator in generators]
            return torch.stack(each).to(self.device, dtype)

        parameters = noise(0)
        if self.start is not None:
            parameters = self.start[[index % len(self.start) for index in starts]].to(self.device, dtype)
        for attempt in range(1, ATTEMPTS + 1):
            gradient, score = _gradient(evaluate, parameters, 0, objective)
            dead = gradient.flatten(1).abs().amax(1) == 0
            if attempt == ATTEMPTS or self.start is not None or not bool(dead.any()):
                break
            parameters = torch.where(dead.view(-1, *[1] * (parameters.ndim - 1)), noise(attempt), parameters)
        return parameters, gradient, score, dead

    def _generator(self, name: str) -> torch.Generator:
        """One image's own random numbers."""
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    def _first_image(self, seed: int = 0) -> Tensor:
        """One image (1, C, H, W) of noise, as the model gets it."""
        noise = self.parameters.start(torch.Generator().manual_seed(seed), 0)
        return self.parameters.images(noise[None]).to(self.device, self.dtype)

    def _fast_batch(self, footprint: Footprint, layer: str | None) -> int:
        if self.device.type == "cpu":
            count, most = _CACHE / footprint.largest, _LARGEST_BATCH
            if layer is not None and self._convolution(layer) is not None:  # a map of each channel for each image
                count = min(count, math.sqrt(_CACHE / 8 / math.prod(footprint.shapes[layer][1:])))
        else:
            count, most = _GPU_BYTES / (3 * footprint.total), 8 * _LARGEST_BATCH
        return 1 << int(math.log2(max(1, min(count, most))))

    def _convolution(self, layer: str) -> nn.Conv2d | None:
        """The layer, if it is a convolution of which some channels can be computed without the others."""
        if layer not in self._convolutions:
            module = named_layers(self.module).get(layer)
            self._convolutions[layer] = module if _is_separable(module) and self._same_alone(layer, module) else None
        return self._convolutions[layer]

    def _same_alone(self, layer: str, convolution: nn.Conv2d) -> bool:
        """Whether a channel that is computed without the others has the values that it has among them."""
        with torch.no_grad(), self._forward_of(objectives.channel(layer, 0)) as forward:
            whole = forward(self._first_image())[0][layer][:, 0]
            try:
                with _only(convolution, [0]):
                    alone = forward(self._first_image())[0][layer][:, 0]
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # the model reads the weights in another place too
                _log.info("all channels of %s are computed: %s", layer, str(error).partition("\n")[0])
                return False
        return bool((alone - whole).abs().max() <= 1e-2 * whole.abs().max())

    @contextlib.contextmanager
    def _forward_of(self, objective: Objective, compile: bool = False) -> Iterator[Pass]:
        """Give what runs the model as far as the objective needs: by hooks or, if asked, compiled once for all."""
        if compile and self._compiled is None:
            self._compiled = _compiled(self.module, objective)
        part = self._compiled if compile else None
        names = {layer: one_call(self.module, layer) for layer in objective.layers}
        to_the_end = objective.needs_output
        with HookManager(self.module) as hooks, hooks.record([] if compile else names.values()) as activations:

            def forward(images: Tensor) -> tuple[dict[LayerName, Tensor], Any, Ending]:
                images = images.contiguous(memory_format=self.layout)
                images = images.clone() if images.is_leaf else images  # the model's own to write into
                kept: Mapping[str, Tensor] = activations
                output, ending = None, Ending()
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.low_precision):
                    if part is not None:
                        kept = part(images)
                    elif to_the_end:
                        with ending:
                            output = self._run(hooks, images, stop_early=False)
                    elif names:
                        self._run(hooks, images, stop_early=True)
                hooks.require_reached()
                return {layer: kept[name] for layer, name in names.items()}, output, ending

            yield forward

    def _run(self, hooks: HookManager, images: Tensor, stop_early: bool) -> Any:
        """Run the model, which takes one image (see `measure`); raises ModelError where it does not take several."""
        try:
            return hooks.run(images, stop_early=stop_early)
        except RuntimeError as error:
            if len(images) == 1 or isinstance(error, torch.OutOfMemoryError):
                raise
            name, reason = type(self.module).__name__, str(error).partition("\n")[0]
            raise ModelError(
                f"{name} runs on one image, but not on {len(images)} at once, which batch_size=1, as filter_patterns "
                f"has it, mends: {reason}"
            ) from error


def _gradient(evaluate: Evaluate, parameters: Tensor, step: int, objective: Objective) -> tuple[Tensor, Tensor]:
    """The gradient of each image's objective with respect to its parameters, and the objective."""
    leaf = parameters.detach().requires_grad_()
    score = evaluate(leaf, step)
    gradient = torch.autograd.grad(score.sum(), leaf, allow_unused=True)[0] if score.requires_grad else None
    if gradient is None:
        raise ModelError(
            f"no gradient comes back to the image from {objective.text}: it does not depend on the image, or "
            "the model detaches it or runs a part of itself under torch.no_grad(), as reentrant checkpointing does"
        )
    return gradient, score.detach()


def _is_separable(module: nn.Module | None) -> TypeGuard[nn.Conv2d]:
    """Whether a layer is a convolution that is what its weights say: not in groups, no hooks, weights of its own."""
    if type(module) is not nn.Conv2d or module.groups > 1 or "forward" in vars(module):
        return False
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return "weight" in module._parameters and not any(hooks)


@contextlib.contextmanager
def _only(convolution: nn.Conv2d, channels: Sequence[int]) -> Iterator[None]:
    """Leave a convolution the weights of these output channels alone, for the length of the block."""
    before = dict(convolution._parameters)
    rows = {name: tensor.detach()[list(channels)] for name, tensor in before.items() if tensor is not None}
    try:
        convolution._parameters.update({name: nn.Parameter(t, requires_grad=False) for name, t in rows.items()})
        yield
    finally:
        convolution._parameters.update(before)


def _low_precision(precision: Precision, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether to compute in bfloat16: as asked or, with `auto`, where the processor is made for it."""
    checks.one_of("precision", precision, get_args(Precision))
    if dtype != torch.float32 or precision != "auto":
        return dtype == torch.float32 and precision == "bfloat16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(bool(getattr(torch.cpu, name, bool)()) for name in names)


def _compiled(model: nn.Module, objective: Objective) -> Callable[[Tensor], dict[str, Tensor]]:
    from torchvision.models.feature_extraction import create_feature_extractor

    names = [one_call(model, layer) for layer in objective.layers]
    if objective.needs_output or any("#" in name for name in names):
        raise InputError(f"only layers by name can be compiled, not {objective.text}")
    try:
        part = create_feature_extractor(model, {name: name for name in names})
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{type(model).__name__} cannot be traced for compile=True: {error}") from error
    return torch.compile(part)  # type: ignore[no-any-return, no-untyped-call]
