"""The channels of a layer that are most like those that a report shows, by the cosine of their weights."""

from __future__ import annotations

from typing import Any

from torchviz_cnn.core.names import named_layers, resolve, unwrap
from torchviz_cnn.hooks.network import Network
from torchviz_cnn.layers.units.similar import directions, most_similar, weights_of
from torchviz_cnn.page.encode import figure
from torchviz_cnn.page.units.patterns import Wanted

SIMILAR = 5


def similar_contents(net: Network, wanted: Wanted) -> dict[str, dict[int, list[tuple[int, Any]]]]:
    """By layer and channel, the numbers of the most similar channels and their cosines, the most similar first.

    Layers without weights are left out, and so are channels that share their inputs with no other.
    """
    model = unwrap(net.model)
    modules, contents = named_layers(model), dict[str, dict[int, list[tuple[int, Any]]]]()
    for layer, channels in wanted.items():
        weights = weights_of(modules[resolve(model, modules, layer).name])
        if weights is None or weights.shape[1] == 1:
            continue
        unit_vectors, size, contents[layer] = directions(weights), weights.shape[1], {}
        for c in channels:
            group, place = divmod(c, size)
            if bool(unit_vectors[group, place].any()):
                best, cosines = most_similar(unit_vectors[group], place, SIMILAR)
                others = [group * size + other for other in best]
                contents[layer][c] = list(zip(others, map(figure, cosines), strict=True))
    return contents
