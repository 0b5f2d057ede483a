"""Two processes that train one network: the first alone looks and writes, and the weights are the same as without."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing, nn

import torchviz_cnn as tvc
from tests.networks import images

pytestmark = pytest.mark.slow


def train(rank: int, port: int, folder: str, watching: bool) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.AdaptiveAvgPool2d(1))
    net.extend([nn.Flatten(), nn.Linear(8, 2)])
    model = nn.parallel.DistributedDataParallel(net)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    watch = tvc.Watch(model, images(2, 16), f"{folder}/run", every=2, target=1) if watching else None
    torch.manual_seed(1 + rank)
    for step in range(5):
        loss = nn.functional.cross_entropy(model(torch.randn(4, 3, 16, 16)), torch.tensor([0, 1, 0, 1]))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        if watch is not None:
            assert watch.step(step, loss=loss) == (rank == 0 and step % 2 == 0)
    if watch is not None:
        watch.close()
        assert watch.steps == ([0, 2, 4] if rank == 0 else [])
    torch.save(net.state_dict(), f"{folder}/{rank}-{watching}.pt")
    distributed.destroy_process_group()


def test_the_first_process_looks_and_all_train_on_as_without(tmp_path: Path) -> None:
    for watching in (False, True):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        multiprocessing.spawn(train, (port, str(tmp_path), watching), 2)  # type: ignore[attr-defined, no-untyped-call]
    for rank in range(2):
        alone, watched = (torch.load(tmp_path / f"{rank}-{watching}.pt") for watching in (False, True))
        assert all(torch.equal(tensor, watched[name]) for name, tensor in alone.items())
