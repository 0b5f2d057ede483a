"""What every channel of a layer does over a whole dataset: how strong, how sparse, dead or not, for which class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from PIL import Image
from torch import Tensor

from torchviz_cnn.core.errors import counted
from torchviz_cnn.media import figures
from torchviz_cnn.topk.pieces.sums import as_numbers
from torchviz_cnn.topk.tally import Tally


@dataclass(frozen=True, eq=False)
class ChannelStatistics:
    """One layer over all images of a dataset; every tensor is (C,)."""

    mean: Tensor
    """The mean activation over all images and positions."""
    maximum: Tensor
    """The strongest activation of all; NaN where no image gave a number."""
    sparsity: Tensor
    """The share of activations that are exactly zero or below: 0..1."""
    dead: Tensor
    """Whether the channel was never above zero (bool)."""
    selectivity: Tensor | None = None
    """How much stronger its favourite class is than the others: (a - b) / (a + b) for the class' mean a and the mean b
    of the other classes' means, 0..1 (Morcos et al., arXiv 1803.06959). NaN where means are negative, or zero. None
    without labels."""
    favourite: Tensor | None = None
    """The class with the largest mean. None without labels."""

    @classmethod
    def of(cls, tally: Tally) -> ChannelStatistics:
        """From the sums over a dataset."""
        sums, strongest = tally.sums, tally.activation.candidates
        maximum = strongest.values[0].float().masked_fill(strongest.images[0] < 0, torch.nan)
        mean, sparsity = ((as_numbers(total) / sums.counted).float() for total in (sums.mean, sums.inactive))
        dead = ~(maximum > 0) & ~maximum.isnan()
        if len(sums.labels) < 2:
            return cls(mean, maximum, sparsity, dead)
        by_class = (as_numbers(sums.by_class) / sums.class_counted).nan_to_num(nan=-torch.inf)
        best, place = by_class.max(0)
        finite = by_class.isfinite()
        others = (by_class.where(finite, 0).sum(0) - best) / (finite.sum(0) - 1)
        negative = (by_class.where(finite, 0) < 0).any(0)
        selectivity = ((best - others) / (best + others)).float()
        selectivity[negative | ~(best > 0)] = torch.nan
        return cls(mean, maximum, sparsity, dead, selectivity, sums.labels[place])

    def tensors(self) -> dict[str, Tensor]:
        """By name, to be saved; without what there is not."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}

    def summary(self) -> str:
        """In words: how many channels, how many of them dead, the mean sparsity, the mean selectivity."""
        words = [
            f"{counted(len(self.mean), 'channel')}, {int(self.dead.sum())} dead",
            f"sparsity {float(self.sparsity.mean()):.0%}",
        ]
        if self.selectivity is not None:
            words.append(f"selectivity {float(self.selectivity.nanmean()):.2f}")
        return ", ".join(words)

    def __repr__(self) -> str:
        return f"ChannelStatistics({self.summary()})"


@figures.usual_style()
def depth_plot(statistics: Mapping[str, ChannelStatistics]) -> Image.Image:
    """A figure of the layers from first to last: sparsity, dead channels and, with labels, class selectivity.

    Lines are means over the channels, shaded from the first to the last quartile.
    """
    from matplotlib.figure import Figure

    labelled = any(one.selectivity is not None for one in statistics.values())
    titles = ["sparsity", "dead channels", *(["class selectivity"] if labelled else [])]
    width = min(max(3.4, 0.32 * len(statistics) + 2), 12)
    figure = Figure(
        figsize=(width * len(titles), 3.2 + 0.06 * max(map(len, statistics))), dpi=100, layout="constrained"
    )
    places = list(range(len(statistics)))
    for axes, title in zip(figure.subplots(1, len(titles), squeeze=False)[0], titles, strict=True):
        columns = [_column(one, title) for one in statistics.values()]
        known = [column[~column.isnan()] for column in columns]
        middle = [float(column.mean()) if len(column) else float("nan") for column in known]
        if title != "dead channels":
            low, high = ([float(c.quantile(q)) if len(c) else float("nan") for c in known] for q in (0.25, 0.75))
            axes.fill_between(places, low, high, alpha=0.25, linewidth=0)
        axes.plot(places, middle, marker="o", markersize=4)
        axes.set_title(title, fontsize=11)
        axes.set_ylim(0, 1)
        axes.set_xticks(places, list(statistics), rotation=90 if max(map(len, statistics)) > 3 else 0, fontsize=8)
        axes.grid(alpha=0.3)
    return figures.figure_image(figure)


def _column(one: ChannelStatistics, title: str) -> Tensor:
    selectivity = torch.full_like(one.mean, torch.nan) if one.selectivity is None else one.selectivity
    return {"sparsity": one.sparsity, "dead channels": one.dead.float(), "class selectivity": selectivity}[title]
