"""The loop of gradient ascent: one batch of images, from their noise to their patterns."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchviz_cnn.ascent.objectives import Objective, Seen
from torchviz_cnn.ascent.parameters import ImageParameters
from torchviz_cnn.ascent.recipes import Normalize, Recipe
from torchviz_cnn.ascent.transformations import drawn, moved
from torchviz_cnn.core.errors import InputError, ModelError
from torchviz_cnn.hooks.manager import HookManager

ATTEMPTS = 3
"""How many starts an image gets before it is said to be dead."""


@dataclass(frozen=True, eq=False)
class Climb:
    """How images of one run climb, whatever batch they are in: each has its own random numbers."""

    recipe: Recipe
    parameters: ImageParameters
    shape: tuple[int, int, int]
    seed: int
    about: str
    """What the images belong to, a layer: part of what their random numbers are drawn from."""
    device: torch.device
    dtype: torch.dtype
    """That of the model. The image itself is kept in float32, or in float64 for a model of float64."""
    low_precision: bool
    """Whether the network runs in bfloat16 where that is safe (autocast)."""
    layout: torch.memory_format = torch.channels_last
    compiled: bool = False

    def __call__(
        self, model: nn.Module, objective: Objective, numbers: Sequence[int], rows: Tensor, start: Tensor | None,
        check: Callable[[], None],
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Images (B, C, H, W), the objective at each step (B, steps + 1), and which are dead (B,).

        `numbers` names the images, channels for instance: their random numbers depend on that. `rows` are their places
        among the images that the objective is for. `start`: images (B, C, H, W) to start from instead of noise. `check`
        is called at every step.
        """
        recipe, state_type = self.recipe, torch.float64 if self.dtype == torch.float64 else torch.float32
        rows = rows.to(self.device)
        noise = [torch.Generator().manual_seed(seed_of(self.seed, self.about, n)) for n in numbers]
        movements = self._movements(numbers)
        scores: list[Tensor] = []
        with _watching(model, objective, self.compiled) as look:

            def score(parameters: Tensor, step: int) -> Tensor:
                check()
                images = self.parameters.images(parameters)
                turned = images if movements is None else moved(images, movements[:, step])
                turned = turned.to(self.dtype).contiguous(memory_format=self.layout)
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.low_precision):
                    activations, output = look(turned)
                with torch.autocast(self.device.type, enabled=False):
                    return objective.value(Seen(images, activations, output, rows))

            def climbed(parameters: Tensor, step: int) -> tuple[Tensor, Tensor]:
                leaf = parameters.detach().requires_grad_()
                value = score(leaf, step)
                return _gradient(value, leaf, objective), value.detach()

            def begin(attempt: int) -> Tensor:
                if start is not None:
                    return start.to(self.device, state_type)
                first = torch.stack([self.parameters.start(generator, attempt) for generator in noise])
                return first.to(self.device, state_type)

            state = begin(0)
            gradient, value = climbed(state, 0)
            dead = _dead(gradient)
            for attempt in range(1, ATTEMPTS if start is None else 1):
                if not bool(dead.any()):
                    break
                again = begin(attempt)
                state = torch.where(dead.view(-1, *[1] * (state.ndim - 1)), again, state)
                gradient, value = climbed(state, 0)
                dead = _dead(gradient)
            optimizer = _Adam(recipe.step) if recipe.optimizer == "adam" else None
            for step in range(recipe.steps):
                if step:
                    gradient, value = climbed(state, step)
                scores.append(value)
                gradient = normalized(gradient, recipe.normalize)
                state = state + (recipe.step * gradient if optimizer is None else optimizer.step(gradient))
            with torch.no_grad():
                scores.append(score(state, recipe.steps))
                values = self.parameters.images(state).float()
        found = torch.stack(scores, 1).float()
        if not bool(torch.isfinite(values).all()) or not bool(torch.isfinite(found).all()):
            raise ModelError(
                f"{type(model).__name__} gives NaN or infinity on the way up {objective.text}: are its weights finite?"
            )
        return values, found, dead

    def _movements(self, numbers: Sequence[int]) -> Tensor | None:
        if not self.recipe.transformations:
            return None
        steps, size = self.recipe.steps + 1, self.shape[1:]
        seeds = [seed_of(self.seed, f"movements of {self.about}", n) for n in numbers]
        each = [drawn(self.recipe.transformations, torch.Generator().manual_seed(seed), steps, size) for seed in seeds]
        return torch.stack(each).to(self.device)


def seed_of(seed: int, about: str, number: int) -> int:
    """The seed of one image's own random numbers: of the run's seed, what the image belongs to, and its number there."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{about}/{number}".encode()).digest()[:7], "big")


def normalized(gradient: Tensor, how: Normalize) -> Tensor:
    """Gradients (B, ...) each divided by its own size; one of zeros stays so.

    `l2`: the root of the sum of squares. `rms`: the root of their mean, + 1e-5. `pixel`: each pixel's by the length of its
    vector of channels, or 1e-7 where that is shorter, as Keras' `normalize` does.
    """
    if how == "none":
        return gradient
    if how == "pixel":
        return gradient / gradient.square().sum(1, keepdim=True).sqrt().clamp_min(1e-7)
    # Summed row by row first: one long sum is shared out among the cores, which then decide its last bits.
    squares = gradient.square().sum(-1).flatten(1)
    each = (-1, *[1] * (gradient.ndim - 1))
    if how == "rms":
        return gradient / ((squares.sum(1) / gradient[0].numel()).sqrt() + 1e-5).view(each)
    length = squares.sum(1).sqrt().clamp_min(torch.finfo(gradient.dtype).tiny)
    return gradient / length.view(each)


class _Adam:
    """Adam (Kingma & Ba, arXiv 1412.6980), for values that are no module's parameters."""

    def __init__(self, rate: float) -> None:
        self.rate, self.count = rate, 0
        self.mean: Tensor | float = 0.0
        self.square: Tensor | float = 0.0

    def step(self, gradient: Tensor) -> Tensor:
        self.count += 1
        self.mean = 0.9 * self.mean + 0.1 * gradient
        self.square = 0.999 * self.square + 0.001 * gradient.square()
        mean, square = self.mean / (1 - 0.9**self.count), self.square / (1 - 0.999**self.count)
        return self.rate * mean / (square.sqrt() + 1e-8)


def _gradient(value: Tensor, leaf: Tensor, objective: Objective) -> Tensor:
    if not value.requires_grad:
        raise ModelError(
            f"no gradient comes back to the image from {objective.text}: the model detaches it, or runs a part of itself "
            "under torch.no_grad()"
        )
    (gradient,) = torch.autograd.grad(value.sum(), leaf, allow_unused=True)
    if gradient is None:
        raise ModelError(f"no gradient comes back to the image from {objective.text}: it does not depend on it")
    return gradient


def _dead(gradient: Tensor) -> Tensor:
    return gradient.detach().flatten(1).abs().amax(1) == 0


Look = Callable[[Tensor], tuple[dict[str, Tensor], Any]]


@contextlib.contextmanager
def _watching(model: nn.Module, objective: Objective, compiled: bool) -> Iterator[Look]:
    """What runs the model as far as the objective needs: it gives the activations, and the output where it is needed."""
    layers, to_the_end = objective.layers, objective.needs_output
    if not layers and not to_the_end:
        yield lambda x: ({}, None)
        return
    if compiled:
        yield _compiled(model, objective)
        return
    kept: dict[str, Tensor] = {}
    overwritten = to_the_end or len(layers) > 1

    def keep(name: str, output: Any) -> Any:
        kept[name] = output
        # What follows may overwrite it in place.
        return output.clone() if overwritten and isinstance(output, Tensor) else None

    with HookManager(model) as hooks:
        hooks.on_forward(layers, keep)

        def look(x: Tensor) -> tuple[dict[str, Tensor], Any]:
            output = hooks.run(x.clone() if x.is_leaf else x, stop_early=not to_the_end)
            hooks.require_reached()
            return kept, output

        yield look


def _compiled(model: nn.Module, objective: Objective) -> Look:
    from torchvision.models.feature_extraction import create_feature_extractor

    if objective.needs_output or any("#" in name for name in objective.layers):
        raise InputError(f"only layers by name can be compiled, not {objective.text}")
    try:
        part = create_feature_extractor(model, {name: name for name in objective.layers})
    except Exception as error:
        raise InputError(f"{type(model).__name__} cannot be traced for compile=True: {error}") from error
    run = torch.compile(part)  # type: ignore[no-untyped-call]
    return lambda x: (run(x), None)  # type: ignore[no-untyped-call]
