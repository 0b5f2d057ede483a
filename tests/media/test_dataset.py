"""Items and labels of datasets as people have them: the same answer whatever their container."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset

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
    source = ImageSource(Subset(folder, range(1, 3)), PLAIN)  # type: ignore[arg-type]
    assert [source.name(place) for place in range(len(source))] == ["b.png", "c.png"]


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
