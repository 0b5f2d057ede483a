"""Which layers and channels a page shows: decided, and checked, before anything else is computed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torchviz_cnn.ascent.atlas import Atlas
from torchviz_cnn.core.errors import LayerError, OutputError
from torchviz_cnn.core.names import Call, expand, named_layers
from torchviz_cnn.hooks.inputs import Given, prepared
from torchviz_cnn.hooks.manager import HookManager
from torchviz_cnn.hooks.network import Network
from torchviz_cnn.layers.defaults import POOLINGS, Layers, chosen_patterns
from torchviz_cnn.layers.layout import CONVOLUTIONS
from torchviz_cnn.page.collect import Collected, LayerMaps
from torchviz_cnn.runs import files
from torchviz_cnn.topk.result import TopActivations

DRAWN = Path("pages") / "channels.json"
"""Where the command `top` notes in its folder which channels of each layer it drew."""


@dataclass(frozen=True)
class Shown:
    """A layer of the page. A convolution is shown by what its normalisation and its activation give."""

    name: str
    """What the page calls it."""
    layer: nn.Module
    call: str
    """The call whose output is shown."""
    pattern: str
    """The call of which filter patterns are made: the same, without the activation."""
    channels: int = 0
    """How many it has; 0 where it gives no maps."""
    after: tuple[str, ...] = ()
    """The kinds of modules between the layer and what is shown."""


class _Output(NamedTuple):
    """What a call gave: maps, and the node of the graph that made them."""

    name: str
    layer: nn.Module
    shape: tuple[int, ...]
    node: Any


def shown_layers(net: Network, x: Tensor, layers: Layers, measured: Sequence[str] = ()) -> list[Shown]:
    """The layers that were asked for, by default those `measured`, or else all convolutions, in the order of running.

    A convolution is shown after the normalisation and the activation that follow it. Where top activations or filter
    patterns are `measured` of itself, it is shown without a normalisation, which may turn weak into strong. None is
    given for a network without convolutions. Runs `x` (1, C, H, W).
    """
    with prepared(net, x) as given:
        outputs = _outputs(given)
        known = named_layers(given.model)
        if layers is None and not measured:
            calls = [Call(name, None) for name, layer in known.items() if isinstance(layer, CONVOLUTIONS)]
        else:
            asked = list(measured) if layers is None else layers
            calls = expand(given.model, known, chosen_patterns(given.model, asked))
    whole, shown = _activations(outputs), dict[str, Shown]()
    width = {name: one.shape[1] for one in outputs for name in (one.name, f"{_base(one.name)}#*")}

    def by_itself(name: str, layer: nn.Module) -> Shown:
        return Shown(name, layer, name, name, width.get(name, 0))

    alone = {str(call) for call in calls} | set(measured)  # a layer that stands for itself does not for another
    for call in calls:
        runs = [one for name, one in whole.items() if str(call) in (name, f"{_base(name)}#*")]
        for one in runs or [by_itself(str(call), known[call.name])]:
            is_normalised = one.pattern != one.name
            is_alone = (one.name in measured and is_normalised) or not alone.isdisjoint(
                (one.call, f"{_base(one.call)}#*")
            )
            shown[one.name] = by_itself(one.name, one.layer) if is_alone else one
    return list(shown.values())


def _base(name: str) -> str:
    """The name of a layer without the number of its call."""
    return re.sub(r"#(\d+|\*)$", "", name)


def _outputs(given: Given) -> list[_Output]:
    """What every call gave that has maps, in the order of running."""
    layers, outputs = named_layers(given.model), list[_Output]()

    def note(name: str, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            outputs.append(_Output(name, layers[_base(name)], tuple(output.shape), output.grad_fn))

    with torch.enable_grad(), HookManager(given.model) as hooks:
        hooks.on_forward([f"{name}#*" for name in layers], note)
        hooks.run_on(given.inputs(given.x.detach().requires_grad_().clone()), stop_early=False)
    return outputs


def _activations(outputs: Sequence[_Output]) -> dict[str, Shown]:
    """Each call of a convolution with what follows it: modules that keep its shape, as far as nothing else joins in."""
    first: dict[Any, _Output] = {}
    outermost: dict[Any, str] = {}
    for one in outputs:
        if one.node is not None:
            first.setdefault(one.node, one)
            outermost[one.node] = one.name
    followers: dict[Any, _Output] = {}
    for node, one in first.items():
        if not isinstance(one.layer, (*CONVOLUTIONS, *POOLINGS, nn.Linear, nn.ChannelShuffle)):
            source = _source(node, first)
            if source is not None and first[source].shape == one.shape:
                followers.setdefault(source, one)
    convolutions = (one for one in outputs if isinstance(one.layer, CONVOLUTIONS) and one.shape[2:] != (1, 1))
    return {one.name: _shown(one, followers, outermost) for one in convolutions}


def _shown(convolution: _Output, followers: Mapping[Any, _Output], outermost: Mapping[Any, str]) -> Shown:
    line = [convolution]
    while line[-1].node in followers:
        line.append(followers[line[-1].node])
    # What comes before an activation is what gradient ascent raises: an activation that is off gives no gradient.
    is_plain = next(chain(line[-1].layer.parameters(), line[-1].layer.buffers()), None) is None
    raised = line[-2] if len(line) > 1 and is_plain else line[-1]
    kinds = tuple(type(one.layer).__name__ for one in line[1:] if not isinstance(one.layer, (nn.Identity, nn.Dropout)))
    call = outermost.get(line[-1].node, convolution.name)
    return Shown(convolution.name, convolution.layer, call, raised.name, convolution.shape[1], kinds)


def _source(node: Any, first: Mapping[Any, _Output]) -> Any:
    """The node of the call that a call's output was computed from, and from nothing else; None where there is none."""
    while True:
        before = [parent for parent, _ in node.next_functions if parent is not None]
        if len(before) != 1:
            return None
        (node,) = before
        if node in first:
            return node


def ran(net: Network, asked: Sequence[Shown], collected: Collected) -> dict[str, Shown]:
    """The layers that have maps by their names on the page, in the order of running, with the one that was added."""
    known, by_call = named_layers(net.model), {one.call: one for one in asked}
    every = (by_call.get(call) or Shown(call, known[_base(call)], call, call) for call in collected.layers)
    return {one.name: one for one in every}


def require_shared(shown: Sequence[Shown], top: TopActivations | None, atlas: Atlas | None) -> None:
    """Raise LayerError or OutputError where what is given is of none of the layers shown."""
    names = {_base(one.name) for one in shown}
    if top is not None and names and not names & set(map(_base, top.layers)):
        raise LayerError(
            f"the top activations are of {', '.join(top.layers[:3])}, ...: none of them is shown; name some of them, "
            "or no layers"
        )
    if atlas is not None and names and not names & set(map(_base, atlas.layers)):
        raise OutputError(
            f"the atlas {atlas.folder.path} has none of the layers shown: it has {', '.join(atlas.layers[:3])}, ..."
        )


def require_channels(selected: Sequence[int] | None, shown: Sequence[Shown]) -> None:
    """Raise LayerError for a channel that no layer has which is asked for."""
    widest = max(shown, key=lambda one: one.channels, default=None)
    if widest is not None and (missing := [c for c in selected or () if c >= widest.channels > 0]):
        raise LayerError(
            f"no layer shown has a channel {missing[0]}: {widest.name} has the most, 0 to {widest.channels - 1}"
        )


def drawn_channels(given: object, top: TopActivations | None) -> dict[str, list[int]]:
    """The channels, by layer, that the pages of top activations show: as the folder notes, else evenly chosen ones.

    Raises OutputError for a note that cannot be read.
    """
    if top is None:
        return {}
    note = Path(os.fspath(given)) / DRAWN if isinstance(given, (str, os.PathLike)) else None
    noted: dict[str, list[int]] = {}
    if note is not None and note.is_file():
        try:
            noted = {str(layer): list(map(int, channels)) for layer, channels in json.loads(note.read_text()).items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise OutputError(f"{note} is broken: {error}; the command top writes it again") from error
    return {layer: noted.get(layer) or top.some_channels(layer) for layer in top.layers}


def note_drawn(folder: Path, channels: Mapping[str, Sequence[int]]) -> None:
    """Note in a folder of top activations which channels of each layer its pages show."""
    text = json.dumps({layer: list(some) for layer, some in channels.items()})
    files.write(folder / DRAWN, lambda file: file.write(text.encode()))


def chosen_channels(
    layers: Mapping[str, LayerMaps],
    k: int,
    selected: Sequence[int] | None,
    photos: bool,
    drawn: Mapping[str, Sequence[int]],
    patterns: Mapping[str, Sequence[int]],
) -> dict[str, list[int]]:
    """The channels of each layer that are shown, the most important first, without layers that have none of them.

    Args:
        layers: what the layers gave, by the names on the page.
        k: how many channels of each layer, the strongest on the photos or, without `photos`, the first.
        selected: the numbers of the channels instead.
        drawn: channels, by layer, that are shown beside these k, as top activations have been drawn of them.
        patterns: channels, by layer, of which alone the k are chosen, as there are filter patterns of them.
    """
    if selected is not None:
        chosen = {name: [c for c in selected if c < maps.shape[0]] for name, maps in layers.items()}
        return {name: channels for name, channels in chosen.items() if channels}
    chosen = {}
    for name, maps in layers.items():
        among = list(patterns.get(name, range(maps.shape[0])))
        first = strongest_channels(maps, k, among) if photos else among[:k]
        chosen[name] = list(dict.fromkeys([*first, *drawn.get(name, ())]))
    return chosen


def strongest_channels(layer: LayerMaps, k: int, among: Iterable[int]) -> list[int]:
    """The k of some channels with the strongest activations on any photo, the strongest first and dead ones last."""
    order, some = layer.peak.nan_to_num(-torch.inf).amax(0).argsort(descending=True, stable=True), set(among)
    return [c for c in map(int, order) if c in some][:k]
