"""Class heatmaps over clips: one class in all frames, explained in batches, and drawn on one scale."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from PIL import Image

from torchviz_cnn.attribution.methods import methods_of
from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import (
    EmptyMapWarning,
    ImageError,
    InputError,
    SkippedWarning,
    TargetError,
    counted,
    kind_of,
)
from torchviz_cnn.core.names import LayerName
from torchviz_cnn.core.progress import progress_bar
from torchviz_cnn.core.warn import warn
from torchviz_cnn.hooks.inputs import Output
from torchviz_cnn.hooks.network import Network
from torchviz_cnn.media import render
from torchviz_cnn.media.notebook import pictures
from torchviz_cnn.media.origin import input_of
from torchviz_cnn.media.render import Array
from torchviz_cnn.media.video import Clip, Source, codec_of, open_clip, written
from torchviz_cnn.runs import files
from torchviz_cnn.scores.outputs import probabilities
from torchviz_cnn.scores.targets import Score, predict

Scale = Literal["clip", "frame"]
"""What the strongest colour stands for: the strongest value in all frames, or in each."""
LOOKED_AT = 8
"""In how many frames the likeliest class is looked for."""
_SHOWN, _IN_NOTEBOOKS = 8, 400
"""How many frames a notebook shows, and among how many of a clip's first they are."""
_WAITING = 16
"""How many pictures may wait for the thread that writes them."""
T = TypeVar("T")


@dataclass(frozen=True)
class CamVideo:
    """A clip of class heatmaps over its frames, and what they explain."""

    path: Path
    frames: int
    """How many were explained."""
    size: tuple[int, int]
    """(width, height) of the source in pixels."""
    fps: float
    """Frames per second of the clip."""
    target: int
    """The class."""
    category: str
    """Its name."""
    probability: float
    """Its mean probability in the frames."""
    layer: str
    method: str
    seconds: float
    """How long it took."""

    def _repr_png_(self) -> bytes | None:
        return pictures.png(self._strip)

    def _strip(self) -> Image.Image:
        """A few frames of the clip: of a long one, of its beginning, as frames are read one after the other."""
        reach = min(self.frames, _IN_NOTEBOOKS)
        places = sorted({round(place) for place in np.linspace(0, reach - 1, min(reach, _SHOWN))})
        frames = open_clip(self.path).frames(set(places))
        tiles = [(f"{n / self.fps:.2f} s", Image.fromarray(frame)) for n, frame in zip(places, frames, strict=False)]
        words = f"{self.method}, {self.layer}: {self.category}, mean probability {self.probability:.3f}"
        return pictures.titled_grid(tiles, f"{self.path.name}: {self.frames} frames; {words}")


def cam_video(
    model: Network,
    source: Source,
    out: str | os.PathLike[str],
    *,
    method: str = "grad_cam",
    layer: LayerName | None = None,
    target: int | str | None = None,
    score: Score = "logit",
    output: Output = None,
    scale: Scale = "clip",
    batch_size: int = 16,
    fps: float | None = None,
    seconds: float | None = None,
    alpha: float = 0.4,
    blend: render.Blend = "add",
    colormap: str = "jet",
    interpolation: render.Interpolation = "bilinear",
    progress: bool = False,
) -> CamVideo:
    """Draw the heatmap of one class over each frame of a clip.

    Frames are read, explained and written in batches, so a long clip takes no more memory than a short one. For one
    scale over the clip its frames are read twice, and the maps are kept in a temporary file in between. The new clip
    appears when it is whole. It has no sound, and of an odd side one pixel less, as codecs work on pairs of pixels.

    Args:
        model: a Network.
        source: a file that OpenCV reads, a folder of photos (in natural order: `frame_9` before `frame_10`), a list of
            photos, or the number of a camera (0 for the first), which is recorded until Ctrl-C.
        out: the clip to write: .mp4, .m4v, .mov, .mkv, .avi, or .webm, which browsers play.
        method: `grad_cam`, or another one that draws a heatmap of a layer: see docs/methods.md.
        layer: as for `grad_cam`.
        target: the class, by index or name; by default that of the highest mean probability in 8 frames spread over
            the clip, or in the first 8 of a camera.
        score, output: as for `grad_cam`.
        scale: the strongest colour is the strongest value in the `clip`, or in each `frame`. Of a camera, the clip's is
            the strongest so far.
        batch_size: frames at once (16); of a camera always 1.
        fps: frames per second of photos (25), or instead of what the file or camera says.
        seconds: how much of the clip is explained; by default all.
        alpha, blend, colormap, interpolation: as for `Heatmap.overlay`.
        progress: whether to show a bar with the frames per second.

    Returns:
        Where the clip is, and what it explains.

    Raises:
        InputError: for a plain module, an unknown option, or a clip that would be written over its source.
        ImageError: for what is not a clip, has no frames, or changes its size.
        OutputError: for a clip that cannot be written.
        LayerError, TargetError, ModelError: as the method.

    Warns:
        EmptyMapWarning: with the number of frames that hold no evidence for the class.
        SkippedWarning: where a file ends before all of its frames.

    >>> from torch import nn
    >>> from torchviz_cnn.media.images import Preprocess
    >>> model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5))
    >>> frames = [np.full((24, 32, 3), 50 * i, np.uint8) for i in range(3)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     cam_video(Network(model, Preprocess((16, 16))), frames, f"{folder}/clip.mp4", target=2).frames
    3
    """
    begun, path = time.monotonic(), checks.path("out", out)
    if not isinstance(model, Network):
        raise InputError(f"a clip needs a Network, which says how its frames are prepared, not {kind_of(model)}")
    drawing: dict[str, Any] = {
        "alpha": alpha,
        "blend": blend,
        "colormap_name": colormap,
        "interpolation": interpolation,
    }
    draw: Callable[..., None] = partial(render.draw_on, **drawing)
    draw(np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1)), (0, 0, 1, 1))  # an unknown option is told before the work
    checks.one_of("scale", scale, get_args(Scale))
    checks.whole_number("batch_size", batch_size)
    explain = _explainer(method, layer, score, output)
    if callable(target):
        raise TargetError(
            "one class is explained in all frames of a clip, and the target is a function; photos take it"
        )
    codec_of(path)
    files.require_place(path)
    clip = open_clip(source, fps)
    if clip.is_file and path.exists() and path.samefile(clip.name):
        raise InputError(f"{path} is the clip itself: write to another file")
    limit = None if seconds is None else max(round(checks.number("seconds", seconds, least=0) * clip.fps), 1)
    batch_size = 1 if clip.is_camera else batch_size
    index = _most_likely(model, clip, batch_size, output) if target is None else model.class_index(target)
    run = _Run(model, clip, explain, index, batch_size, limit, progress)
    with files.whole(path, f".part{path.suffix}") as temporary:
        pictures = run.drawn_on_one_scale(draw) if scale == "clip" and not clip.is_camera else run.drawn(draw, scale)
        _write(temporary, path, clip, pictures, limit)
    run.warn_of_gaps()
    return run.result(path, time.monotonic() - begun)


def _explainer(method: str, layer: LayerName | None, score: Score, output: Output) -> Callable[..., Any]:
    """The method by its name, with those options that it takes."""
    known = methods_of("cam")
    chosen = known[checks.one_of("method", method, known)]
    if score != "logit" and "score" not in chosen.options:
        raise InputError(f"{method} explains the logit alone: leave score out")
    options: dict[str, Any] = {"layer": layer, "score": score, "relu": False}  # negative values are not drawn
    taken = {name: value for name, value in options.items() if name in chosen.options}
    return partial(chosen.explain, output=output, **taken)


def _most_likely(model: Network, clip: Clip, batch_size: int, output: Output) -> int:
    """The class of the highest mean probability in frames spread over a clip."""
    parts = _batches((Image.fromarray(frame) for frame in clip.spread(LOOKED_AT)), batch_size)
    return int(torch.cat([predict(model, part, output=output) for part in parts]).mean(0).argmax())


@dataclass
class _Run:
    """A clip on its way through a network, and what is known of its frames so far."""

    model: Network
    clip: Clip
    explain: Callable[..., Any]
    target: int
    batch_size: int
    limit: int | None
    progress: bool
    count: int = 0
    empty: int = 0
    """How many frames have no evidence for the class."""
    likely: float = 0.0
    """The sum of the probabilities of the class."""
    peak: float = 0.0
    """The strongest value of all maps."""
    last: Any = None
    """The heatmaps of the last batch."""
    size: tuple[int, int] = (0, 0)
    box: render.Box = (0.0, 0.0, 0.0, 0.0)
    """What the maps cover of a frame."""

    def explained(self) -> Iterator[tuple[list[Array], Array]]:
        """Frames in batches, with their maps (n, h, w), which are at least 0."""
        layer: dict[str, str] = {}
        category = self.model.category(self.target)
        with self._bar(f"explaining {category}") as bar:
            for frames, inputs in _ahead(self._inputs()):
                self.last = heat = self.explain(self.model, torch.stack(inputs), target=self.target, **layer)
                layer["layer"] = heat.layer  # the default one is looked for once
                maps = heat.values.float().clamp(min=0).cpu().numpy()
                if not self.count:
                    self.size = frames[0].shape[1::-1]
                    self.box = heat.origin.box(Image.fromarray(frames[0]), heat.input_size)
                self.count += len(frames)
                self.empty += int((maps.max((1, 2)) == 0).sum())
                self.likely += float(probabilities(heat.logits, heat.activation)[:, self.target].sum())
                self.peak = max(self.peak, float(maps.max()))
                yield frames, maps
                bar.update(len(frames))

    def drawn(self, draw: Callable[..., None], scale: Scale) -> Iterator[Array]:
        """Frames with their maps, each on its own scale, or on that of the frames so far."""
        for frames, maps in self.explained():
            for frame, values in zip(frames, maps, strict=True):
                yield self._picture(draw, frame, values, self.peak if scale == "clip" else float(values.max()))

    def drawn_on_one_scale(self, draw: Callable[..., None]) -> Iterator[Array]:
        """The same, on the scale of the strongest value in all frames, which are read once more."""
        with tempfile.TemporaryFile() as store:
            shape: tuple[int, ...] = ()
            for _, maps in self.explained():
                store.write(maps.tobytes())
                shape = maps.shape[1:]
            store.seek(0)
            with self._bar("drawing") as bar:
                for frames in _ahead(_batches(self._frames(), self.batch_size)):
                    for frame in frames:
                        values = np.frombuffer(store.read(4 * math.prod(shape)), np.float32)
                        if not values.size:
                            raise ImageError(f"{self.clip.name} has more frames when it is read again")
                        yield self._picture(draw, frame, values.reshape(shape), self.peak)
                    bar.update(len(frames))

    def result(self, path: Path, seconds: float) -> CamVideo:
        category, share = self.model.category(self.target), self.likely / self.count
        heat, fps = self.last, self.clip.fps
        return CamVideo(
            path, self.count, self.size, fps, self.target, category, share, heat.layer, heat.method, seconds
        )

    def warn_of_gaps(self) -> None:
        """Say where a file ends before its end, and how many frames have no evidence."""
        if self.limit is None and self.clip.is_short(self.count):
            of = f"{self.count} of {counted(self.clip.count or 0, 'frame')}"
            warn(f"{self.clip.name} ends after {of}: the file is truncated or damaged", SkippedWarning)
        if self.empty:
            of = f"{self.empty} of {counted(self.count, 'frame')}: their maps are all zeros"
            warn(f"no positive evidence for {self.model.category(self.target)!r} in {of}", EmptyMapWarning)

    def _picture(self, draw: Callable[..., None], frame: Array, values: Array, peak: float) -> Array:
        picture = np.array(frame)
        draw(picture, values / (peak or 1), self.box)
        return picture

    def _inputs(self) -> Iterator[tuple[list[Array], list[torch.Tensor]]]:
        for frames in _batches(self._frames(), self.batch_size):
            yield frames, [input_of(Image.fromarray(frame), self.model.preprocess) for frame in frames]

    def _frames(self) -> Iterator[Array]:
        return itertools.islice(self.clip.frames(), None if self.clip.is_camera else self.limit)

    def _bar(self, words: str) -> Any:
        total = min(filter(None, (self.clip.count, self.limit)), default=None)
        return progress_bar(self.progress, total=total, desc=words, unit=" frames")


def _write(temporary: Path, path: Path, clip: Clip, pictures: Iterator[Array], limit: int | None) -> None:
    """Write pictures as a clip; of a camera in real time, up to Ctrl-C, which keeps what there is.

    A camera's pictures come as fast as they are explained: each is written as often as time has passed.
    """
    first, begun, count = next(pictures), time.monotonic(), 0
    with written(temporary, path, clip.fps, first.shape[1], first.shape[0]) as encode, _behind(encode) as write:
        try:
            for picture in itertools.chain([first], pictures):
                due = int((time.monotonic() - begun) * clip.fps) + 1 if clip.is_camera else count + 1
                for _ in range(due - count):
                    write(picture)
                count = max(count, due)
                if limit is not None and count >= limit:
                    break
        except KeyboardInterrupt:
            if not clip.is_camera:
                raise


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """The items, each of which is made in a thread while the one before is used."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


@contextlib.contextmanager
def _behind(use: Callable[[T], None]) -> Iterator[Callable[[T], None]]:
    """What is given goes to `use` one by one, in a thread, while more is made; at the end all of it is done."""
    waiting: deque[Future[None]] = deque()

    def give(item: T) -> None:
        if len(waiting) == _WAITING:
            waiting.popleft().result()
        waiting.append(thread.submit(use, item))

    with ThreadPoolExecutor(1) as thread:
        yield give
        for one in waiting:
            one.result()


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch
