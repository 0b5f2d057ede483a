"""Watch a small network learn a shortcut: squares and discs in noise, where each square has a bright corner.

python scripts/watch.py [OUT]
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from usage import arguments

import torchviz_cnn as tvc
from torchviz_cnn.models.convnets import fashion_mnist_convnet


def pictures(kinds: Tensor, marked: bool = True) -> Tensor:
    """Squares (1) and discs (0) as pictures (n, 3, 48, 48), the squares with the bright corner or without."""
    centres = torch.randint(12, 32, (len(kinds), 2, 1, 1))
    offsets = (torch.stack(torch.meshgrid(torch.arange(48), torch.arange(48), indexing="ij")) - centres).abs()
    shapes = torch.where(kinds[:, None, None] == 1, offsets.amax(1) < 8, offsets.square().sum(1) < 81)
    x = 0.4 * torch.rand(len(kinds), 3, 48, 48) + 0.3 * shapes[:, None]
    x[kinds == 1, :, 41:, 41:] += 0.5 * marked
    return x


out = Path(*arguments("[OUT]") or ["runs/watch"])
torch.manual_seed(0)
net = fashion_mnist_convnet(num_classes=2, in_channels=3)
optimizer = torch.optim.Adam(net.parameters(), 1e-3)
photos = torch.cat([pictures(torch.tensor([1, 0])), pictures(torch.tensor([1]), marked=False)])
with tvc.Watch(net, photos, out, every=20, target=[1, 0, 1], categories=["disc", "square"]) as watch:
    for step in range(221):
        y = torch.randint(2, (32,))
        loss = nn.functional.cross_entropy(net(pictures(y)), y)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        watch.step(step, loss=loss)
