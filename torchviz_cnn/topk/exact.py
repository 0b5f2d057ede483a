"""The order of the strongest activations in double precision, where rounding is to decide nothing."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from torchviz_cnn.core.errors import RankError, SkippedWarning
from torchviz_cnn.core.warn import warn
from torchviz_cnn.hooks.manager import HookManager
from torchviz_cnn.media.datasets.source import ImageSource
from torchviz_cnn.runs.ranks import Ranks
from torchviz_cnn.topk.reading import read_batches
from torchviz_cnn.topk.relevance.shares import Relevance
from torchviz_cnn.topk.tally import Candidates, as_maps, relevance_of


def in_exact_order(
    model: nn.Module,
    source: ImageSource,
    candidates: dict[str, Candidates],
    ranks: Ranks,
    workers: int,
    relevance: Relevance | None = None,
) -> dict[str, Candidates] | None:
    """The candidates of each layer, row by row, computed again in double precision, one image at a time.

    They are the strongest activations or, with `relevance`, those of the largest relevance; they stay in their rows,
    whose order is then not that of the new values. Ranks share the images.
    Where the network does not run in double precision, a SkippedWarning says so, and there are none.
    """
    images = sorted({image for best in candidates.values() for image in best.images.flatten().tolist() if image >= 0})
    exact = {layer: best.emptied(torch.float64) for layer, best in candidates.items()}
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    device = torch.device("cpu") if device.type == "mps" else device  # which has no double precision
    image = -1

    def take(name: str, output: object) -> None:
        maps = as_maps(double, name, output, 1)[0]
        rows, channels = (candidates[name].images == image).nonzero(as_tuple=True)
        units = maps[channels.to(device)].double().cpu()
        values, at = units.flatten(1).max(1)
        if relevance is not None:
            values = relevance_of(units[None])[0]
        exact[name].values[rows, channels], exact[name].images[rows, channels] = values, image
        exact[name].positions[rows, channels] = torch.stack([at // maps.shape[2], at % maps.shape[2]], 1)

    try:
        with ranks.agreeing():
            double = copy.deepcopy(model).to(device, torch.float64)
            share = [[image] for image in images[ranks.rank :: ranks.count]]
            with torch.no_grad(), HookManager(double) as hooks:
                if relevance is None:
                    hooks.on_forward(list(candidates), take)
                for batch in read_batches(source, range(len(share)), share, workers, device):
                    if batch.x is not None:
                        image, x = int(batch.images[0]), batch.on(device, torch.float64)
                        _run(hooks, x, batch.images, list(candidates), relevance, take)
    except RuntimeError as error:
        if isinstance(error, RankError) or not re.search("dtype|double|float64", str(error), re.IGNORECASE):
            raise
        if ranks.first:
            reason = " ".join(str(error).split())[:200]
            warn(f"the order stays as computed: the network does not run in double precision: {reason}", SkippedWarning)
        return None
    parts = ranks.gather(exact)
    return {layer: _together([part[layer] for part in parts]) for layer in candidates}


def _together(parts: Sequence[Candidates]) -> Candidates:
    """Rows of which each rank has filled some: the others of it have the least values that there are."""
    return Candidates(
        *(torch.stack(tensors).amax(0) for tensors in zip(*(vars(p).values() for p in parts), strict=True))
    )


def _run(
    hooks: HookManager,
    x: Tensor,
    images: Tensor,
    layers: list[str],
    relevance: Relevance | None,
    take: Callable[[str, Tensor], None],
) -> None:
    """Run an image, whose outputs hooks take; of relevance the shares of its units are taken here."""
    if relevance is None:
        hooks.run(x)
        return
    for name, _, shares in relevance.shares(hooks.model, x, images, layers):
        take(name, shares)
