"""The result of what was kept of a dataset or a piece of it: of one run, or of pieces that were merged."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from torchviz_cnn.layers.receptive_field import ReceptiveField
from torchviz_cnn.media.datasets.source import ImageSource
from torchviz_cnn.topk.passes import RunState
from torchviz_cnn.topk.pieces.cutting import Piece
from torchviz_cnn.topk.result import TopActivations
from torchviz_cnn.topk.statistics import ChannelStatistics
from torchviz_cnn.topk.tally import Ranking


def result_of(
    state: RunState,
    piece: Piece,
    k: int,
    fields: Mapping[str, ReceptiveField | None],
    target: str | None = None,
    source: ImageSource | None = None,
    model: nn.Module | None = None,
) -> TopActivations:
    """The k strongest of each channel, and by relevance for a target too where the state has them."""
    tallies = state.tallies.items()
    values, images, positions = _ranked({layer: tally.activation for layer, tally in tallies}, k)
    top = TopActivations(
        layers=tuple(state.tallies),
        values=values,
        images=images,
        positions=positions,
        statistics={layer: ChannelStatistics.of(tally) for layer, tally in tallies},
        count=piece.count,
        skipped=dict(state.skipped),
        fields=fields,
        source=source,
        model=model,
        piece=None if piece.whole else (piece.start, piece.end),
    )
    relevance = {layer: tally.relevance for layer, tally in tallies if tally.relevance is not None}
    return top.by_relevance(*_ranked(relevance, k), target) if relevance else top


def _ranked(rankings: Mapping[str, Ranking], k: int) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Values (C, k), images (C, k) and positions (C, k, 2) by layer: by exact values where there are any."""
    best = {layer: one.candidates if one.exact is None else one.exact.best([]) for layer, one in rankings.items()}
    images = {layer: one.images[:k].T.contiguous() for layer, one in best.items()}
    return (
        {layer: one.values[:k].T.float().masked_fill(images[layer] < 0, torch.nan) for layer, one in best.items()},
        images,
        {layer: one.positions[:k].transpose(0, 1).contiguous() for layer, one in best.items()},
    )
