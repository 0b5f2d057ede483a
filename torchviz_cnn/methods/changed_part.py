"""Run a network on pictures that differ from a clean one in a patch, computing only the part of each map that changes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchviz_cnn.errors import TorchvizError
from torchviz_cnn.hooks import HookManager
from torchviz_cnn.layers import receptive_fields
from torchviz_cnn.methods.scores import class_outputs, decided_by
from torchviz_cnn.names import named_layers
from torchviz_cnn.receptive_field import ReceptiveField

Job = tuple[int, int, int]
"""An image of the batch, and the top left corner of the patch on it."""

_WORTH = 0.8  # a window larger than this share of its map saves less than its copies cost
_ENOUGH = 64  # patches, over all images, that make it worth to look for places to cut


@dataclass(frozen=True)
class _Axis:
    """Height or width of one map on the way: how long it is, what its units see, and the window that is computed."""

    length: int
    size: int
    stride: int
    start: int
    window: int = 0
    step: int = 1
    """Units of this map per unit of the next."""

    def changed(self, place: int, patch: int) -> tuple[int, int]:
        """The first and one past the last unit that sees a pixel of [place, place + patch)."""
        low = math.floor((place - self.start - self.size) / self.stride) + 1
        return max(low, 0), min(math.ceil((place + patch - self.start) / self.stride), self.length)

    def needs(self, following: _Axis, place: int, patch: int) -> tuple[int, int]:
        """What part of this map decides the changed part of the next."""
        low, high = following.changed(place, patch)
        offset = (following.start - self.start) // self.stride
        reach = (following.size - self.size) // self.stride + 1
        return max(offset + low * self.step, 0), min(offset + (high - 1) * self.step + reach, self.length)

    def begin(self, following: _Axis | None, place: int, patch: int) -> int:
        """Where the window starts: at a multiple of the step, so that its units fall on those of the whole map."""
        if following is None:
            return 0
        low = self.needs(following, place, patch)[0] // self.step * self.step
        return min(low, self.length - self.window)


class ChangedPart:
    """A lent network and a batch of clean pictures, to be run with a patch of one colour at some place of each.

    Between the input and some layer, a patch changes only what its receptive fields cover: that window of each map is
    computed, set into the clean map of the next layer where the network can be cut, and so on until the windows
    are as large as the maps. The layers are found and the result is checked on this very network and input: where it
    does not come out right (maps that all depend on the whole picture), everything is computed.
    """

    def __init__(
        self, model: nn.Module, x: Tensor, jobs: Sequence[Job], patch: tuple[int, int], colour: Tensor, at_once: int
    ) -> None:
        self._model, self._x, self._patch, self._colour = model, x, patch, colour
        self._levels: list[tuple[str, tuple[_Axis, _Axis]]] = [
            ("", _axes(x, ReceptiveField((1, 1), (1, 1), (0, 0), False)))
        ]
        self._clean: dict[str, Tensor] = {"": x}
        places = list(dict.fromkeys(job[1:] for job in jobs))
        found = self._layers() if len(jobs) >= _ENOUGH else []
        self.logits = torch.cat([self._first(x[i : i + at_once], found) for i in range(0, len(x), at_once)])
        for name, field in found:
            if not self._append(name, _axes(self._clean[name], field), places):
                break
        self._clean = {name: self._clean[name] for name, _ in self._levels}
        if len(self._levels) > 1 and not self._right([jobs[0], jobs[len(jobs) // 2 + len(places) // 3]]):
            del self._levels[1:]

    @property
    def layers(self) -> list[str]:
        """The layers up to which only windows are computed; none where everything is."""
        return [name for name, _ in self._levels[1:]]

    def run(self, jobs: Sequence[Job]) -> Tensor:
        """Class outputs (n, classes) of the pictures with their patches."""
        level = 0

        def continue_in_window(name: str, output: Any) -> Tensor:
            nonlocal level
            level += 1
            return self._paste(level, jobs, output)

        with HookManager(self._model) as hooks:
            hooks.on_forward(self.layers, continue_in_window)
            return class_outputs(hooks.run(self._paste(0, jobs, None), stop_early=False), len(jobs))

    def _paste(self, level: int, jobs: Sequence[Job], computed: Tensor | None) -> Tensor:
        """The window of this level's map for each job: the clean map's, with what was computed set in."""
        name, axes = self._levels[level]
        following = self._levels[level + 1][1] if level + 1 < len(self._levels) else (None, None)
        clean, last = self._clean[name], self._levels[level - 1][1]
        sides = [a.length if f is None else a.window for a, f in zip(axes, following, strict=True)]
        layout = (
            torch.channels_last if clean.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        )
        windows = torch.empty((len(jobs), clean.shape[1], *sides), dtype=clean.dtype, device=clean.device, memory_format=layout)  # fmt: skip
        for here, images, corner in _together(jobs):
            source, target, whole = [], [], []
            for d in (0, 1):
                begin = axes[d].begin(following[d], corner[d], self._patch[d])
                low, high = axes[d].changed(corner[d], self._patch[d])
                low, high = max(low, begin), min(high, begin + sides[d])
                whole.append(slice(begin, begin + sides[d]))
                target.append(slice(low - begin, max(high, low) - begin))
                if computed is not None:
                    origin = last[d].begin(axes[d], corner[d], self._patch[d]) // last[d].step
                    source.append(slice(low - origin, max(high, low) - origin))
            windows[here] = clean[images, :, whole[0], whole[1]]
            new = self._colour if computed is None else computed[here, :, source[0], source[1]]
            windows[here, :, target[0], target[1]] = new
        return windows

    def _append(self, name: str, axes: tuple[_Axis, _Axis], places: Sequence[tuple[int, ...]]) -> bool:
        """Add a level, and the window of the one before it; False, and nothing, where that would not pay."""
        windowed = []
        for d, (here, following) in enumerate(zip(self._levels[-1][1], axes, strict=True)):
            step = following.stride // here.stride
            fits = following.stride % here.stride == 0 and step > 0 and (following.size - here.size) % here.stride == 0
            if not fits or (following.start - here.start) % here.stride:
                return False
            here = _Axis(here.length, here.size, here.stride, here.start, 0, step)
            needs = [here.needs(following, place[d], self._patch[d]) for place in places]
            window = max(high - low // step * step for low, high in needs)
            window += (here.length - window) % step
            windowed.append(_Axis(here.length, here.size, here.stride, here.start, window, step))
        if any(a.window >= a.length for a in windowed) or math.prod(a.window / a.length for a in windowed) > _WORTH:
            return False
        self._levels[-1] = (self._levels[-1][0], (windowed[0], windowed[1]))
        self._levels.append((name, axes))
        return True

    def _layers(self) -> list[tuple[str, ReceptiveField]]:
        """Layers in execution order that all information passes through, the last of each kind of receptive field."""
        modules = named_layers(self._model)
        nodes: dict[str, Any] = {}
        calls: Counter[str] = Counter()

        def follow(name: str, output: Any) -> None:
            bare = name.partition("#")[0]
            calls[bare] += 1
            if isinstance(output, Tensor) and output.ndim == 4:
                nodes[bare] = output.grad_fn

        leaf = self._x[:1].clone().requires_grad_()
        try:
            with torch.enable_grad():
                with HookManager(self._model) as hooks:
                    hooks.on_forward([f"{name}#*" for name in modules], follow)
                    end = class_outputs(hooks.run(leaf.clone(), stop_early=False), 1).grad_fn
                passed = [name for name, node in nodes.items() if calls[name] == 1 and decided_by(end, node)]
                fields = self._fields(passed)
        except TorchvizError:
            return []
        kept: dict[tuple[Any, ...], tuple[str, ReceptiveField]] = {}
        for name in passed:
            field = fields.get(name)
            if field is not None and not field.whole and all(stride == int(stride) >= 1 for stride in field.stride):
                kept[field.size, field.stride] = (name, field)
        return list(kept.values())

    def _fields(self, names: list[str]) -> dict[str, ReceptiveField | None]:
        """What units see does not depend on the size of the picture: half of it takes a quarter of the time."""
        height, width = self._x.shape[2:]
        try:
            return receptive_fields(self._model, self._x[:1, :, : (height + 1) // 2, : (width + 1) // 2], names)
        except TorchvizError:
            return receptive_fields(self._model, self._x[:1], names)

    def _first(self, x: Tensor, found: list[tuple[str, ReceptiveField]]) -> Tensor:
        """Run clean pictures, and keep the maps of the layers that were found."""

        def keep(name: str, output: Tensor) -> None:
            parts = [self._clean[name]] if name in self._clean else []
            self._clean[name] = torch.cat([*parts, output])  # copies, as what follows may write into it

        with HookManager(self._model) as hooks:
            hooks.on_forward([name for name, _ in found], keep)
            return class_outputs(hooks.run(x.clone(), stop_early=False), len(x))

    def _right(self, jobs: Sequence[Job]) -> bool:
        try:
            part = self.run(jobs)
        except (RuntimeError, ValueError, IndexError, TypeError):
            return False
        levels, self._levels = self._levels, self._levels[:1]
        whole = self.run(jobs)
        self._levels = levels
        change = (whole - self.logits[[image for image, _, _ in jobs]]).abs().max()
        exact = self._x.dtype in (torch.float32, torch.float64)
        tolerance = 1e-2 * change + (1e-6 if exact else 2e-2) * whole.abs().max()
        return bool((part - whole).abs().max() <= tolerance)


def _together(jobs: Sequence[Job]) -> Iterator[tuple[slice, slice, tuple[int, int]]]:
    """Jobs that follow each other with the same corner on images that follow each other: which jobs, and which images."""
    start = 0
    for end in range(1, len(jobs) + 1):
        image, *corner = jobs[start]
        if end == len(jobs) or jobs[end] != (image + end - start, *corner):
            yield slice(start, end), slice(image, image + end - start), (corner[0], corner[1])
            start = end


def _axes(maps: Tensor, field: ReceptiveField) -> tuple[_Axis, _Axis]:
    def along(d: int) -> _Axis:
        return _Axis(maps.shape[d + 2], field.size[d], int(field.stride[d]), field.start[d])

    return along(0), along(1)
