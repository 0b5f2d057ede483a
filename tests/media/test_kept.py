"""Images that are kept are those of the dataset itself, to the bit; each is read once while there is room for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

import torchviz_cnn as tvc
from tests.media.shards.server import serving
from tests.media.shards.tars import write_shards
from torchviz_cnn.core.errors import ImageError
from torchviz_cnn.media.datasets.kept import KeptImages, kept
from torchviz_cnn.media.datasets.source import ImageSource

SMALL = tvc.Preprocess((16, 16), resize=18)


class Counted(Dataset[Any]):
    """Items that tell how often each was asked for."""

    def __init__(self, items: Sequence[Any]) -> None:
        self.given, self.asked = items, [0] * len(items)

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, index: int) -> Any:
        self.asked[index] += 1
        return self.given[index]


def pixels(*shape: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def folder_of(place: Path, *shape: int, count: int = 3) -> Path:
    """PNG files of this many photos in the folder of a class."""
    (place / "a").mkdir(parents=True)
    for number in range(count):
        Image.fromarray(np.roll(pixels(*shape), number)).save(place / "a" / f"{number}.png")
    return place


def _imagefolder(place: Path) -> ImageSource:
    steps = [transforms.Resize(18), transforms.CenterCrop(16), transforms.ToTensor()]
    return ImageSource(ImageFolder(str(folder_of(place, 20, 30, 3)), transforms.Compose(steps)))


def _odd_transform(place: Path) -> ImageSource:
    how = transforms.Compose([transforms.Pad(2), transforms.ToTensor()])
    return ImageSource(ImageFolder(str(folder_of(place, 20, 30, 3)), how))


SOURCES: dict[str, Any] = {
    "folder": lambda place: ImageSource(folder_of(place, 20, 30, 3), SMALL),
    "grey": lambda place: ImageSource(folder_of(place, 20, 30), tvc.Preprocess((16, 16), mean=(0.5,), std=(0.5,))),
    "four bands": lambda place: ImageSource(
        folder_of(place, 20, 30, 4), tvc.Preprocess((16, 16), mean=(0.5,) * 4, std=(0.5,) * 4, bands=(2, 1, 0))
    ),
    "a folder with a function of its own": lambda place: ImageSource(
        tvc.PhotoFolder(folder_of(place, 20, 30, 3), transforms.ToTensor())
    ),
    "subset": lambda place: ImageSource(Subset(tvc.PhotoFolder(folder_of(place, 20, 30, 3)), [2, 0, 1]), SMALL),  # type: ignore[arg-type]
    "shards": lambda place: ImageSource(write_shards(place, 2, 2), SMALL),
    "tensors": lambda place: ImageSource(Counted(list(torch.rand(3, 3, 16, 16)))),
    "arrays": lambda place: ImageSource(Counted([(pixels(20, 30, 3), 1), {"image": pixels(9, 8, 3)}]), SMALL),
    "ImageFolder": _imagefolder,
    "a transform that is not understood": _odd_transform,
}


@pytest.mark.parametrize("limit", [0, 4000, 1 << 27])
@pytest.mark.parametrize("kind", SOURCES)
def test_what_is_kept_is_what_the_dataset_gives(kind: str, limit: int, tmp_path: Path) -> None:
    source = SOURCES[kind](tmp_path / "data")
    again = KeptImages(source, limit)
    for index in [*range(len(source)), 0, 0, *range(len(source))]:
        (x, label), view = again.item(index), again.view(index)
        (expected, expected_label), expected_view = source.item(index), source.view(index)
        assert torch.equal(x, expected)
        assert label == expected_label
        assert np.array_equal(np.asarray(view.photo), np.asarray(expected_view.photo))
        assert (view.box, view.input_size) == (expected_view.box, expected_view.input_size)


@pytest.mark.parametrize("item", [pixels(20, 30, 3), (Image.fromarray(pixels(20, 30)), 1), torch.rand(3, 16, 16)])
def test_each_image_is_read_once(item: Any) -> None:
    dataset = Counted([item] * 4)
    source = kept(ImageSource(Subset(dataset, [0, 1, 2]), SMALL))
    for _ in range(3):
        for index in range(3):
            source.item(index)
            source.view(index)
    assert dataset.asked == [1, 1, 1, 0]
    assert kept(source) is source
    assert kept(None) is None


def test_no_more_is_kept_than_there_is_room_for() -> None:
    """What was asked for last stays: of photos of 20 x 30 pixels, 2,400 bytes each, three."""
    dataset = Counted([pixels(20, 30, 3)] * 5)
    source = KeptImages(ImageSource(dataset, SMALL), 3 * 2400)
    for index in (0, 1, 2, 0, 3):
        source.view(index)
    assert dataset.asked == [1, 1, 1, 1, 0]
    for index in (0, 2, 3, 0, 4):
        source.view(index)
    assert dataset.asked == [1, 1, 1, 1, 1]
    source.view(1)
    assert dataset.asked == [1, 2, 1, 1, 1]
    alone = Counted([pixels(20, 30, 3)] * 2)  # too large to be kept
    source = KeptImages(ImageSource(alone, SMALL), 100)
    for index in (0, 1, 0, 1):
        source.item(index)
        source.view(index)
    assert alone.asked == [2, 2]


def test_a_broken_photo_stays_broken(tmp_path: Path) -> None:
    place = folder_of(tmp_path, 20, 30, 3)
    (place / "a" / "1.png").write_bytes(b"no picture")
    source = kept(ImageSource(place, SMALL))
    for _ in range(2):
        with pytest.raises(ImageError, match=r"1\.png is not an image"):
            source.item(1)
        with pytest.raises(ImageError, match=r"1\.png is not an image"):
            source.view(1)
        assert source.view(0).photo.size == (30, 20)


def test_over_a_network_photos_are_asked_for_together_and_once(tmp_path: Path) -> None:
    write_shards(tmp_path / "data", 2, 6)
    with serving(tmp_path / "data") as server:
        shards = tvc.TarShards(f"{server.address}/train-{{000000..000001}}.tar", index=tmp_path, preprocess=SMALL)
        source = kept(ImageSource(shards))
        shards.prepare()
        server.requests.clear()
        for _ in range(3):
            for index in source.fetched(range(12)):
                source.item(index)
                source.view(index)
    assert len(server.requests) <= 1 + 2  # whether the server gives parts, and one request for each shard


def test_what_is_kept_of_an_image_is_no_reason_to_leave_out_what_is_asked_for_next(tmp_path: Path) -> None:
    write_shards(tmp_path / "data", 1, 12)
    with serving(tmp_path / "data") as server:
        shards = tvc.TarShards(f"{server.address}/train-000000.tar", index=tmp_path, preprocess=SMALL)
        shards.prepare()
        source = KeptImages(ImageSource(shards))
        for index in source.fetched(range(4), inputs=False, views=True):
            source.view(index)
        for index in source.fetched(range(8, 12)):
            source.item(index)
        for inputs, views, requests in ((True, False, 1), (False, True, 1), (True, True, 0)):
            server.requests.clear()
            for index in source.fetched(range(12), inputs=inputs, views=views):
                if inputs:
                    source.item(index)
                if views:
                    source.view(index)
            assert len(server.requests) == requests
