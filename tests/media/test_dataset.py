"""Items and labels of datasets as people have them: the same answer whatever their container."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

import torchviz_cnn as tvc
from tests.media.test_bands import pixels
from torchviz_cnn.core.errors import ImageError, ImageWarning, InputError, SkippedWarning
from torchviz_cnn.core.warn import say_once
from torchviz_cnn.media.datasets.source import ImageSource
from torchviz_cnn.media.images import Preprocess

PLAIN = Preprocess((6, 8), "stretch", mean=(0.0,) * 3, std=(1.0,) * 3)


@pytest.fixture(autouse=True)
def _said_anew() -> Iterator[None]:
    say_once.cache_clear()
    yield
    say_once.cache_clear()


@pytest.mark.parametrize(
    "label", [1, np.int64(1), np.array([1]), np.array(1), torch.tensor(1), torch.tensor([[1]]), [1], True, 1.0, "cat"]
)
def test_one_class_however_it_is_written(label: Any) -> None:
    class Named(list[Any]):
        classes = ("dog", "cat")

    assert ImageSource(Named([(torch.zeros(3, 6, 8), label)])).item(0)[1] == 1


@pytest.mark.parametrize(
    "label", [np.eye(3)[1], [0, 1, 0], {"boxes": []}, "cat", 1.5, float("nan"), torch.zeros(4, 4), ()]
)
def test_what_is_no_class_is_left_out_and_said(label: Any) -> None:
    source = ImageSource([(torch.zeros(3, 6, 8), label)] * 2)
    with pytest.warns(SkippedWarning, match="labels are left out"):
        assert source.item(0)[1] is None
    assert source.item(1)[1] is None  # said once


@pytest.mark.parametrize("label", [None, -1, np.int64(-1), 2**70])
def test_no_label_is_no_news(label: Any) -> None:
    assert ImageSource([(torch.zeros(3, 6, 8), label)]).item(0)[1] is None


def test_whole_numbers_are_photos_in_every_order() -> None:
    values = pixels(6, 8, 3)
    expected = PLAIN(Image.fromarray(values))
    first = np.ascontiguousarray(values.transpose(2, 0, 1))
    for item in (values, first, torch.from_numpy(first), Image.fromarray(values), (first, 1), {"image": first}):
        source = ImageSource([item], PLAIN)
        assert torch.equal(source.item(0)[0], expected)
        assert np.array_equal(np.asarray(source.view(0).photo), values)
    with pytest.warns(ImageWarning, match="0 to 255"):
        assert torch.equal(ImageSource([torch.from_numpy(first).long()], PLAIN).item(0)[0], expected)
    for item, error in ((first, InputError), (pixels(3, 8, 3), ImageError)):
        with pytest.raises(error, match=r"\(3, [68], [38]\)"):
            ImageSource([item], None if error is InputError else PLAIN).item(0)


def test_a_part_of_a_folder_is_a_subset(tmp_path: Path) -> None:
    for name in "abc":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    folder = tvc.PhotoFolder(tmp_path)
    with pytest.raises(InputError, match=r"one photo at a time.*Subset\(dataset, range\(100\)\)"):
        folder[:2]  # type: ignore[index]
    source = ImageSource(Subset(folder, range(1, 3)), PLAIN)
    assert [source.name(place) for place in range(len(source))] == ["b.png", "c.png"]


def test_a_folder_is_a_dataset_for_pytorch_and_for_mypy(tmp_path: Path) -> None:
    for name in "abc":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    folder = tvc.PhotoFolder(tmp_path, PLAIN)
    dataset: Dataset[tuple[Any, int]] = folder
    loader: DataLoader[tuple[Any, int]] = DataLoader(folder, batch_size=2)
    assert isinstance(dataset, Dataset)
    assert [(tuple(x.shape), labels.tolist()) for x, labels in loader] == [
        ((2, 3, 6, 8), [-1, -1]),
        ((1, 3, 6, 8), [-1]),
    ]
    assert len(Subset(dataset, [2, 0])) == 2
    assert len(dataset + dataset) == 6
    copy = pickle.loads(pickle.dumps(folder))
    assert (len(copy), list(copy.names)) == (3, ["a.png", "b.png", "c.png"])
    assert len(list(iter(folder))) == 3


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ([0, 3], r"the Subset of 2 places has the place 3, and its PhotoFolder has 3 images, 0 to 2"),
        (range(2, 9), r"the Subset of 7 places has the place 3, and its PhotoFolder has 3 images, 0 to 2"),
        ([-4], r"the Subset of 1 place has the place -4, and its PhotoFolder has 3 images"),
        ([True, False, True], "a Subset of a PhotoFolder is given by places, which are whole numbers, not bool"),
    ],
)
def test_a_subset_of_places_that_there_are_not_is_refused_before_anything_is_read(
    places: Any, words: str, tmp_path: Path
) -> None:
    for name in "abc":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    folder = tvc.PhotoFolder(tmp_path, PLAIN)
    for subset in (Subset(folder, places), Subset(Subset(folder, places), [0])):
        with pytest.raises(InputError, match=words):
            ImageSource(subset)
    with pytest.raises(InputError, match=r"place 2, and its Subset has 2 images"):
        ImageSource(Subset(Subset(folder, [-1, 0]), [2]))
    with pytest.raises(InputError, match=r"place 3, and its list has 3 images"):
        ImageSource(Subset([torch.zeros(3, 4, 4)] * 3, [3]))  # type: ignore[arg-type]
    assert ImageSource(Subset(folder, [-3, 2])).name(0) == "a.png"


def test_a_place_that_a_folder_does_not_have_is_told(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for place in (1, -2):
        with pytest.raises(IndexError, match=f"PhotoFolder has 1 photo, and none at place {place}"):
            tvc.PhotoFolder(tmp_path)[place]


def test_a_folder_of_photos_with_four_bands(tmp_path: Path) -> None:
    values = pixels(6, 8, 4)
    Image.fromarray(values).save(tmp_path / "a.png")
    source = ImageSource(tmp_path, Preprocess((6, 8), "stretch", mean=(0.0,) * 4, std=(1.0,) * 4, bands=(2, 1, 0)))
    np.testing.assert_allclose(source.item(0)[0].permute(1, 2, 0).numpy() * 255, values, atol=1e-3)
    assert np.array_equal(np.asarray(source.view(0).photo), values[..., [2, 1, 0]])


@pytest.mark.parametrize(
    "item",
    [torch.zeros(3, 6, 8, dtype=torch.complex64), torch.zeros(3, 6, 8).to_sparse(), torch.zeros(1, 3, 6, 8), None],
)
def test_what_is_no_image_is_refused(item: Any) -> None:
    with pytest.raises(InputError, match=r"item 0 of the dataset is not an image: .*, where \(C, H, W\) is needed"):
        ImageSource([item]).item(0)


@pytest.mark.parametrize("how", [PLAIN, None])
def test_the_frame_of_a_photo_is_that_of_its_view(tmp_path: Path, how: Any) -> None:
    """torchvision's loader leaves a photo as its camera wrote it; another loader may do what it wants."""
    turned = Image.Exif()
    turned[0x112] = 6
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels(20, 30, 3)).save(tmp_path / "a" / "0.jpg", exif=turned)
    steps = None if how is not None else transforms.Compose([transforms.Resize((16, 16)), transforms.ToTensor()])
    for loader in ({}, {"loader": lambda file: Image.open(file).convert("RGB").resize((50, 10))}):
        source = ImageSource(ImageFolder(str(tmp_path), steps, **loader), how)
        view = source.view(0)
        assert source.frame(0, (16, 16)) == (view.photo.size, view.box)
    assert ImageSource(tmp_path, PLAIN).frame(0, (16, 16))[0] == (20, 30)
