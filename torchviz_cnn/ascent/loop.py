"""The loop of gradient ascent: batches of images, from their noise to their patterns."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from torchviz_cnn.ascent import objectives
from torchviz_cnn.ascent.objectives import Evaluation, Objective
from torchviz_cnn.ascent.parameters import InputScale, fourier, pixels
from torchviz_cnn.ascent.recipes import Normalize, Recipe
from torchviz_cnn.ascent.transformations import drawn, moved
from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import InputError, ModelError
from torchviz_cnn.core.names import named_layers
from torchviz_cnn.hooks.manager import HookManager
from torchviz_cnn.hooks.network import Model, Network, preprocess_of
from torchviz_cnn.layers.defaults import input_channels

Precision = Literal["float32", "bfloat16", "auto"]
Size = int | tuple[int, int]
Tick = Callable[[int], object]
"""Is told how many images have taken a step."""
Look = Callable[[Tensor], tuple[dict[str, Tensor], Any]]
"""Runs the model as far as an objective needs: the activations, and the output where it is needed."""

ATTEMPTS = 3
"""How many starts an image gets before it is said to be dead."""
_CACHE = 16 << 20
"""Bytes of the largest tensor of a batch on a CPU: larger ones cost more in memory than they save."""
_GPU_BYTES = 4 << 30
_LARGEST_BATCH = 64
"""On a CPU; eight times as many on a GPU."""
_LARGEST_IMAGE = 100_000_000
_log = logging.getLogger("torchviz_cnn")


@dataclass(frozen=True)
class Footprint:
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
class Ascended:
    """The images of one batch, or of several, after their last step."""

    values: Tensor
    """On the scale of the model's input: (n, C, H, W), float32."""
    scores: Tensor
    """The objective at the start and after each step: (n, steps + 1), float32."""
    dead: Tensor
    """Whether no gradient came back to the image, from any start: (n,)."""

    @classmethod
    def joined(cls, parts: Sequence[Ascended]) -> Ascended:
        """Several batches as one."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))


class Ascent:
    """One call's gradient ascent on a frozen model (see `untouched`), in which each image has its own random numbers.

    An image's random numbers depend on the seed, the layer and the channel alone, so that it gets the same noise in any
    batch. Batches of other sizes sum up in another order: after the first steps images agree to 1e-5, after many the
    pictures do. Raises InputError for options that do not fit the model.
    """

    def __init__(
        self,
        module: nn.Module,
        model: Model,
        recipe: Recipe,
        size: Size | None = None,
        start: Tensor | None = None,
        seed: int = 0,
        precision: Precision = "float32",
        batch_size: int | None = None,
        compile: bool = False,
    ) -> None:
        like = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(()))
        channels = input_channels(module)
        self.module, self.recipe, self.compile = module, recipe, compile
        self.seed = checks.whole_number("seed", seed, 0)
        self.batch_size = None if batch_size is None else checks.whole_number("batch_size", batch_size)
        self.device, self.dtype = like.device, like.dtype
        self.low_precision = _low_precision(precision, self.device, self.dtype)
        self.start = None if start is None else _start(start, channels, size, recipe)
        height, width = _size(size, recipe) if self.start is None else self.start.shape[2:]
        self.shape = (channels, height, width)
        self.scale = InputScale.of(preprocess_of(model), channels)
        self.categories = model.categories if isinstance(model, Network) else None
        self.layout = torch.channels_last
        """How images lie in memory: channels last, which is faster, unless the model refuses it in `measure`."""
        as_pixels = recipe.parameters == "pixels"
        self.parameters = (
            pixels(self.shape, self.scale, *recipe.noise) if as_pixels else fourier(self.shape, self.scale)
        )
        self._plain: dict[str, nn.Conv2d | None] = {}
        self._compiled: dict[tuple[str, ...], Look] = {}
        _prepare_weights(module, self.device, self.low_precision)

    def measure(self, objective: Objective) -> Footprint:
        """Run one image as far as an objective needs it.

        Raises LayerError for a layer that is not there or not reached, ModelError where the model does not run on the image.
        """
        saved: dict[int, int] = {}
        weights: dict[int, int] = {}
        own = {p.untyped_storage().data_ptr() for p in self.module.parameters()}

        def keep(tensor: Tensor) -> Tensor:
            place = tensor.untyped_storage().data_ptr()
            kind = weights if place in own else saved
            kind[place] = max(kind.get(place, 0), tensor.numel() * tensor.element_size())
            return tensor.detach()  # an operation that saved its own output would be a circle that is never freed

        activations: dict[str, Tensor] = {}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), self._eagerly(objective) as look:
            for layout in (self.layout, torch.contiguous_format):
                self.layout = layout
                try:
                    activations, _ = look(self._first_image().requires_grad_())
                    break
                except torch.OutOfMemoryError:
                    raise
                except RuntimeError as error:
                    name, reason = type(self.module).__name__, str(error).partition("\n")[0]
                    if layout is torch.contiguous_format:
                        sides = " x ".join(map(str, self.shape))
                        raise ModelError(f"{name} does not run on an image of {sides}: {error}") from error
                    # `x.view(len(x), -1)` does not run on it, for example
                    _log.info("%s does not run on images with channels last in memory: %s", name, reason)
        shapes = {layer: tuple(maps.shape[1:]) for layer, maps in activations.items()}
        return Footprint(max(saved.values(), default=1), max(sum(saved.values()), 1), sum(weights.values()), shapes)

    def batches(self, count: int, footprint: Footprint, *, layer: str | None = None, least: int = 1) -> list[range]:
        """Share so many images out to batches, at least `least`, each as large as is fast and fits the memory."""
        size = self.batch_size or self._fast_batch(footprint, layer)
        size = max(1, min(size, -(-count // least)))
        return [range(i, min(i + size, count)) for i in range(0, count, size)]

    def raise_channels(
        self, layer: str, channels: Sequence[int], places: Sequence[int], tick: Tick, *, rectify: bool | None = None
    ) -> Ascended:
        """Make the patterns of one batch of channels of a layer; `places` are theirs among the images to start from."""
        recipe, convolution = self.recipe, self._convolution(layer)
        rectify = recipe.rectify if rectify is None else rectify
        index = list(channels) if convolution is None else list(range(len(channels)))
        objective = objectives.channel(layer, index, border=recipe.border, rectify=rectify)
        with _only(convolution, channels):
            return self._ascend(objective, layer, channels, range(len(channels)), self._starts(places), tick)

    def raise_objective(self, objective: Objective, places: Sequence[int], tick: Tick) -> Ascended:
        """Make one batch of the images of an objective."""
        return self._ascend(objective, "", places, places, self._starts(places), tick)

    def is_linear(self, layer: str) -> bool:
        """Tell whether what a layer gives depends linearly on the image, as a first convolution's output does."""
        gradients = []
        with self._eagerly(objectives.channel(layer, 0)) as look:
            for seed in range(2):
                image = self._first_image(seed).requires_grad_()
                maps = look(image)[0][layer]
                weights = torch.rand(maps.shape, generator=torch.Generator().manual_seed(2), device="cpu").to(maps)
                gradients.append(torch.autograd.grad((maps * weights).sum(), image)[0])
        return bool(torch.allclose(gradients[0], gradients[1], rtol=1e-3, atol=1e-5 * float(gradients[0].abs().max())))

    def _ascend(
        self,
        objective: Objective,
        about: str,
        numbers: Sequence[int],
        rows: Sequence[int],
        start: Tensor | None,
        tick: Tick,
    ) -> Ascended:
        """One batch, from its start to its last step. `about` and `numbers` name the images, for their random numbers."""
        recipe = self.recipe
        with self._compiled_or_eagerly(objective) as look:
            batch = _Batch(self, objective, look, torch.tensor(rows, device=self.device), self._movements(about, numbers))
            state, gradient, score, dead = self._started(batch, about, numbers, start)
            adam = torch.optim.Adam([state], lr=recipe.step, maximize=True) if recipe.optimizer == "adam" else None
            scores = []
            for step in range(recipe.steps):
                if step:
                    gradient, score = batch.gradient(state, step)
                scores.append(score)
                direction = normalized(gradient, recipe.normalize)
                if adam is None:
                    state.add_(direction, alpha=recipe.step)
                else:
                    state.grad = direction
                    adam.step()
                tick(len(numbers))
            with torch.no_grad():
                scores.append(batch.score(state, recipe.steps))
                values = self.parameters.images(state).float()
            tick(len(numbers))
        result = Ascended(values.contiguous(), torch.stack(scores, 1).float(), dead)
        if not bool(result.values.isfinite().all()) or not bool(result.scores.isfinite().all()):
            raise ModelError(
                f"{type(self.module).__name__} gives NaN or infinity while {objective.text} is raised: are its weights "
                "finite?"
            )
        return result

    def _started(
        self, batch: _Batch, about: str, numbers: Sequence[int], start: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The parameters at the start, their gradient and score, and which images are dead after all attempts."""
        kind = torch.float64 if self.dtype == torch.float64 else torch.float32
        generators = [torch.Generator().manual_seed(_seed_of(self.seed, about, number)) for number in numbers]

        def noise(attempt: int) -> Tensor:
            each = [self.parameters.start(generator, attempt) for generator in generators]
            return torch.stack(each).to(self.device, kind)

        state = noise(0) if start is None else start.to(self.device, kind, copy=True)
        gradient, score = batch.gradient(state, 0)
        dead = _is_zero(gradient)
        for attempt in range(1, ATTEMPTS if start is None else 1):
            if not bool(dead.any()):
                break
            state = torch.where(dead.view(-1, *[1] * (state.ndim - 1)), noise(attempt), state)
            gradient, score = batch.gradient(state, 0)
            dead = _is_zero(gradient)
        return state, gradient, score, dead

    def _movements(self, about: str, numbers: Sequence[int]) -> Tensor | None:
        transformations, steps = self.recipe.transformations, self.recipe.steps + 1
        if not transformations:
            return None
        seeds = [_seed_of(self.seed, f"movements of {about}", number) for number in numbers]
        each = [drawn(transformations, torch.Generator().manual_seed(seed), steps, self.shape[1:]) for seed in seeds]
        return torch.stack(each).to(self.device)

    def _starts(self, places: Sequence[int]) -> Tensor | None:
        """The images to start from, of so many patterns."""
        if self.start is None or len(self.start) > 1:
            return None if self.start is None else self.start[list(places)]
        return self.start.expand(len(places), -1, -1, -1)

    def _first_image(self, seed: int = 0) -> Tensor:
        """One image (1, C, H, W) of noise, as the model gets it."""
        noise = self.parameters.start(torch.Generator().manual_seed(seed), 0)
        return self.parameters.images(noise[None]).to(self.device, self.dtype)

    def _fast_batch(self, footprint: Footprint, layer: str | None) -> int:
        if self.device.type == "cpu":
            # As large as the caches like it; and where weights are what is read most, several images to one reading.
            count = max(_CACHE / footprint.largest, 2 * footprint.weights / footprint.total)
            if layer is not None and self._convolution(layer) is not None:  # gives a map of each channel for each image
                one_map = 4 * math.prod(footprint.shapes[layer][1:])
                count = min(count, math.sqrt(_CACHE / 2 / one_map))
        else:
            count = _GPU_BYTES / (3 * footprint.total)
        most = _LARGEST_BATCH * (1 if self.device.type == "cpu" else 8)
        return int(2 ** int(math.log2(max(1, min(count, most)))))

    def _convolution(self, layer: str) -> nn.Conv2d | None:
        """The layer, if it is a convolution of which some channels can be computed without the others."""
        if layer not in self._plain:
            convolution = named_layers(self.module).get(layer)
            plain = type(convolution) is nn.Conv2d and _is_plain(convolution) and self._same_alone(layer, convolution)
            self._plain[layer] = convolution if plain else None  # type: ignore[assignment]
        return self._plain[layer]

    def _same_alone(self, layer: str, convolution: nn.Conv2d) -> bool:
        """Whether a channel has the values without the others that it has among them, as far as the model lets it run."""
        with self._eagerly(objectives.channel(layer, 0)) as look, torch.no_grad():
            whole = look(self._first_image())[0][layer][:, 0]
            try:
                with _only(convolution, [0]):
                    alone = look(self._first_image())[0][layer][:, 0]
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # the model reads the weights in another place too
                _log.info("all channels of %s are computed: %s", layer, str(error).partition("\n")[0])
                return False
        return bool((alone - whole).abs().max() <= 1e-2 * whole.abs().max())

    @contextlib.contextmanager
    def _eagerly(self, objective: Objective) -> Iterator[Look]:
        """Give what runs the model as far as the objective needs, by hooks."""
        layers, to_the_end = objective.layers, objective.needs_output
        with HookManager(self.module) as hooks, hooks.record(layers, lambda name, output: output) as activations:

            def look(images: Tensor) -> tuple[dict[str, Tensor], Any]:
                if not layers and not to_the_end:
                    return {}, None
                images = images.contiguous(memory_format=self.layout)
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.low_precision):
                    output = hooks.run(images.clone() if images.is_leaf else images, stop_early=not to_the_end)
                hooks.require_reached()
                return dict(activations), output

            yield look

    @contextlib.contextmanager
    def _compiled_or_eagerly(self, objective: Objective) -> Iterator[Look]:
        if not self.compile:
            with self._eagerly(objective) as look:
                yield look
            return
        if objective.layers not in self._compiled:
            self._compiled[objective.layers] = _compiled(self.module, objective)
        run = self._compiled[objective.layers]

        def autocast(images: Tensor) -> tuple[dict[str, Tensor], Any]:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.low_precision):
                return run(images.contiguous(memory_format=self.layout))

        yield autocast


@dataclass(frozen=True, eq=False)
class _Batch:
    """Images on their way, whatever their parameters are by now."""

    ascent: Ascent
    objective: Objective
    look: Look
    rows: Tensor
    movements: Tensor | None
    """By image and step, (B, steps + 1, 2, 3)."""

    def score(self, state: Tensor, step: int) -> Tensor:
        """The objective of each image: (B,)."""
        ascent = self.ascent
        images = ascent.parameters.images(state)
        shown = images if self.movements is None else moved(images, self.movements[:, step])
        activations, output = self.look(shown.to(ascent.dtype))
        with torch.autocast(ascent.device.type, enabled=False):
            return self.objective.value(Evaluation(images, activations, output, self.rows, ascent.categories))

    def gradient(self, state: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The gradient of each image's objective with respect to its parameters, and the objective."""
        leaf = state.detach().requires_grad_()
        score = self.score(leaf, step)
        gradient = None
        if score.requires_grad:
            (gradient,) = torch.autograd.grad(score.sum(), leaf, allow_unused=True)
        if gradient is None:
            raise ModelError(
                f"no gradient comes back to the image from {self.objective.text}: it does not depend on the image, or the "
                "model detaches it or runs a part of itself under torch.no_grad()"
            )
        return gradient, score.detach()


def normalized(gradient: Tensor, how: Normalize) -> Tensor:
    """Gradients (B, ...) each divided by its own size; one of zeros stays so.

    `l2`: the root of the sum of squares. `rms`: the root of their mean, + 1e-5. `pixel`: each pixel's by the length of
    its vector of channels, or 1e-7 where that is shorter, as Keras' `normalize` does.
    """
    if how == "none":
        return gradient
    if how == "pixel":
        return gradient / gradient.square().sum(1, keepdim=True).sqrt().clamp_min(1e-7)
    length: Tensor = torch.linalg.vector_norm(gradient, dim=tuple(range(1, gradient.ndim)), keepdim=True)
    if how == "rms":
        return gradient / (length / math.sqrt(gradient[0].numel()) + 1e-5)
    return gradient / length.clamp_min(torch.finfo(gradient.dtype).tiny)


def _is_zero(gradient: Tensor) -> Tensor:
    zero: Tensor = gradient.flatten(1).abs().amax(1) == 0
    return zero


def _seed_of(seed: int, about: str, number: int) -> int:
    """The seed of one image's own random numbers: of the run's seed, what the image belongs to, and its number there."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{about}/{number}".encode()).digest()[:7], "big")


def _is_plain(convolution: nn.Conv2d) -> bool:
    """Whether a convolution is what its weight and bias say: not in groups, no hooks, weights that nothing computes."""
    hooks = (convolution._forward_hooks, convolution._forward_pre_hooks, convolution._backward_hooks)
    own = convolution._parameters.get("weight") is not None and "forward" not in vars(convolution)
    return own and convolution.groups == 1 and not any(hooks) and not convolution._backward_pre_hooks


@contextlib.contextmanager
def _only(convolution: nn.Conv2d | None, channels: Sequence[int]) -> Iterator[None]:
    """Leave a convolution the weights of these output channels alone, for the length of the block."""
    if convolution is None:
        yield
        return
    before = dict(convolution._parameters)
    try:
        for name, tensor in before.items():
            if tensor is not None:
                rows = tensor.detach()[list(channels)]
                convolution._parameters[name] = nn.Parameter(rows, requires_grad=False)
        yield
    finally:
        convolution._parameters.update(before)


def _prepare_weights(model: nn.Module, device: torch.device, low_precision: bool) -> None:
    """Replace weights by what every step reads of them: bfloat16, and on a GPU channels last. `untouched` restores them."""
    order = torch.channels_last if device.type == "cuda" else torch.preserve_format
    if not low_precision and order is torch.preserve_format:
        return
    for module in model.modules():
        if type(module) not in (nn.Conv2d, nn.ConvTranspose2d, nn.Linear):
            continue
        for name, tensor in module._parameters.items():
            if tensor is not None:
                dtype, form = (torch.bfloat16 if low_precision else tensor.dtype), order
                read = tensor.detach().to(
                    dtype=dtype, memory_format=form if tensor.ndim == 4 else torch.preserve_format
                )
                module._parameters[name] = nn.Parameter(read, requires_grad=False)


def _low_precision(precision: Precision, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether to compute in bfloat16: as told or, with `auto`, where the processor is made for it."""
    checks.one_of("precision", precision, get_args(Precision))
    if dtype != torch.float32 or precision == "float32":
        return False
    if precision == "bfloat16":
        return True
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(bool(getattr(torch.cpu, name, bool)()) for name in names)


def _compiled(model: nn.Module, objective: Objective) -> Look:
    from torchvision.models.feature_extraction import create_feature_extractor

    if objective.needs_output or any("#" in name for name in objective.layers):
        raise InputError(f"only layers by name can be compiled, not {objective.text}")
    try:
        part = create_feature_extractor(model, {name: name for name in objective.layers})
    except Exception as error:  # whatever tracing meets in a user's model
        raise InputError(f"{type(model).__name__} cannot be traced for compile=True: {error}") from error
    run = torch.compile(part)  # type: ignore[no-untyped-call]
    return lambda images: (run(images), None)  # type: ignore[no-untyped-call]


def _size(size: Size | None, recipe: Recipe) -> tuple[int, int]:
    height, width = checks.sides("size", recipe.size if size is None else size)
    if height * width > _LARGEST_IMAGE:
        raise InputError(f"size is at most {_LARGEST_IMAGE:,} pixels in all, not {size!r}")
    return height, width


def _start(start: Tensor, channels: int, size: Size | None, recipe: Recipe) -> Tensor:
    if recipe.parameters != "pixels":
        raise InputError('start is an image of pixels: ask for Recipe.named(..., parameters="pixels") with it')
    if start.ndim not in (3, 4) or start.shape[-3] != channels:
        wanted = f"({channels}, H, W), or one for each pattern (n, {channels}, H, W)"
        raise InputError(f"start is an image {wanted}, not {tuple(start.shape)}")
    if not start.numel() or not start.is_floating_point() or not bool(start.isfinite().all()):
        raise InputError(f"start is an image of finite floating point values, as preprocess gives, not {start.dtype}")
    if size is not None and tuple(start.shape[-2:]) != _size(size, recipe):
        raise InputError(f"start is {tuple(start.shape[-2:])}, which is not the size asked for, {size}")
    return (start if start.ndim == 4 else start[None]).detach()
