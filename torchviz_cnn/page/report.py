"""`report`: one offline page that shows a network, its photos and its units."""

from __future__ import annotations

import html
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchviz_cnn.ascent.atlas import Atlas
from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import (
    ImageError,
    InputError,
    ModelError,
    OutputError,
    TargetError,
    counted,
    kind_of,
)
from torchviz_cnn.core.names import LayerPattern, unwrap
from torchviz_cnn.core.progress import progress_bar
from torchviz_cnn.evaluation.result import Trust
from torchviz_cnn.hooks.inputs import Input, Output
from torchviz_cnn.hooks.network import Network
from torchviz_cnn.layers.defaults import POOLINGS
from torchviz_cnn.layers.describe import Description, describe
from torchviz_cnn.media.images import Preprocess
from torchviz_cnn.media.origin import Photo, is_photo, picture_of, stored
from torchviz_cnn.page import content
from torchviz_cnn.page.choice import (
    Shown,
    chosen_channels,
    drawn_channels,
    ran,
    require_channels,
    require_shared,
    shown_layers,
)
from torchviz_cnn.page.collect import Collected, Explained, collect
from torchviz_cnn.page.provenance import provenance
from torchviz_cnn.page.render import render_page
from torchviz_cnn.page.trust import Measured, maps_of, measure_maps, measure_weights, read_trust
from torchviz_cnn.page.units.patterns import (
    PatternPictures,
    about_patterns,
    atlas_of,
    channels_of,
    from_atlas,
    make_patterns,
)
from torchviz_cnn.page.units.similar import similar_contents
from torchviz_cnn.page.units.top import top_contents, top_of
from torchviz_cnn.runs import files
from torchviz_cnn.runs.encode import Blocks
from torchviz_cnn.runs.folder import model_checksum
from torchviz_cnn.topk.result import TopActivations

__all__ = ["Report", "report"]

_INLINE_BYTES = 30_000_000


@dataclass(frozen=True)
class Report(os.PathLike[str]):
    """A page that was written: can be used as its path, and shows itself in notebooks."""

    path: Path
    photos: int
    layers: tuple[str, ...]
    patterns: int
    """How many channels have a filter pattern on the page."""
    about_patterns: str = ""
    """Of how many channels these are, and why the others have none, in a sentence."""

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def _repr_html_(self) -> str:
        if self.path.stat().st_size > _INLINE_BYTES:
            return f"<p>The page is too large to be shown here: <code>{html.escape(str(self.path))}</code></p>"
        page = html.escape(self.path.read_text(encoding="utf-8"))
        style = "width:100%;height:85vh;min-height:480px;border:1px solid #8884;border-radius:8px"
        return f'<iframe title="Network report" sandbox="allow-scripts" style="{style}" srcdoc="{page}"></iframe>'


def report(
    net: Network,
    images: Photo | Sequence[Photo] | Mapping[str, Photo],
    out: str | os.PathLike[str],
    *,
    layers: LayerPattern | Sequence[LayerPattern] | None = None,
    k: int = 32,
    channels: Iterable[int] | None = None,
    classes: int = 3,
    targets: Explained = None,
    output: Output = None,
    top: TopActivations | str | os.PathLike[str] | None = None,
    atlas: str | os.PathLike[str] | None = None,
    trust: Trust | str | os.PathLike[str] | None = None,
    budget: float | None = 60.0,
    seed: int = 0,
    batch_size: int = 4,
    command: str | None = None,
    progress: bool = False,
) -> Report:
    """Write one self-contained page that shows a network: predictions, class evidence, layers and channels.

    A batch of photos runs forward once: activations, the heatmaps of all layers, classes and methods, and the gradients
    of the pixels under all three ReLU rules come from that one graph. Every channel has an address:
    `index.html#features.12/34`. Nothing on the page comes from another machine.

    Args:
        net: from `load_model`, or your own as `Network(model, preprocess, categories, name, weights)`.
        images: a photo, several, or a mapping from names to photos; each a path, a PIL image or an array (H, W, 3).
            Without any, the page shows the network alone.
        out: the page's path (`.html`), or a folder, in which the page is `index.html`.
        layers: names, patterns or types as for `capture`; by default those of `top` and `atlas`, or else all
            convolutions. A convolution is shown by what the normalisation and the activation behind it give, unless
            these are layers of the page themselves, or `top` or `atlas` is of the convolution before its normalisation.
        k: how many channels of each layer are shown: those with the strongest activations on the photos, of an atlas's
            layer among those that it has. Those that the pages of `top` show are added.
        channels: the numbers of the channels to show instead; layers that have none of them are left out.
        classes: how many of each photo's likeliest classes are explained.
        targets: what is explained of every photo instead: a class or several, by index or name, or a function of the
            model's output, as `torchviz_cnn.targets` has them.
        output: what of the model's output is explained, as for `grad_cam`.
        top: the result of `top_activations` or its folder, for the top activations of each channel.
        atlas: a folder of filter patterns; by default patterns are made.
        trust: the result of `trust` on these photos, or its folder, for the figures under each heatmap. Those that it
            does not have are measured: insertion, deletion, and how much of a method's maps stays with random weights.
        budget: seconds from the start after which no further pattern or projection is begun, the strongest channels
            first, a third of them for the figures under the heatmaps; None for all, 0 for none.
        seed: seed of the filter patterns.
        batch_size: how many photos run at once.
        command: what the page names as the command that made it.
        progress: whether progress bars are shown.

    Returns:
        A Report, which can be used as the page's path and shows itself in notebooks.

    Raises:
        InputError: for a wrong option, a plain module, and an atlas or top activations of another network.
        ImageError: for a photo that cannot be read.
        LayerError: for layers and channels that do not exist.
        ModelError: for a network without class scores.
        OutputError: where the page cannot be written.

    >>> import tempfile
    >>> from PIL import Image
    >>> from torchviz_cnn import Preprocess
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    >>> net = Network(model, Preprocess((16, 16), resize=16), ("day", "night"), "tiny", "random")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page = report(net, Image.new("RGB", (20, 16), "navy"), folder, budget=0)
    ...     page.path.name, page.layers
    ('index.html', ('0',))
    """
    begun = time.monotonic()
    _check(net, budget, k=k, classes=classes, batch_size=batch_size)
    selected = None if channels is None else checks.channel_numbers(channels)
    path, photos = _writable(out), _photos(images, net)
    own = getattr(targets, "rows", None)
    if own is not None and len(own) != len(photos):
        raise TargetError(
            f"the target {targets} has a row for {counted(len(own), 'image')}, not for {counted(len(photos), 'photo')}"
        )
    until = math.inf if budget is None else begun + budget
    stage = partial(_stage, progress)

    description, trouble, checksum = _described(net, stage)
    given = _Given.of(net, top, atlas, checksum)
    asked = shown_layers(net, _blank(net), layers, given.layers)
    require_shared(asked, given.top, given.atlas)
    require_channels(selected, asked)
    with stage("photos", len(photos)) as bar:
        batches, calls = _batches(net, photos, batch_size), [one.call for one in asked] or layers
        goals: dict[str, Any] = {"targets": targets, "output": output} if photos else {"output": output}
        collected = collect(net, batches, calls, classes, bar.update, explain=bool(photos), **goals)
    shown = ran(net, asked, collected)
    maps, pool = {name: collected.layers[one.call] for name, one in shown.items()}, given.with_patterns(shown)
    chosen = chosen_channels(maps, k, selected, bool(photos), given.drawn, pool)

    measured = _measured(net, photos, collected, trust, checksum, until, stage, targets=targets, output=output)
    blocks = Blocks()
    tops = {} if given.top is None else top_contents(given.top, net, chosen, until, blocks, stage)
    wanted, similar = _drawable(shown, chosen, collected.added), similar_contents(net, chosen)
    patterns = _patterns(net, given.atlas, wanted, shown, until, seed, stage)
    said = about_patterns(wanted, patterns, budget, None if atlas is None else os.fspath(atlas))
    rows = content.table(description)
    units = []
    with stage("layers", len(chosen)) as bar:
        for name, numbers in chosen.items():
            unit = content.layer_content(shown[name], maps[name], numbers, len(photos), blocks)
            unit["field"] = next((row for row in rows if row["name"] == name and row["size"]), None)
            unit |= content.pattern_contents(patterns.get(name, {}), wanted.get(name, []), atlas is not None, blocks)
            units.append({**unit, "top": tops.get(name, {}), "similar": similar.get(name, {})})
            bar.update(1)
    pictures = content.photo_contents(net, photos, collected, measured, blocks)

    settings: dict[str, Any] = {"layers": layers, "k": k, "channels": selected, "classes": classes, "top": top}
    settings |= {"targets": collected.label or targets, "output": output, "atlas": atlas, "budget": budget}
    settings |= {"trust": trust if isinstance(trust, (str, os.PathLike)) else trust and repr(trust)}
    settings |= {"seed": seed, "filter patterns": said or "none"}
    call = command or f"torchviz_cnn.report(net, images, {str(out)!r}, ...)"
    page = render_page(
        content.data(net, pictures, units, collected, measured, shown),
        blocks.texts,
        name=net.name,
        facts=_facts(net, description, len(photos)),
        rows=rows,
        trouble=trouble,
        provenance=provenance(net, photos, settings, call, checksum, time.monotonic() - begun),
        patterns=(count := sum(len(unit["patterns"]) for unit in units)),
        about_patterns=said,
    )
    files.write(path, lambda file: file.write(page.encode("utf-8", "backslashreplace")))
    return Report(path, len(photos), tuple(chosen), count, said)


@dataclass(frozen=True, eq=False)
class _Given:
    """What was made before, and decides on layers and channels."""

    top: TopActivations | None
    atlas: Atlas | None
    drawn: Mapping[str, Sequence[int]]
    """By layer, the channels that the pages of the top activations show."""

    @classmethod
    def of(cls, net: Network, top: Any, atlas: Any, checksum: str) -> _Given:
        tops = None if top is None else top_of(top, net, checksum)
        return cls(tops, None if atlas is None else atlas_of(atlas, checksum), drawn_channels(top, tops))

    @property
    def layers(self) -> list[str]:
        parts = [one.layers for one in (self.top, self.atlas) if one is not None]
        return list(dict.fromkeys(name for part in parts for name in part))

    def with_patterns(self, layers: Iterable[str]) -> dict[str, list[int]]:
        """By layer, the channels that the atlas has patterns of."""
        if self.atlas is None:
            return {}
        return {name: channels_of(self.atlas, name) for name in layers if name in self.atlas.layers}


def _patterns(
    net: Network,
    atlas: Atlas | None,
    wanted: Mapping[str, Sequence[int]],
    shown: Mapping[str, Shown],
    until: float,
    seed: int,
    stage: Callable[[str, int], Any],
) -> PatternPictures:
    """The filter patterns of the channels wanted: those of an atlas, or as many as there is time for."""
    with stage("filter patterns", sum(map(len, wanted.values()))) as bar:
        if atlas is not None:
            return from_atlas(atlas, wanted)
        sources = {name: shown[name].pattern for name in wanted}
        return make_patterns(net, wanted, until=until, seed=seed, done=bar.update, sources=sources)


def _measured(
    net: Network,
    photos: Sequence[content.NamedPhoto],
    collected: Collected,
    trust: Trust | str | os.PathLike[str] | None,
    checksum: str,
    until: float,
    stage: Callable[[str, int], Any],
    **asked: Any,
) -> Measured:
    """How far the heatmaps can be believed: as was measured before, and what a third of the time allows."""
    names = [photo.file or photo.name for photo in photos]
    measured = Measured() if trust is None else read_trust(trust, names, collected, checksum)
    if not photos:
        return measured
    pixels, now = [photo.pixels for photo in photos], time.monotonic()
    with stage("heatmaps measured", len(photos) * collected.classes.shape[1] * (1 + len(maps_of(collected)))) as bar:
        if collected.label is None:
            measure_weights(net, pixels[0], collected, measured, output=asked["output"], until=now + (until - now) / 6)
        measure_maps(net, pixels, collected, measured, until=now + (until - now) / 3, done=bar.update, **asked)
    return measured


def _stage(progress: bool, name: str, total: int) -> Any:
    return progress_bar(progress, total=total, desc=name)


def _check(net: Network, budget: float | None, **counts: int) -> None:
    if not isinstance(net, Network):
        what = "a plain module" if isinstance(net, nn.Module) else f"{kind_of(net)}"
        raise InputError(
            f"report takes a Network, not {what}: load_model(...) gives one, "
            "or Network(model, preprocess, categories, name, weights)"
        )
    if not isinstance(net.preprocess, Preprocess):  # which alone says what part of a photo the network sees
        raise InputError(f"report takes a Network with a Preprocess, not with a {type(net.preprocess).__name__}")
    for name, count in counts.items():
        checks.whole_number(name, count)
    if budget is not None:
        checks.number("budget", budget, 0)


def _writable(out: str | os.PathLike[str]) -> Path:
    """The page's path, known to be writable before the work begins."""
    path = checks.path("out", out)
    page = path if path.suffix.lower() in (".html", ".htm") else path / "index.html"
    files.require_place(page)
    if page != path and path.suffix and not path.is_dir():
        raise OutputError(f"cannot write {path}: a page's name ends in .html, and {path.suffix} is something else")
    if page.is_dir():
        raise OutputError(f"cannot write {page}: it is a folder")
    return page


def _photos(images: Photo | Sequence[Photo] | Mapping[str, Photo], net: Network) -> list[content.NamedPhoto]:
    several: Any = [images] if is_photo(images) else images
    if not isinstance(several, (Mapping, Sequence)):
        raise ImageError(f"photos are paths, PIL images or arrays (H, W, 3), not {kind_of(several)}")
    photos: list[content.NamedPhoto] = []
    for name, image in several.items() if isinstance(several, Mapping) else [("", image) for image in several]:
        file = os.fspath(image) if isinstance(image, (str, os.PathLike)) else None
        usual = f"photo {len(photos) + 1}" if file is None else Path(file).name
        pixels = stored(image)
        picture_of(pixels, net.preprocess)  # what is not a photo is reported before the work begins
        photos.append(content.NamedPhoto(str(name) or usual, pixels, file))
    return _distinct(photos)


def _distinct(photos: list[content.NamedPhoto]) -> list[content.NamedPhoto]:
    """Photos of one name named by their paths, and photos of one path by a number too."""
    for rename in (lambda photo, n: photo.file or photo.name, lambda photo, n: f"{photo.name} ({n})"):
        count, number = Counter(photo.name for photo in photos), Counter[str]()
        for i, photo in enumerate(photos):
            number[photo.name] += 1
            if count[photo.name] > 1:
                photos[i] = replace(photo, name=rename(photo, number[photo.name]))
    return photos


def _batches(net: Network, photos: Sequence[content.NamedPhoto], size: int) -> Iterator[Input]:
    """Photos in batches; without photos, one empty input, which shows what the layers are."""
    for start in range(0, len(photos), size):
        yield [photo.pixels for photo in photos[start : start + size]]
    if not photos:
        yield _blank(net)


def _blank(net: Network) -> Tensor:
    return torch.zeros(1, len(net.preprocess.mean), *net.input_size)


def _drawable(shown: Mapping[str, Shown], chosen: Mapping[str, list[int]], added: str | None) -> dict[str, list[int]]:
    """The channels that may have filter patterns: none of poolings, nor of the layer that is shown for its heatmap."""
    return {name: c for name, c in chosen.items() if name != added and not isinstance(shown[name].layer, POOLINGS)}


def _described(net: Network, stage: Callable[[str, int], Any]) -> tuple[Description | None, str, str]:
    """The layers of a network, or why they cannot be described, and its checksum."""
    with stage("network", 1) as bar:
        description, trouble = None, ""
        try:
            description = describe(net.model, _blank(net))
        except ModelError as error:  # whose receptive fields cannot be measured can be looked at all the same
            trouble = str(error)
        checksum = model_checksum(net.model)
        bar.update(1)
    return description, trouble, checksum


def _facts(net: Network, description: Description | None, photos: int) -> list[str]:
    height, width = net.input_size
    parameters = sum(p.numel() for p in unwrap(net.model).parameters())
    facts = [f"{parameters:,} parameters", f"input {height} × {width}"]
    if description is not None:
        facts.insert(1, counted(len(description.layers), "layer"))
    if net.categories:
        facts.append(counted(len(net.categories), "class"))
    return [*facts, counted(photos, "photo")]
