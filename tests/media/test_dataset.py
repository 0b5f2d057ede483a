"""Items and labels of datasets as people have them: the same answer whatever their container."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

import torchviz_cnn as tvc
from tests.media.test_bands import pixels
from torchviz_cnn.core.errors import ImageError, ImageWarning, InputError, SkippedWarning
from torchviz_cnn.core.warn import say_once
from torchviz_cnn.media.datasets.source import ImageSource
from torchviz_cnn.media.images import Preprocess
from torchviz_cnn.topk.written.storing import origin_of

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
    for subset in (Subset(folder, places), Subset(Subset(folder, places), range(len(places)))):
        with pytest.raises(InputError, match=words):
            ImageSource(subset)
    with pytest.raises(InputError, match=r"place 2, and its Subset has 2 images"):
        ImageSource(Subset(Subset(folder, [-1, 0]), [2]))
    with pytest.raises(InputError, match=r"place 3, and its list has 3 images"):
        ImageSource(Subset([torch.zeros(3, 4, 4)] * 3, [3]))  # type: ignore[arg-type]
    assert ImageSource(Subset(folder, [-3, 2])).name(0) == "a.png"


class Plain(Dataset[Any]):
    """Inputs that tell their places; it has no length, and `Subset` does not need one."""

    def __getitem__(self, index: int) -> Any:
        return torch.full((3, 4, 4), float(index))


class Counted(Plain):
    def __len__(self) -> int:
        return 8


class Own(Dataset[Any]):
    """A dataset with attributes that are called as those of a `Subset`, and mean something else."""

    def __init__(self, dataset: Any, indices: Any) -> None:
        self.dataset, self.indices = dataset, indices

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        return torch.full((3, 4, 4), float(index))


def values_of(source: ImageSource) -> list[float]:
    return [float(source.item(place)[0].mean()) for place in range(len(source))]


@pytest.mark.parametrize(
    "places",
    [
        [3, 4],
        (3, 4),
        range(3, 5),
        np.array([3, 4]),
        np.array([3, 4], object),
        np.array([3, 4], np.uint64),
        [np.int64(3), np.uint8(4)],
        torch.tensor([3, 4]),
        [torch.tensor(3), torch.tensor(4)],
        {0: 3, 1: 4},
    ],
)
@pytest.mark.parametrize("whole", [Plain(), Counted()])
def test_places_of_a_subset_however_they_are_written(whole: Any, places: Any) -> None:
    source = ImageSource(Subset(whole, places))
    assert values_of(source) == [3, 4]
    assert [source.name(place) for place in range(2)] == ["image 3", "image 4"]
    assert values_of(ImageSource(Subset(Subset(whole, places), [1, 0]))) == [4, 3]


def test_places_that_are_not_used_may_be_missing() -> None:
    inner = Subset(Counted(), [5, 60, -1])
    assert values_of(ImageSource(Subset(inner, [0]))) == [5]
    assert ImageSource(Subset(inner, [2])).name(0) == "image 7"
    with pytest.raises(InputError, match=r"the Subset of 3 places has the place 60, and its Counted has 8 images"):
        ImageSource(Subset(inner, [0, 1]))


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ([[0, 1], [2]], "whole numbers, not a list"),
        ([(0, 1), (2, 3)], "whole numbers, not a tuple"),
        (np.array([[1], [2]]), "whole numbers, not a ndarray"),
        ([0.0], "whole numbers, not a float"),
        (["a"], "whole numbers, not a str"),
        ([None, 1], "whole numbers, not a NoneType"),
        (np.array([True, False]), "whole numbers, not bool"),
        (torch.tensor([True]), "whole numbers, not bool"),
        ([2**70], "the Subset of 1 place has the place 1180591620717411303424"),
        ({5: 1}, "a Subset of a Counted is given by its places in order, and a dict has none at 0"),
    ],
)
def test_what_are_no_places_is_told_in_a_sentence(places: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        ImageSource(Subset(Counted(), places))


@pytest.mark.parametrize("dataset", [None, "cifar10", Counted()])
@pytest.mark.parametrize("indices", [None, [10, 20], {"a": [0], "b": [1]}, [[0, 1], [2]], [5]])
def test_attributes_of_another_meaning_make_no_subset(dataset: Any, indices: Any) -> None:
    source = ImageSource(Own(dataset, indices))
    source.prepare(None)
    assert values_of(source) == [0, 1]
    assert [source.name(place) for place in range(2)] == ["image 0", "image 1"]
    assert source.view(1).photo.size == (4, 4)


def mirrored(item: Any) -> Any:
    return ImageOps.mirror(item[0]), item[1]


class MirroredPart(Subset[Any]):
    def __getitem__(self, index: Any) -> Any:
        return mirrored(super().__getitem__(index))  # type: ignore[no-untyped-call]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self[index] for index in indices]


class MirroredFolder(tvc.PhotoFolder):
    def __getitem__(self, index: int) -> Any:
        return mirrored(super().__getitem__(index))


class MirroredPhotos(tvc.PhotoFolder):
    def photo(self, index: int) -> Image.Image:
        return ImageOps.mirror(super().photo(index))


class MirroredAround(Own):
    def __getitem__(self, index: int) -> Any:
        return mirrored(self.dataset[self.indices[index]])


class Replaced(Subset[Any]):
    """Its method is put in after the class was made."""


Replaced.__getitem__ = MirroredAround.__getitem__  # type: ignore[assignment, method-assign]
MIRRORED: dict[str, Any] = {
    "a class derived from Subset": lambda folder: MirroredPart(folder, [0, 1]),
    "a part of that": lambda folder: Subset(MirroredPart(folder, [0, 1]), [0, 1]),
    "a class around a dataset": lambda folder: MirroredAround(folder, [0, 1]),
    "a class derived from PhotoFolder": lambda folder: MirroredFolder(folder.path),
    "one with its own photo": lambda folder: MirroredPhotos(folder.path),
}


@pytest.mark.parametrize("how", MIRRORED)
def test_items_are_what_the_dataset_gives(how: str, tmp_path: Path) -> None:
    photos = [pixels(20, 30, 3) for _ in range(2)]
    for name, photo in zip("ab", photos, strict=True):
        Image.fromarray(photo).save(tmp_path / f"{name}.png")
    dataset = MIRRORED[how](tvc.PhotoFolder(tmp_path))
    source, unchanged = ImageSource(dataset, PLAIN), ImageSource(tmp_path, PLAIN)
    for place, several in enumerate(source.items([0, 1])):
        expected = PLAIN(Image.fromarray(photos[place][:, ::-1]))
        assert torch.equal(source.item(place)[0], expected)
        assert not isinstance(several, Exception)
        assert torch.equal(PLAIN.scaled(several[0]), expected)  # type: ignore[arg-type]
        view = source.view(place)
        assert np.array_equal(np.asarray(view.photo), photos[place][:, ::-1])
        assert source.frame(place, (6, 8)) == (view.photo.size, view.box)
    assert source.listing()["checksum"] != unchanged.listing()["checksum"]
    assert "folder" not in origin_of(source)
    with pytest.raises(InputError, match="decode='cuda' reads files"):
        ImageSource(dataset, PLAIN, "cuda")


def test_a_method_that_was_put_into_a_class_counts(tmp_path: Path) -> None:
    photo = pixels(20, 30, 3)
    Image.fromarray(photo).save(tmp_path / "a.png")
    part = Replaced.__new__(Replaced)
    part.dataset, part.indices = tvc.PhotoFolder(tmp_path), [0]
    expected = PLAIN(Image.fromarray(photo[:, ::-1]))
    assert torch.equal(ImageSource(part, PLAIN).item(0)[0], expected)


def test_names_come_from_where_places_are_certain(tmp_path: Path) -> None:
    for name in "ab":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    folder = tvc.PhotoFolder(tmp_path)
    names = {how: [ImageSource(make(folder), PLAIN).name(place) for place in (0, 1)] for how, make in MIRRORED.items()}
    files, numbers = ["a.png", "b.png"], ["image 0", "image 1"]
    assert list(names.values()) == [numbers, numbers, numbers, files, files]


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


class Transforms(Own):
    """Another dataset's photos, prepared in its own way."""

    def __getitem__(self, index: int) -> Any:
        photo, label = self.dataset[self.indices[index]]
        return transforms.functional.to_tensor(photo.crop((0, 0, 16, 12))), label


class Upright(ImageFolder):  # type: ignore[misc]
    """Photos turned upright, where torchvision leaves them on their side."""

    def __getitem__(self, index: int) -> Any:
        photo = ImageOps.exif_transpose(Image.open(self.samples[index][0]))
        return photo if self.transform is None else self.transform(photo), self.samples[index][1]


def turned_photos(folder: Path, count: int = 3) -> Path:
    turned = Image.Exif()
    turned[0x112] = 6
    (folder / "a").mkdir()
    for number in range(count):
        Image.fromarray(pixels(24, 41 + number, 3)).save(folder / "a" / f"{number}.png", exif=turned)
    return folder


@pytest.mark.parametrize("how", [PLAIN, None])
def test_a_dataset_that_prepares_photos_of_another_shows_its_inputs(tmp_path: Path, how: Any) -> None:
    for dataset in (ImageFolder(str(turned_photos(tmp_path))), tvc.PhotoFolder(tmp_path)):
        source = ImageSource(Transforms(dataset, [0, 1]), how)
        view = source.view(1)
        assert torch.equal(source.item(1)[0], source.dataset[1][0])
        assert (view.photo.size, view.box, view.input_size) == ((16, 12), (0, 0, 16, 12), (12, 16))
        assert source.frame(1, (12, 16)) == (view.photo.size, view.box)
        assert source.categories is None


def test_a_class_that_reads_its_files_itself_is_shown_as_it_reads_them(tmp_path: Path) -> None:
    steps = transforms.Compose([transforms.Resize((24, 24)), transforms.ToTensor()])
    folder = str(turned_photos(tmp_path))
    prepared, photos = ImageSource(Upright(folder, steps)), ImageSource(Upright(folder), PLAIN)
    for source, size in ((prepared, (24, 24)), (photos, (24, 41))):
        view = source.view(0)
        assert view.photo.size == size
        assert source.frame(0, (24, 24)) == (view.photo.size, view.box)
        assert source.name(0).endswith("0.png")
        assert source.categories == ("a",)


def test_places_from_the_end_have_the_photos_of_their_files(tmp_path: Path) -> None:
    steps = transforms.Compose([transforms.Resize((24, 24)), transforms.ToTensor()])
    whole = ImageFolder(str(turned_photos(tmp_path)), steps)
    source, expected = ImageSource(Subset(whole, [-1, -3])), ImageSource(whole)
    for place, same in ((0, 2), (1, 0)):
        assert source.name(place) == expected.name(same)
        assert source.frame(place, (24, 24)) == expected.frame(same, (24, 24))
        assert source.view(place).photo.tobytes() == expected.view(same).photo.tobytes()


@pytest.mark.parametrize("last", [[], [transforms.PILToTensor()], [transforms.ToTensor(), transforms.ToPILImage()]])
def test_a_transform_that_gives_photos_is_followed_by_the_networks_own_preparation(tmp_path: Path, last: Any) -> None:
    """What the network sees is a part of the photo that the transform gives, not of the file."""
    how = Preprocess((12, 12), resize=12, mean=(0.0,) * 3, std=(1.0,) * 3)
    steps = transforms.Compose([transforms.Resize((15, 25)), *last])
    source = ImageSource(ImageFolder(str(turned_photos(tmp_path)), steps), how)
    view = source.view(0)
    assert source.item(0)[0].shape == (3, 12, 12)
    assert (view.photo.size, view.box, view.input_size) == ((25, 15), how.seen_box(25, 15), (12, 12))
    assert source.frame(0, (12, 12)) == (view.photo.size, view.box)
