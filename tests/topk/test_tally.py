"""What is kept of a batch, on a CPU and on a device."""

from __future__ import annotations

import torch

from torchviz_cnn.topk.tally import _all, _few


def test_all_places_give_what_the_strong_ones_give() -> None:
    """A device looks for the places of all maxima, and a CPU for those of strong ones: the same is kept."""
    numbers = torch.Generator().manual_seed(0)
    for _ in range(200):
        maps = torch.randint(-3, 4, (5, 7, 3, 4), generator=numbers).float()
        maps[torch.rand(maps.shape, generator=numbers) < 0.02] = torch.nan
        values = maps.flatten(2).amax(2)
        strong = values > torch.randint(-2, 4, (7,), generator=numbers)
        few, every = (of(strong, values, maps, torch.arange(10, 15)) for of in (_few, _all))
        assert few is not None
        assert all(torch.equal(a, b) for a, b in zip(vars(few).values(), vars(every).values(), strict=True))
