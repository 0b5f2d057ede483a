"""The pointing game and energy in the mask, on maps and masks whose answer is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.datasets import ImageFolder

import torchviz_cnn as tvc
from tests.media.shards.server import serving
from tests.media.shards.tars import write_shards
from torchviz_cnn.attribution.metrics.images import AllImages
from torchviz_cnn.attribution.metrics.localisation import Masks
from torchviz_cnn.attribution.metrics.result import Measurement

SIDE = 32


def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def network(geometry: str = "stretch", size: tuple[int, int] = (SIDE, SIDE)) -> tvc.Network:
    preprocess = tvc.Preprocess(size, geometry, SIDE, mean=(0, 0, 0), std=(1, 1, 1))  # type: ignore[arg-type]
    return tvc.Network(model(), preprocess, ("a", "b"))


def images(count: int = 1) -> Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def one_hot(row: int, column: int, size: tuple[int, int] = (SIDE, SIDE)) -> Tensor:
    values = torch.zeros(1, *size)
    values[0, row, column] = 1
    return values


def square(top: int = 8, left: int = 8, side: int = 4, size: tuple[int, int] = (SIDE, SIDE)) -> Tensor:
    mask = torch.zeros(1, *size, dtype=torch.bool)
    mask[0, top : top + side, left : left + side] = True
    return mask


def photo(width: int = 64, height: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def on_columns(left: int, right: int, width: int = 64, height: int = 32, value: int = 255) -> Image.Image:
    """A grey mask of some columns."""
    mask = np.zeros((height, width), np.uint8)
    mask[:, left:right] = value
    return Image.fromarray(mask)


# --- the pointing game -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "column", "tolerance", "value"),
    [
        (8, 8, 0, 1),
        (11, 11, 0, 1),
        (8, 12, 0, 0),
        (8, 12, 1, 1),
        (8, 14, 3, 1),
        (8, 14, 2.9, 0),
        (14, 15, 5, 1),  # 3 down and 4 to the right of the corner at (11, 11)
        (14, 15, 4.9, 0),
    ],
)
def test_a_peak_counts_on_the_object_and_as_near_as_the_tolerance(
    row: int, column: int, tolerance: float, value: float
) -> None:
    measured = tvc.metrics.pointing_game(model(), images(), one_hot(row, column), square(), tolerance=tolerance)
    assert measured.values.tolist() == [value]
    assert measured.better == "higher"


def test_the_area_is_what_a_random_place_gets() -> None:
    mask = square(side=1)
    exact, near = (
        tvc.metrics.pointing_game(model(), images(), one_hot(0, 0), mask, tolerance=tolerance).details["area"]
        for tolerance in (0, 1)
    )
    assert exact.tolist() == pytest.approx([1 / SIDE**2])
    assert near.tolist() == pytest.approx([5 / SIDE**2])  # the pixel, and its four neighbours


def test_of_several_equal_peaks_the_share_that_counts() -> None:
    maps = one_hot(9, 9) + one_hot(9, 10) + one_hot(25, 25) + one_hot(30, 3)
    assert tvc.metrics.pointing_game(model(), images(), maps, square(), tolerance=0).values.tolist() == [0.5]
    flipped = tvc.metrics.pointing_game(model(), images(), maps.flip(1, 2), square().flip(1, 2), tolerance=0)
    assert flipped.values.tolist() == [0.5]


def test_the_tolerance_is_in_pixels_of_the_photo() -> None:
    """Of an input of 32 x 32, which a photo of 320 x 320 became, each pixel is ten of the photo."""
    mask = np.zeros((320, 320), bool)
    mask[:, :100] = True
    maps = one_hot(5, 11)  # its middle is at column 115, between two pixels that are equally strong
    for tolerance, value in ((15, 0.5), (16, 1), (14, 0)):
        measured = tvc.metrics.pointing_game(network(), [photo(320, 320)], maps, [mask], tolerance=tolerance)
        assert measured.values.tolist() == [value]


@pytest.mark.parametrize(
    ("maps", "reason"),
    [
        (torch.zeros(1, SIDE, SIDE), "all zeros"),
        (-torch.ones(1, SIDE, SIDE), "no positive value"),
        (torch.ones(1, SIDE, SIDE), "has no peak"),
        (torch.ones(1, 1, 1), "has no peak"),
    ],
)
def test_a_map_without_a_peak_is_not_measured_and_says_why(maps: Tensor, reason: str) -> None:
    x = images(2)
    measured = tvc.metrics.pointing_game(
        model(), x, torch.cat([maps, maps if maps.numel() == 1 else one_hot(9, 9)]), square().expand(2, -1, -1)
    )
    assert measured.values[0].isnan()
    assert measured.details["area"][0].isnan()
    assert reason in measured.reasons[0]
    assert maps.numel() == 1 or measured.values[1] == 1


# --- energy in the mask ----------------------------------------------------------------------------------------------


def test_energy_is_the_share_of_the_positive_values() -> None:
    maps = 3 * one_hot(8, 8) + one_hot(20, 20) - 10 * one_hot(9, 9) - 10 * one_hot(25, 25)
    measured = tvc.metrics.energy_in_mask(model(), images(), maps, square())
    assert measured.values.tolist() == [0.75]
    assert measured.details["area"].tolist() == [16 / SIDE**2]


def test_a_map_that_is_the_same_everywhere_gets_the_area() -> None:
    measured = tvc.metrics.energy_in_mask(model(), images(), torch.ones(1, 7, 7), square())
    assert measured.values.tolist() == pytest.approx([16 / SIDE**2])
    empty = tvc.metrics.energy_in_mask(model(), images(), torch.zeros(1, 7, 7), square())
    assert (empty.count, empty.reasons) == (0, {0: "the map is all zeros"})


def test_several_classes_and_a_batch_get_what_each_gets_alone() -> None:
    x, maps = images(3), torch.rand(3, 2, 5, 5, generator=torch.Generator().manual_seed(1))
    maps[1, 1] = 0
    masks = torch.cat([square(), square(0, 0, 9), square(20, 3, 12)])
    target = torch.tensor([[0, 1]] * 3)
    for metric in (tvc.metrics.energy_in_mask, tvc.metrics.pointing_game):
        together = metric(model(), x, maps, masks, target)
        assert together.values.shape == (3, 2)
        assert together.values.isnan().nonzero().tolist() == [[1, 1]]
        for i in range(3):
            alone = metric(model(), x[i : i + 1], maps[i : i + 1], masks[i : i + 1], target[:1])
            torch.testing.assert_close(alone.values[0], together.values[i], equal_nan=True)


# --- geometry ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("geometry", "columns", "share"),
    [
        ("stretch", (0, 16), 16 / 64),
        ("crop", (8, 24), 8 / 32),  # the middle is seen, columns 16 to 48
        ("crop", (24, 64), 24 / 32),
        ("pad", (0, 16), 16 / 64),
    ],
)
def test_what_the_network_sees_of_the_object_counts(geometry: str, columns: tuple[int, int], share: float) -> None:
    net, mask = network(geometry), on_columns(*columns)
    measured = tvc.metrics.energy_in_mask(net, [photo()], torch.ones(1, 4, 4), [mask])
    assert measured.values.tolist() == pytest.approx([share])
    assert measured.details["area"].tolist() == pytest.approx([share])


@pytest.mark.parametrize(
    ("geometry", "column", "value"),
    [("stretch", 10, 1), ("crop", 16 + 5, 1), ("crop", 16 + 4, 0), ("pad", 10, 1), ("pad", 12, 0)],
)
def test_the_peak_lies_where_the_network_looked(geometry: str, column: int, value: float) -> None:
    """The sixth column of the input is the eleventh and twelfth of a photo of twice its width, or one of the crop."""
    mask = on_columns(column, column + (1 if geometry == "crop" else 2))
    measured = tvc.metrics.pointing_game(network(geometry), [photo()], one_hot(16, 5), [mask], tolerance=0)
    assert measured.values.tolist() == [value]


def test_an_object_that_the_network_does_not_see_is_not_measured() -> None:
    masks = [on_columns(0, 16), on_columns(0, 17)]
    measured = tvc.metrics.energy_in_mask(network("crop"), [photo()] * 2, torch.ones(2, 4, 4), masks)
    assert measured.values[0].isnan()
    assert "does not see the object" in measured.reasons[0]
    assert measured.values[1] == pytest.approx(1 / 32)


def test_heat_in_the_padding_is_not_on_the_photo() -> None:
    maps = one_hot(2, 5)  # the photo is in rows 8 to 24
    measured = tvc.metrics.energy_in_mask(network("pad"), [photo()], maps, [on_columns(0, 16)])
    assert (measured.count, measured.reasons) == (0, {0: "the map has no positive value on the photo"})


def test_a_photo_that_is_stored_on_its_side_has_an_upright_mask(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    photo(64, 32).save(tmp_path / "a.jpg", exif=exif)
    upright = np.zeros((64, 32), np.uint8)
    upright[:16] = 1
    measured = tvc.metrics.energy_in_mask(network(), tmp_path / "a.jpg", torch.ones(1, 4, 4), [upright])
    assert measured.values.tolist() == [0.25]
    with pytest.raises(tvc.InputError, match="its mask is 64 x 32 pixels, and its photo 32 x 64"):
        tvc.metrics.energy_in_mask(network(), tmp_path / "a.jpg", torch.ones(1, 4, 4), [upright.T])


def test_a_smaller_mask_of_the_same_shape_is_enlarged() -> None:
    for size in ((32, 16), (128, 64), (31, 16)):
        mask = on_columns(0, size[0] // 4, *size)
        measured = tvc.metrics.energy_in_mask(network(), [photo()], torch.ones(1, 4, 4), [mask])
        assert measured.values[0] == pytest.approx((size[0] // 4) / size[0], abs=1 / 64)


def test_masks_of_tensors_have_the_size_of_the_input() -> None:
    with pytest.raises(tvc.InputError, match="its mask is 64 x 64 pixels, and its input 32 x 32"):
        tvc.metrics.energy_in_mask(network(), images(), torch.ones(1, 4, 4), square(size=(64, 64)))


class Files(ImageFolder):  # type: ignore[misc]
    """torchvision's ImageFolder of files in no folder for each class: its items are inputs."""

    def __init__(self, files: list[Path]) -> None:
        self.samples = [(str(file), 0) for file in files]
        self.loader = tvc.read_image
        self.transform = tvc.Preprocess((SIDE, SIDE), "crop", SIDE, mean=(0, 0, 0), std=(1, 1, 1))
        self.target_transform = None


def test_a_dataset_of_files_has_masks_of_its_photos(tmp_path: Path) -> None:
    photo().save(tmp_path / "a.png")
    data = Files([tmp_path / "a.png"])
    measured = tvc.metrics.energy_in_mask(network("crop"), data, torch.ones(1, 4, 4), {"a": on_columns(8, 24)})
    assert measured.values.tolist() == pytest.approx([0.25])


def test_photos_on_a_server_are_asked_for_together_and_not_again_for_their_masks(tmp_path: Path) -> None:
    write_shards(tmp_path / "data", 1, 8)  # of 24 x 16 pixels
    masks = {f"{number:04d}": on_columns(0, 6, 24, 16) for number in range(8)}
    with serving(tmp_path / "data") as server:
        shards = tvc.TarShards(f"{server.address}/train-000000.tar", index=tmp_path)
        shards.prepare()
        server.requests.clear()
        measured = tvc.metrics.energy_in_mask(network(), shards, torch.ones(8, 4, 4), masks, batch_size=4)
        assert measured.values.tolist() == pytest.approx([0.25] * 8)
        assert len(server.requests) <= 1 + 2  # whether the server gives parts, and one request for each batch


# --- masks ------------------------------------------------------------------------------------------------------


def folder_of(path: Path, names: list[str], suffix: str = ".jpg") -> Path:
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        photo().save(path / f"{name}{suffix}")
    return path


def energies(x: Any, masks: Any, count: int, **options: Any) -> Measurement:
    return tvc.metrics.energy_in_mask(network(), x, torch.ones(count, 4, 4), masks, **options)


def test_masks_of_a_folder_are_called_as_the_photos(tmp_path: Path) -> None:
    photos = folder_of(tmp_path / "photos", ["cat/1", "cat/2", "dog/1", "dog/3"])
    for name, share in (("cat/1.png", 16), ("dog/1.tif", 32), ("2.webp", 48)):
        (tmp_path / "masks" / name).parent.mkdir(parents=True, exist_ok=True)
        on_columns(0, share).save(tmp_path / "masks" / name, lossless=True)
    measured = energies(photos, tmp_path / "masks", 4)
    assert measured.names == ("cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/3.jpg")
    assert measured.values[:3].tolist() == pytest.approx([0.25, 0.75, 0.5])
    assert measured.values[3].isnan()
    assert measured.reasons == {3: "there is no mask for it"}
    listed = energies([photos / name for name in measured.names], str(tmp_path / "masks"), 4)
    torch.testing.assert_close(listed.values, measured.values, equal_nan=True)


def test_masks_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    photos = folder_of(tmp_path / "photos", ["cat/1", "dog/1"])
    folder_of(tmp_path / "masks", ["1"], ".png")
    with pytest.raises(tvc.InputError, match=r"the mask 1.png would be that of two photos: cat/1.jpg and dog/1.jpg"):
        energies(photos, tmp_path / "masks", 2)
    folder_of(tmp_path / "masks", ["1"], ".gif")
    with pytest.raises(tvc.InputError, match=r"called alike, but for the kind of file: 1.gif and 1.png"):
        energies(photos, tmp_path / "masks", 2)


def test_masks_of_other_names_or_another_number_are_one_clear_line(tmp_path: Path) -> None:
    photos = folder_of(tmp_path / "photos", ["1", "2"])
    folder_of(tmp_path / "masks", ["1_mask", "2_mask"], ".png")
    with pytest.raises(tvc.InputError, match=r"none of 2 masks in .* that of '1.jpg' would be '1.png'.*'1_mask.png'"):
        energies(photos, tmp_path / "masks", 2)
    with pytest.raises(tvc.InputError, match="there are 2 images, and 3 masks"):
        energies(photos, torch.ones(3, 32, 64), 2)
    with pytest.raises(tvc.InputError, match="there are no masks: all 2 are None"):
        energies(photos, [None, None], 2)
    with pytest.raises(tvc.InputError, match="not an int"):
        energies(photos, 7, 2)
    with pytest.raises(tvc.ImageError, match="no such folder"):
        energies(photos, tmp_path / "mask", 2)


def with_transparency(alpha: np.ndarray[Any, Any]) -> Image.Image:
    picture = np.full((*alpha.shape, 4), 90, np.uint8)
    picture[..., 3] = alpha
    return Image.fromarray(picture)


def marked(value: float, dtype: Any, rest: float = 0) -> np.ndarray[Any, Any]:
    mask = np.full((32, 64), rest, dtype)
    mask[:, :16] = value
    return mask


def in_colours(first: tuple[int, ...], rest: tuple[int, ...]) -> Image.Image:
    picture = np.zeros((32, 64, len(first)), np.uint8)
    picture[:], picture[:, :16] = rest, first
    return Image.fromarray(picture)


def palette(first: int, rest: int, colours: list[int]) -> Image.Image:
    picture = Image.fromarray(marked(first, np.uint8, rest)).convert("P")
    picture.putdata(marked(first, np.uint8, rest).ravel().tolist())
    picture.putpalette(colours)
    return picture


KINDS = {
    "bool": marked(1, bool),
    "grey": Image.fromarray(marked(7, np.uint8)),
    "one bit": Image.fromarray(marked(1, bool)),
    "16 bits": Image.fromarray(marked(40000, np.uint16)),
    "floats": marked(0.2, np.float32),
    "whole numbers": torch.from_numpy(marked(3, np.int64)),
    "with a channel": torch.from_numpy(marked(3, np.uint8))[None],
    "a channel last": marked(3, np.uint8)[..., None],
    "colour": in_colours((200, 0, 0), (0, 0, 0)),
    "an array in colour": np.asarray(in_colours((0, 0, 9), (0, 0, 0))),
    "transparency": with_transparency(marked(255, np.uint8)),
    "opaque": in_colours((200, 0, 0, 255), (0, 0, 0, 255)),
    "a palette whose first colour is white": palette(0, 1, [255, 255, 255, 0, 0, 0]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_mask_marks_the_same(kind: str) -> None:
    assert energies([photo()], [KINDS[kind]], 1).values.tolist() == [0.25]


def test_a_mask_in_a_jpeg_has_no_noise_around_its_object(tmp_path: Path) -> None:
    mask = np.zeros((320, 640), np.uint8)
    mask[37:211, 83:333] = 255
    Image.fromarray(mask).save(tmp_path / "mask.jpg", quality=30)
    read = Masks([tmp_path / "mask.jpg"], AllImages(images(), model())).mask(0)
    assert read is not None
    stored = np.asarray(Image.open(tmp_path / "mask.jpg"))
    assert (stored > 0).sum() > (mask > 0).sum() * 1.01  # what the noise would add
    assert (read != (mask > 0)).sum() == 0


def test_values_of_a_trimap_are_chosen() -> None:
    trimap = marked(1, np.uint8, rest=2)
    trimap[:, 16:20] = 3
    with pytest.raises(tvc.InputError, match=r"its mask is nowhere 0 \(its values: 1, 2, 3\).*mask_values=\(1,\)"):
        energies([photo()], [trimap], 1)
    coloured = palette(1, 2, [0, 0, 0, 255, 0, 0, 0, 255, 0])
    for mask in (trimap, Image.fromarray(trimap), Image.fromarray(trimap).convert("RGB"), coloured):
        assert energies([photo()], [mask], 1, mask_values=(1,)).values.tolist() == [0.25]
    assert energies([photo()], [trimap], 1, mask_values=[1, 3]).values.tolist() == pytest.approx([20 / 64])
    assert energies([photo()], [trimap], 1, mask_values=3).values.tolist() == pytest.approx([4 / 64])
    for values in ((), "1", ("a",)):
        with pytest.raises(tvc.InputError, match="mask"):
            energies([photo()], [trimap], 1, mask_values=values)


def test_masks_that_say_nothing_have_their_reasons(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    masks = [
        marked(1, np.uint8),
        None,
        np.zeros((32, 64), np.uint8),
        np.full((32, 64), 255, np.uint8),
        np.ones((64, 64), np.uint8).cumsum(1) % 2,
        tmp_path / "broken.png",
        tmp_path / "missing.png",
    ]
    measured = energies([photo()] * 7, masks, 7)
    assert measured.values.isfinite().tolist() == [True, *[False] * 6]
    expected = ["no mask", "has no object (its values: 0)", "covers all of the photo (its values: 255)"]
    expected += ["its mask is 64 x 64 pixels, and its photo 64 x 32", "cannot be read", "no image"]
    assert len(measured.reasons) == 6
    for number, part in enumerate(expected, start=1):
        assert part in measured.reasons[number]
    with pytest.raises(tvc.InputError, match=r"none of 2 masks can be used: its mask has no object"):
        energies([photo()] * 2, [masks[2], masks[3]], 2)


@pytest.mark.parametrize("mask", [np.zeros((3, 4, 5)), np.zeros(7), "text", np.array([["a"]])])
def test_what_is_no_mask_is_refused(mask: Any) -> None:
    with pytest.raises(tvc.TorchvizError, match=r"mask|no image"):
        energies([photo()], [mask], 1)


@pytest.mark.parametrize("tolerance", [-1, float("nan"), "15", None])
def test_a_wrong_tolerance_is_refused(tolerance: Any) -> None:
    with pytest.raises(tvc.InputError, match="tolerance is a finite number of at least 0"):
        tvc.metrics.pointing_game(model(), images(), one_hot(0, 0), square(), tolerance=tolerance)


# --- real photos ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_heatmaps_of_pets_lie_on_the_animal(data: Path) -> None:
    """The figures of docs/cam.md are means over all 300; here over every fourteenth."""
    net = tvc.load_model("squeezenet1_0", data / "checkpoints" / "squeezenet1_0.pth")
    pets = data / "pets_with_masks"
    photos = sorted((pets / "images").iterdir())[::14]
    for method, least in (("grad_cam", 0.6), ("competitive_cam", 0.7)):
        share = tvc.metrics.energy_in_mask(net, photos, method, pets / "trimaps", mask_values=(1,))
        peaks = tvc.metrics.pointing_game(net, photos, method, pets / "trimaps", mask_values=(1,))
        assert share.count == peaks.count == 22
        assert share.mean > max(least, float(share.details["area"].mean()) + 0.1)
        assert peaks.mean > 0.9
