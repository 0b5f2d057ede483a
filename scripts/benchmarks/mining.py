"""The strongest activations over a dataset, from memory and from files, and heatmaps over a clip."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from timing import Run, finish
from torch import Tensor, nn

import torchviz_cnn as tvc
from benchmarks.settings import TINY, Options, Spec, has_demo
from benchmarks.tasks import BY_HAND, OURS, Case, Contender, Task
from torchviz_cnn.media.datasets.source import ImageSource
from torchviz_cnn.media.decoding import Decode
from torchviz_cnn.media.video import open_clip
from torchviz_cnn.runs.workers import usual_workers
from torchviz_cnn.topk.reading import read_batches

BATCH = 32
TRUNCATED, DECODING = "forward pass to the layer", "decoding alone"
LAYERS = {"squeezenet1_0": ["features.3", "features.7", "features.12"], TINY.name: ["features.4", "features.7"]}


class Ended(BaseException):
    """Raised at the last layer."""


@dataclass(frozen=True)
class Setting:
    """What a case is about."""

    model: nn.Module
    layers: list[str]
    images: Tensor
    device: str

    def count(self) -> float:
        """Times are by image."""
        return float(len(self.images))


MINING: Task[Setting] = Task()


def until(model: nn.Module, layer: str, x: Tensor) -> None:
    """A forward pass that ends at a layer."""

    def end(*_: object) -> None:
        raise Ended

    handle = model.get_submodule(layer).register_forward_hook(end)
    with contextlib.suppress(Ended), torch.no_grad():
        model(x)
    handle.remove()


@MINING.add(TRUNCATED, "floor", units=Setting.count)
def truncated(setting: Setting) -> Run:
    def run() -> None:
        for x in torch.split(setting.images, BATCH):
            until(setting.model, setting.layers[-1], x.to(setting.device, non_blocking=True))
        finish()

    return run


@MINING.add(OURS, "ours", units=Setting.count)
def ours(setting: Setting) -> Run:
    def run() -> Tensor:
        top = tvc.top_activations(setting.model, setting.images, setting.layers, batch_size=BATCH, workers=0)
        return top.values[setting.layers[-1]][:, : len(setting.images)]

    return run


@MINING.add(f"{OURS}, exact", "ours", units=Setting.count)
def exact(setting: Setting) -> Run:
    """With the candidates run once more, in double precision."""
    return lambda: tvc.top_activations(
        setting.model, setting.images, setting.layers, batch_size=BATCH, workers=0, exact=True
    )


@MINING.add(f"{OURS}, by relevance", "ours", units=Setting.count)
def by_relevance(setting: Setting) -> Run:
    """With the relevance of the same channels for the top class: the whole forward pass, and a backward pass."""
    return lambda: tvc.top_activations(
        setting.model, setting.images, setting.layers, batch_size=BATCH, workers=0, by="relevance"
    )


def greatest(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    return ours.flatten(), theirs.flatten()


@MINING.peer(BY_HAND, units=Setting.count, same=greatest)
def loop(setting: Setting) -> Run:
    """The whole forward pass with a hook on each layer, and the largest values in the end: no places, no statistics."""

    def run() -> Tensor:
        kept: dict[str, list[Tensor]] = {layer: [] for layer in setting.layers}
        handles = [
            setting.model.get_submodule(layer).register_forward_hook(
                lambda module, inputs, output, layer=layer: kept[layer].append(output.amax((2, 3)))
            )
            for layer in setting.layers
        ]
        with torch.no_grad():
            for x in torch.split(setting.images, BATCH):
                setting.model(x.to(setting.device))
        for handle in handles:
            handle.remove()
        last = torch.cat(kept[setting.layers[-1]])
        return last.topk(min(9, len(last)), 0).values.T

    return run


def cases(options: Options) -> Iterator[Case]:
    """Images in memory, and files."""
    (spec,) = options.specs("squeezenet1_0")
    count = options.sizes.mined
    yield Case("mining", f"{spec.name}, {count} images in memory", partial(in_memory, options, spec), "image", rounds=2)
    for text, small in (("network and decoding", False), ("a network that is next to nothing", True)):
        make = partial(from_files, options, spec, small)
        yield Case("mining", f"photos on disk, {text}", make, "image", rounds=2)


def in_memory(options: Options, spec: Spec, count: int | None = None, side: int | None = None) -> Iterator[Contender]:
    images = torch.randn(
        count or options.sizes.mined, 3, *[side or spec.side] * 2, generator=torch.Generator().manual_seed(0)
    )
    return MINING.contenders(Setting(options.network(spec), LAYERS[spec.name], images, options.device))


def from_files(options: Options, spec: Spec, small: bool) -> list[Contender]:
    """As many photos to decode; with `small`, next to nothing to compute."""
    folder = options.photos or generate(options.scratch / "photos", options.sizes.photos)
    side = 32 if small or spec is TINY else spec.side
    how = tvc.Preprocess((side, side), resize=side * 8 // 7)
    model, count = options.network(spec), len(ImageSource(folder))
    layers = [next(iter(tvc.layer_names(model, types=nn.Conv2d)))] if small else LAYERS[spec.name]
    workers = usual_workers() if options.workers is None else options.workers

    def read(decode: Decode) -> None:
        places = [range(at, min(at + BATCH, count)) for at in range(0, count, BATCH)]
        source, device = ImageSource(folder, how, decode), torch.device(options.device)
        for _ in read_batches(source, range(len(places)), places, workers, device):
            pass

    def top(decode: Decode) -> object:
        given: Any = {"preprocess": how, "batch_size": BATCH, "workers": workers, "decode": decode}
        return tvc.top_activations(model, folder, layers, **given)

    ways: list[Decode] = ["cpu", "cuda"] if torch.device(options.device).type == "cuda" else ["cpu"]
    name = {"cpu": "", "cuda": ", decoded on the GPU"}
    floors = [Contender(DECODING + name[way], "floor", partial(read, way), units=count) for way in ways]
    return [*floors, *(Contender(OURS + name[way], "ours", partial(top, way), units=count) for way in ways)]


def generate(folder: Path, count: int) -> Path:
    """JPEG files of 500 x 375 pixels with something to decode."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    for i in range(count):
        small = Image.fromarray(random.integers(0, 256, (25, 33, 3), dtype=np.uint8))
        small.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{i:05d}.jpg", quality=90)
    return folder


# --- clips ----------------------------------------------------------------------------------------------------------


def video_cases(options: Options) -> Iterator[Case]:
    """Heatmaps over a clip, beside reading and predicting its frames alone."""
    names = ["cats_and_dogs"] if options.quick or not has_demo() else ["efficientnet_lite0", "cats_and_dogs"]
    for name in names:
        yield Case("video", f"{name}, grad_cam", partial(of_clip, options, name), "frame", rounds=2)


def of_clip(options: Options, name: str) -> list[Contender]:
    net = tvc.load_model(name, device=options.device)
    clip = options.clip or film(options.scratch, options.sizes.frames)
    count, out = sum(1 for _ in open_clip(clip).frames()), options.scratch / "out.mp4"

    def predicted() -> None:
        frames = open_clip(clip).frames()
        while batch := [Image.fromarray(frame) for frame in itertools.islice(frames, 16)]:
            tvc.predict(net, batch)

    def heat(scale: Literal["clip", "frame"]) -> object:
        return tvc.cam_video(net, clip, out, scale=scale)

    return [
        Contender("read and predict", "floor", predicted, units=count),
        Contender(f"{OURS}, one scale", "ours", partial(heat, "clip"), units=count),
        Contender(f"{OURS}, each its scale", "ours", partial(heat, "frame"), units=count),
    ]


def film(folder: Path, count: int) -> Path:
    """A clip of 640 x 360 pixels, in which a square moves over noise."""
    import cv2

    path = folder / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 25, (640, 360))
    random = np.random.default_rng(0)
    background = cv2.resize(random.integers(0, 256, (18, 32, 3), dtype=np.uint8), (640, 360))
    for i in range(count):
        frame = background.copy()
        frame[100:260, 8 * i % 480 : 8 * i % 480 + 160] = (40, 90, 220)
        writer.write(frame)
    writer.release()
    return path
