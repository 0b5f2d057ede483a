"""Batches that are read: together where the dataset can, photos in 8 bits, and always the same inputs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Subset

import torchviz_cnn as tvc
from tests import networks
from torchviz_cnn.core.errors import InputError, SkippedWarning
from torchviz_cnn.media.datasets.photo_folder import PhotoFolder
from torchviz_cnn.media.datasets.source import ImageSource
from torchviz_cnn.runs.ranks import Ranks
from torchviz_cnn.topk.pieces.cutting import Batches, _Shares
from torchviz_cnn.topk.reading import Batch, _Items, read_batches, skip_reason

CPU = torch.device("cpu")
SMALL = tvc.Preprocess((20, 24), resize=26)


def pixels(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


class Store(Dataset[Any]):
    """An object store: each call takes as long, whatever it asks for, and is counted therefore."""

    def __init__(self, count: int = 40) -> None:
        self.count = count
        self.calls = list[list[int]]()

    def __len__(self) -> int:
        return self.count

    def _photo(self, index: int) -> Any:
        return Image.fromarray(pixels(30, 40 + index % 5, 3, seed=index))

    def __getitem__(self, index: int) -> Any:
        self.calls.append([index])
        return self._photo(index), index % 3


class Together(Store):
    """One with PyTorch's `__getitems__`, as Hugging Face's and LitData's datasets have."""

    def __getitems__(self, places: list[int]) -> list[Any]:
        self.calls.append(places)
        return [(self._photo(place), place % 3) for place in places]


class Rows(Store):
    """As Hugging Face's datasets answer: a dict for each item."""

    def __getitem__(self, index: int) -> Any:
        return {"image": self._photo(index), "label": index % 3}

    def __getitems__(self, places: list[int]) -> list[Any]:
        self.calls.append(places)
        return [self[place] for place in places]


class Mirrored(Together):
    """Changes what an item is, and not what several are."""

    def __getitem__(self, index: int) -> Any:
        photo, label = super().__getitem__(index)
        return photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT), label


class Broken(Together):
    """Its seventh photo is broken, and with it every call that asks for that."""

    def _photo(self, index: int) -> Any:
        if index == 7:
            raise OSError("truncated")
        return super()._photo(index)


def batches(dataset: Any, preprocess: Any = SMALL, size: int = 16, workers: int = 0) -> list[Batch]:
    source = ImageSource(dataset, preprocess)
    places = [range(at, min(at + size, len(source))) for at in range(0, len(source), size)]
    return list(read_batches(source, range(len(places)), places, workers, CPU))


def inputs(several: Sequence[Batch]) -> Tensor:
    return torch.cat([batch.on(CPU) for batch in several if batch.x is not None])


def labels(several: Sequence[Batch]) -> list[int | None]:
    return [label for batch in several for label in batch.labels]


@pytest.mark.parametrize(
    "dataset", [Together(), Rows(), Subset(Together(60), range(40)), Subset(Subset(Rows(), range(40)), range(40))]
)
def test_whole_batches_are_asked_for(dataset: Any) -> None:
    expected = batches(Store())
    read = batches(dataset)
    assert torch.equal(inputs(read), inputs(expected))
    assert labels(read) == labels(expected) == [place % 3 for place in range(40)]
    store = dataset
    while isinstance(store, Subset):
        store = store.dataset
    assert store.calls[-3:] == [list(range(16)), list(range(16, 32)), list(range(32, 40))]


def test_a_class_that_changes_single_items_is_read_item_by_item() -> None:
    for dataset in (Mirrored(), Subset(Mirrored(), range(40))):
        expected = torch.stack([SMALL(Mirrored()[place][0]) for place in range(40)])
        assert torch.equal(inputs(batches(dataset)), expected)


def test_a_broken_item_is_named_and_the_others_of_its_batch_are_read(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "torchviz_cnn"):
        read = batches(Broken())
    assert read[0].skipped == {7: "image 7: truncated"}
    assert [batch.images.tolist() for batch in read] == [[*range(7), *range(8, 16)], [*range(16, 32)], [*range(32, 40)]]
    assert caplog.text.count("one by one") == 1
    assert "images 0 to 15" in caplog.text
    net = tvc.Network(networks.vgg_like(), SMALL)
    with pytest.warns(SkippedWarning, match="1 of 40 images"):
        top = tvc.top_activations(net, Broken(), ["features.2"], k=2)
    assert top.skipped == {7: "image 7: truncated"}


@pytest.mark.parametrize(
    ("answer", "what"), [([1, 2], "not 2"), ({"image": []}, "not a dict"), (None, "not a NoneType")]
)
def test_a_wrong_number_of_items_is_an_error(answer: Any, what: str) -> None:
    class Wrong(Together):
        def __getitems__(self, places: list[int]) -> list[Any]:
            return answer  # type: ignore[no-any-return]

    with pytest.raises(InputError, match=f"__getitems__ of .*Wrong.* gives a list of 16 items, {what}"):
        batches(Wrong())


@pytest.mark.parametrize("name", ["a b.jpg", "a\nb.jpg", "a  b.jpg"])
def test_a_name_is_said_once(name: str) -> None:
    assert skip_reason(name, OSError(f"{name} is broken")) == "a b.jpg is broken"
    assert skip_reason(name, OSError("it is broken")) == f"{name}: it is broken"


def test_the_batch_that_is_read_ahead_is_found_without_a_walk_through_all() -> None:
    """With a walk, a batch of a dataset of 10 million images waited for 0.4 s."""

    class Counted(_Shares):
        looked_at = 0

        def __getitem__(self, place: Any) -> Any:
            Counted.looked_at += 1
            return super().__getitem__(place)

    batches = Batches(0, 3_200_000, 32, 50)
    numbers = Counted(batches, Ranks(1, 2))
    asked = list[Sequence[int]]()

    def items(places: Sequence[int], ahead: Sequence[int]) -> list[Any]:
        asked.append(ahead)
        return [OSError("broken")] * len(places)

    source: Any = SimpleNamespace(scaling=None, items=items, name=str)
    place = len(numbers) - 2
    assert len(_Items(source, batches, numbers)[numbers[place]].skipped) == 32
    assert asked == [batches[numbers[place + 1]]]
    assert Counted.looked_at < 40


def test_an_error_of_memory_is_no_broken_item() -> None:
    class Full(Together):
        def __getitems__(self, places: list[int]) -> list[Any]:
            raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        batches(Full())


# In 8 bits


def as_before(how: tvc.Preprocess, photo: Any) -> Tensor:
    """What a Preprocess gave when it scaled values itself: numpy's arithmetic on the fitted picture."""
    fitted = [how.prepare(photo)] if len(how.mean) in (1, 3) else how._fitted_bands(photo)
    values = np.stack([np.asarray(picture) for picture in fitted], 2) if len(fitted) > 1 else np.asarray(fitted[0])
    values = values.reshape(*how.size, -1).transpose(2, 0, 1).astype(np.float32)
    mean, std = (np.array(stat, np.float32)[:, None, None] for stat in (how.mean, how.std))
    return torch.from_numpy((values / np.float32(255) - mean) / std)


@pytest.mark.parametrize("geometry", ["crop", "stretch", "pad"])
@pytest.mark.parametrize("bands", [1, 3, 5])
def test_inputs_are_those_that_were_scaled_at_once(geometry: Any, bands: int) -> None:
    stats = (0.485, 0.456, 0.406, 0.3, 0.1)[:bands], (0.229, 0.224, 0.225, 0.3, 0.7)[:bands]
    how = tvc.Preprocess((20, 24), geometry, 26, *stats)
    photos = [pixels(30, 40 + seed, bands if bands > 3 else 3, seed=seed) for seed in range(6)]
    (batch,) = batches(photos, how)
    assert batch.x is not None
    assert (batch.x.dtype, tuple(batch.x.shape)) == (torch.uint8, (6, bands, 20, 24))
    expected = torch.stack([as_before(how, photo) for photo in photos])
    assert torch.equal(batch.on(CPU), expected)
    assert torch.equal(torch.stack([how(photo) for photo in photos]), expected)
    for dtype in (torch.float64, torch.bfloat16):
        assert torch.equal(batch.on(CPU, dtype), expected.to(dtype))


@pytest.mark.parametrize("geometry", ["crop", "stretch", "pad"])
def test_inputs_of_real_photos(geometry: Any, data: Path) -> None:
    how = tvc.Preprocess((224, 224), geometry)
    folder: Any = PhotoFolder(data / "imagenet_samples")
    some = range(0, len(folder), 50)
    read = batches(Subset(folder, some), how, 4, workers=1)
    assert torch.equal(inputs(read), torch.stack([as_before(how, folder.stored(place)) for place in some]))


def test_every_8_bit_value_and_no_change_of_the_pixels() -> None:
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).expand(3, -1, -1).contiguous()
    how = tvc.Preprocess((16, 16), "stretch")
    before = values.clone()
    scaled = how.scaled(values)
    assert torch.equal(values, before)
    assert torch.equal(scaled, as_before(how, values.permute(1, 2, 0).numpy()))
    assert torch.equal(how.scaled(values[None].expand(4, -1, -1, -1)), scaled.expand(4, -1, -1, -1))


@pytest.mark.filterwarnings("ignore::torchviz_cnn.core.errors.ImageWarning")
def test_photos_of_16_bits_keep_their_values() -> None:
    photo = np.linspace(0, 4095, 30 * 40 * 3).reshape(30, 40, 3).astype(np.uint16)
    for window in (None, (100.0, 3000.0)):
        how = tvc.Preprocess((20, 24), resize=26, window=window)
        (batch,) = batches([photo], how)
        assert torch.equal(batch.on(CPU)[0], as_before(how, photo))


def test_inputs_of_other_kinds_stay_as_they_are() -> None:
    class Shifted(tvc.Preprocess):
        def __call__(self, photo: Any) -> Tensor:
            return super().__call__(photo) + 1

    photo, ready = Image.fromarray(pixels(30, 40, 3)), torch.rand(3, 20, 24, dtype=torch.float64)
    for dataset, preprocess, expected in (
        ([photo], Shifted((20, 24), resize=26), (SMALL(photo) + 1)[None]),
        (
            [photo],
            lambda picture: torch.full((3, 4, 4), picture.width, dtype=torch.uint8),
            torch.full((1, 3, 4, 4), 40),
        ),
        ([ready], SMALL, ready[None]),
        ([photo, ready.float()], SMALL, torch.stack([SMALL(photo), ready.float()])),
        ([ready > 0.5], SMALL, (ready > 0.5)[None]),
    ):
        (batch,) = batches(dataset, preprocess)
        assert batch.scaling is None
        x = batch.on(CPU)
        assert torch.equal(x, expected.to(x.dtype))
        source = ImageSource(dataset, preprocess)
        assert torch.equal(torch.stack([source.item(place)[0] for place in range(len(source))]), x)


def test_a_folder_that_prepares_its_photos_itself(tmp_path: Path) -> None:
    for seed in range(3):
        Image.fromarray(pixels(30, 40, 3, seed=seed)).save(tmp_path / f"{seed}.png")
    other = tvc.Preprocess((12, 12), "stretch")
    (batch,) = batches(PhotoFolder(tmp_path, other), SMALL)
    assert batch.scaling is other
    assert torch.equal(batch.on(CPU), torch.stack([PhotoFolder(tmp_path, other)[i][0] for i in range(3)]))
