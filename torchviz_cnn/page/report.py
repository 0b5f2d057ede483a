"""`report`: one offline page that shows a network, its photos and its units."""

from __future__ import annotations

import html
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from operator import index
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from torchviz_cnn.core.errors import ImageError, InputError, LayerError, ModelError, OutputError
from torchviz_cnn.core.names import LayerPattern, named_layers, resolve, unwrap
from torchviz_cnn.hooks.network import Network
from torchviz_cnn.layers.defaults import POOLINGS
from torchviz_cnn.layers.describe import Description, describe
from torchviz_cnn.media.images import read_image, to_rgb
from torchviz_cnn.page.collect import LayerMaps, measure
from torchviz_cnn.page.content import (
    METHODS,
    PATTERN_SIDE,
    Photo,
    class_names,
    layer_content,
    palettes,
    photo_contents,
    strongest_channels,
    table,
    top_content,
)
from torchviz_cnn.page.encode import Blocks, within
from torchviz_cnn.page.patterns import PatternPictures, from_atlas, make_patterns
from torchviz_cnn.page.provenance import how_it_was_made
from torchviz_cnn.page.render import render_page
from torchviz_cnn.page.top import ZEROS, Strongest, add_projections, patches_of, shared_layers, top_of
from torchviz_cnn.runs import files
from torchviz_cnn.runs.folder import model_checksum
from torchviz_cnn.topk.result import TopActivations

__all__ = ["Report", "report"]

Source = str | os.PathLike[str] | Image.Image
_INLINE_BYTES = 30_000_000


@dataclass(frozen=True)
class Report(os.PathLike[str]):
    """A page that was written: can be used as its path, and shows itself in notebooks."""

    path: Path
    photos: int
    layers: tuple[str, ...]
    patterns: int
    """Of how many channels the page has a filter pattern."""

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def _repr_html_(self) -> str:
        if self.path.stat().st_size > _INLINE_BYTES:
            return f"<p>A large page, to be opened by itself: <code>{html.escape(str(self.path))}</code></p>"
        page = html.escape(self.path.read_text(encoding="utf-8"))
        look = "width:100%;height:85vh;min-height:480px;border:1px solid #8884;border-radius:8px"
        return f'<iframe title="What the network sees" sandbox="allow-scripts" style="{look}" srcdoc="{page}"></iframe>'


def report(
    net: Network,
    images: Source | Sequence[Source] | Mapping[str, Source],
    out: str | os.PathLike[str],
    *,
    layers: LayerPattern | Sequence[LayerPattern] | None = None,
    channels: int | Sequence[int] = 32,
    classes: int = 3,
    top: TopActivations | str | os.PathLike[str] | None = None,
    atlas: str | os.PathLike[str] | None = None,
    budget: float | None = 60.0,
    seed: int = 0,
    batch_size: int = 4,
    command: str | None = None,
    progress: bool = False,
) -> Report:
    """One self-contained page: what a network answers for photos, why, and what each of its channels looks for.

    `net`: from `load_model`, or your own as `Network(model, preprocess, categories, name, weights)`. `images`: photos
    as paths or PIL images, or a mapping from what each is called; none at all gives a page of the network alone.
    `out`: the page's path (`.html`), or a folder, where it is `index.html`. Nothing it shows comes from anywhere else.

    `layers`: as in `capture`, by default all convolution and pooling layers. `channels`: how many of each layer are
    shown, those that are strongest on the photos; or which, where a layer without any of them is left out. `classes`: how many of each photo's likeliest classes are explained.
    `top`: what `top_activations` found, or a folder of it: the strongest patches of each channel shown. `atlas`: a folder
    of filter patterns; without one, patterns are made of as many of the channels shown as there is time for in `budget`
    seconds from the start (None: all; 0: none), the strongest channels first.

    A batch of photos runs forward once: activations, the heatmaps of all layers and classes, and saliency under all three
    ReLU rules come from that one graph. Every unit has an address: `index.html#features.12/34`. The result can be
    used as the page's path, and displays it in notebooks.

    Raises InputError, ImageError, LayerError and ModelError for what cannot be shown, OutputError where the page cannot be written.

    >>> import tempfile
    >>> from torchviz_cnn import Preprocess
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    >>> net = Network(model, Preprocess((16, 16), resize=16), ("day", "night"), "tiny", "random")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page = report(net, Image.new("RGB", (20, 16), "navy"), folder, budget=0)
    ...     page.path.name, page.layers
    ('index.html', ('0', '1'))
    """
    begun = time.monotonic()
    _check(net, classes=classes, batch_size=batch_size)
    channels = _asked(channels)
    if budget is not None and (not isinstance(budget, (int, float)) or not budget >= 0):
        raise InputError(f"a budget is a number of seconds, at least 0, not {budget!r}")
    path = _writable(out)
    shown = _photos(images)
    with _stage("network", 1, progress) as done:
        description, trouble = _described(net)
        checksum = model_checksum(unwrap(net.model))
        done(1)
    with _stage("photos", len(shown), progress) as done:
        measured = measure(net.model, _batches(net, shown, batch_size), layers, classes, done, explain=bool(shown))
        assert measured is not None  # there is at least one batch

    blocks = Blocks()
    found = photo_contents(net, shown, measured, blocks)
    known = {} if description is None else {info.name: info for info in description.layers}
    modules = named_layers(net.model)
    chosen = _chosen(measured.layers, channels, bool(shown))
    units = []
    with _stage("layers", len(chosen), progress) as done:
        for name in chosen:
            of = measured.layers[name]
            kind = type(modules[resolve(net.model, modules, name).name]).__name__
            units.append(layer_content(name, known.get(name), kind, of, chosen[name], len(shown), blocks))
            done(1)
    looked = _strongest(net, top, chosen, checksum, begun, budget, progress)
    pooled = {unit["name"] for unit in units if issubclass(getattr(nn, unit["kind"], nn.Identity), POOLINGS)}
    weighing = {name: of for name, of in chosen.items() if name not in pooled | {measured.added}}
    drawn = _patterns(net, weighing, atlas, checksum, None if budget is None else begun + budget, seed, progress)
    for unit in units:
        made = drawn.get(unit["name"], {})
        for channel, picture in made.items():
            if picture is not None:
                unit["patterns"][channel] = blocks.picture(within(picture, PATTERN_SIDE), quality=80)
        if atlas is None and budget != 0:
            unit["late"] = [channel for channel in weighing.get(unit["name"], ()) if channel not in made]
        unit["top"] = {c: top_content(of, blocks) for c, of in looked.get(unit["name"], {}).items()}
    count = sum(len(unit["patterns"]) for unit in units)

    settings = {
        "layers": "all convolution and pooling layers" if layers is None else layers,
        "channels_of_each_layer": channels,
        "classes_explained_at_most": classes,
        "seed": seed,
        "budget_in_seconds": budget,
        "filter_patterns": f"{count} of {sum(map(len, weighing.values()))} channels shown, by the clean recipe"
        if atlas is None
        else f"{count}, from an atlas",
        "atlas": atlas,
        "strongest_patches": repr(top).splitlines()[0] if isinstance(top, TopActivations) else top,
    }
    call = command or f"torchviz_cnn.report(net, images, {str(out)!r}, ...)"
    page = render_page(
        {
            "photos": found,
            "layers": units,
            "explained": measured.explained,
            "zeros": ZEROS,
            "classes": class_names(net, found),
            "palettes": palettes(),
            "methods": METHODS,
        },
        blocks.texts,
        name=net.name,
        facts=_facts(net, description, len(shown)),
        rows=table(description),
        trouble=trouble,
        made=how_it_was_made(net, shown, settings, call, checksum, time.monotonic() - begun),
        patterns=count,
    )
    files.write(path, lambda file: file.write(page.encode("utf-8", "backslashreplace")))
    return Report(path, len(shown), tuple(chosen), count)


def _check(net: Network, **counts: int) -> None:
    if not isinstance(net, Network):
        what = "a plain module" if isinstance(net, nn.Module) else f"a {type(net).__name__}"
        raise InputError(
            f"report takes a Network, not {what}: load_model(...) gives one, or Network(model, preprocess, categories, name, weights)"
        )
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InputError(f"{name} is a whole number of at least 1, not {count!r}")


def _asked(channels: int | Sequence[int]) -> int | list[int]:
    """How many channels of each layer, or the numbers of those."""
    single = not isinstance(channels, (bool, Iterable))
    several: Any = [channels] if single else channels
    try:
        numbers = [index(c) for c in several]
    except TypeError:
        numbers = []
    if not numbers or min(numbers) < single:
        raise InputError(
            f"channels is a whole number of at least 1, so many of each layer, or a list of channels' numbers from 0, not {channels!r}"
        )
    return numbers[0] if single else list(dict.fromkeys(numbers))


def _chosen(layers: Mapping[str, LayerMaps], channels: int | list[int], photos: bool) -> dict[str, list[int]]:
    """The channels of each layer that are shown, the most important first, without the layers that have none of those asked for."""
    if isinstance(channels, int):
        return {
            name: strongest_channels(of, channels) if photos else list(range(min(channels, of.shape[0])))
            for name, of in layers.items()
        }
    chosen = {name: [c for c in channels if c < of.shape[0]] for name, of in layers.items()}
    if layers and not any(chosen.values()):
        widest = max(layers, key=lambda name: layers[name].shape[0])
        raise LayerError(
            f"no layer shown has a channel {min(channels)}: the most have those of {widest}, 0 to {layers[widest].shape[0] - 1}"
        )
    return {name: some for name, some in chosen.items() if some}


def _writable(out: str | os.PathLike[str]) -> Path:
    """The page's path, known to be writable before the work begins."""
    if not isinstance(out, (str, os.PathLike)):
        raise OutputError(f"out is the path of the page or of a folder for it, not {out!r}")
    path = Path(out)
    try:
        if path.suffix.lower() not in (".html", ".htm"):
            if path.suffix and not path.is_dir():
                raise OutputError(
                    f"cannot write {path}: a page's name ends in .html, and {path.suffix} is something else"
                )
            path /= "index.html"
        if path.is_dir():
            raise OutputError(f"cannot write {path}: it is a folder")
        folder = next(parent for parent in path.absolute().parents if parent.exists())
    except OutputError:
        raise
    except (OSError, ValueError) as error:  # a name that the system does not take
        short = f"{str(path)[:60]}{'...' * (len(str(path)) > 60)}"
        raise OutputError(f"cannot write {short!r}: {getattr(error, 'strerror', None) or error}") from None
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OutputError(f"cannot write {path}: {folder} is {'no folder' if not folder.is_dir() else 'read-only'}")
    return path


def _photos(images: Source | Sequence[Source] | Mapping[str, Source]) -> list[Photo]:
    if isinstance(images, Mapping):
        return _apart([_photo(image, str(name), i) for i, (name, image) in enumerate(images.items())])
    if isinstance(images, (str, os.PathLike, Image.Image)):
        images = [images]
    if isinstance(images, Tensor) or not isinstance(images, Sequence):
        raise ImageError(f"photos are paths or PIL images, not a {type(images).__name__}")
    return _apart([_photo(image, None, i) for i, image in enumerate(images)])


def _apart(photos: list[Photo]) -> list[Photo]:
    """Photos of one name by their paths, and those of one path by a number too."""
    for called in (lambda photo, n: photo.file or photo.name, lambda photo, n: f"{photo.name} ({n})"):
        count, seen = Counter(photo.name for photo in photos), Counter[str]()
        for i, photo in enumerate(photos):
            seen[photo.name] += 1
            if count[photo.name] > 1:
                photos[i] = replace(photo, name=called(photo, seen[photo.name]))
    return photos


def _photo(image: Source, name: str | None, place: int) -> Photo:
    if isinstance(image, (str, os.PathLike)):
        return Photo(name or Path(image).name, read_image(Path(image)), os.fspath(image))
    return Photo(name or f"photo {place + 1}", to_rgb(image), None)


def _batches(net: Network, photos: Sequence[Photo], size: int) -> Iterator[Tensor]:
    """Photos as inputs; an empty picture where there are none, for what the layers are."""
    for start in range(0, len(photos), size):
        yield torch.stack([net.preprocess(photo.image) for photo in photos[start : start + size]])
    if not photos:
        yield _blank(net)


def _blank(net: Network) -> Tensor:
    return torch.zeros(1, len(net.preprocess.mean), *net.input_size)


def _described(net: Network) -> tuple[Description | None, str]:
    try:
        return describe(net.model, _blank(net)), ""
    except ModelError as error:  # a network whose receptive fields cannot be measured can be looked at all the same
        return None, str(error)


def _patterns(
    net: Network, wanted: Mapping[str, Sequence[int]], atlas: str | os.PathLike[str] | None, checksum: str,
    until: float | None, seed: int, progress: bool,
) -> PatternPictures:  # fmt: skip
    if atlas is not None:
        return from_atlas(atlas, wanted, checksum)
    if until is not None and time.monotonic() >= until:
        return {}
    with _stage("filter patterns", sum(map(len, wanted.values())), progress) as done:
        return make_patterns(net, wanted, until=until, seed=seed, done=done)


def _strongest(
    net: Network,
    top: TopActivations | str | os.PathLike[str] | None,
    wanted: Mapping[str, Sequence[int]],
    checksum: str,
    begun: float,
    budget: float | None,
    progress: bool,
) -> dict[str, dict[int, Strongest]]:
    """Of each layer's channels what a dataset says of them; projections take at most half of the time that is left."""
    if top is None:
        return {}
    top = top_of(top, net, checksum)
    shared = shared_layers(top, wanted)
    images = {int(i) for layer, channels in shared.items() for i in top.images[layer][channels].flatten() if i >= 0}
    with _stage("strongest patches", len(images), progress) as done:
        found = patches_of(top, shared, done)
    now = time.monotonic()
    until = None if budget is None else now + max(0.0, begun + budget - now) / 2
    with _stage("projections", sum(map(len, shared.values())), progress) as done:
        if until is None or until > now:
            add_projections(top, net, found, shared, until, done)
    return found


def _facts(net: Network, description: Description | None, photos: int) -> list[str]:
    height, width = net.input_size
    parameters = sum(p.numel() for p in unwrap(net.model).parameters())
    facts = [f"{parameters:,} parameters", f"input {height} × {width}"]
    if description is not None:
        facts.insert(1, _counted(len(description.layers), "layer"))
    if net.categories:
        facts.append(f"{len(net.categories):,} class{'es' * (len(net.categories) != 1)}")
    return [*facts, _counted(photos, "photo")]


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


@contextmanager
def _stage(name: str, total: int, progress: bool) -> Iterator[Any]:
    with tqdm(total=total, desc=name, leave=False, disable=not progress) as bar:
        yield bar.update
