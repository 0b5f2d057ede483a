"""Pictures of any depth and number of bands: as plain arithmetic on their values says, or one clear error."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import torchviz_cnn as tvc
from torchviz_cnn.core.errors import ImageError, ImageWarning, InputError
from torchviz_cnn.core.warn import say_once
from torchviz_cnn.media.images import Preprocess, read_image, to_rgb
from torchviz_cnn.media.origin import as_photo
from torchviz_cnn.media.render import signed_colours

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _said_anew() -> Iterator[None]:
    say_once.cache_clear()
    yield
    say_once.cache_clear()


def pixels(*shape: int, top: int = 255, dtype: Any = np.uint8) -> Any:
    values = RANDOM.integers(0, top + 1, shape).astype(dtype)
    values.flat[:2] = 0, top
    return values


# Depth


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_fewer_bits_in_16_are_not_black(bits: int, suffix: str, tmp_path: Path) -> None:
    values = pixels(12, 15, top=2**bits - 1, dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"a{suffix}")
    with pytest.warns(ImageWarning, match=f"0 to {2**bits - 1}, .*window="):
        image = np.asarray(read_image(tmp_path / f"a{suffix}"))
    assert np.abs(image[..., 1] - values * (255 / (2**bits - 1))).max() <= 0.501
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(tmp_path / f"a{suffix}")  # said once


def test_a_window_is_taken_instead(tmp_path: Path) -> None:
    values = pixels(12, 15, top=4095, dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    expected = np.clip((values - 1000.0) / 2000, 0, 1) * 255
    assert np.abs(np.asarray(read_image(tmp_path / "a.png", window=(1000, 3000)))[..., 0] - expected).max() <= 0.501
    how: Any = {"size": (12, 15), "geometry": "stretch", "mean": (0.0,), "std": (1.0,), "window": (1000, 3000)}
    for photo in (values, torch.from_numpy(values.astype(np.int32)), Image.fromarray(values)):
        assert (Preprocess(**how)(photo)[0] * 255 - torch.from_numpy(expected)).abs().max() <= 0.501
    with pytest.raises(InputError, match="the lower first"):
        Preprocess(window=(5, 5))


@pytest.mark.parametrize(
    ("low", "top"), [(0.0, 1.0), (0.0, 1.2), (0.0, 255.0), (0.0, 2.5), (0.0, 3000.0), (-5.0, 5.0), (0.0, 1e300)]
)
def test_floats_are_scaled_by_their_range(low: float, top: float) -> None:
    values = np.linspace(low, top, 180).reshape(12, 15)
    values[3, 3], values[4, 4] = np.nan, np.inf
    high = {1.2: 1.0, 2.5: 255.0, 3000.0: 4095.0}.get(top, top)
    if top in (1.0, 1.2, 255.0):
        image = np.asarray(to_rgb(values))[..., 0]
    else:
        with pytest.warns(ImageWarning, match="window="):
            image = np.asarray(to_rgb(values))[..., 0]
    expected = np.clip((np.nan_to_num(values, nan=low, posinf=high) - low) / (high - low), 0, 1) * 255
    assert np.abs(image - expected).max() <= 0.501


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64, np.uint16, np.uint32])
def test_whole_numbers_of_any_type(dtype: Any) -> None:
    values = pixels(12, 15, 3)
    with pytest.warns(ImageWarning, match="from 0 to 255"):
        assert np.array_equal(np.asarray(to_rgb(values.astype(dtype))), values)


def test_files_that_pillow_does_not_read(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    deep, floats, many = pixels(9, 11, 3, top=4095, dtype=np.uint16), RANDOM.random((9, 11)), pixels(13, 29, 31)
    tifffile.imwrite(tmp_path / "deep.tif", deep, photometric="rgb")
    tifffile.imwrite(tmp_path / "floats.tif", floats)
    tifffile.imwrite(tmp_path / "many.tif", many, photometric="minisblack", planarconfig="separate")
    tifffile.imwrite(tmp_path / "infrared.tif", many[:4].transpose(1, 2, 0), photometric="rgb", extrasamples=[0])
    with pytest.warns(ImageWarning, match="from 0 to 4095"):
        assert np.abs(np.asarray(read_image(tmp_path / "deep.tif")) - deep * (255 / 4095)).max() <= 0.501
    assert np.abs(np.asarray(read_image(tmp_path / "floats.tif"))[..., 0] - floats * 255).max() <= 0.501
    chosen = np.asarray(read_image(tmp_path / "many.tif", bands=(3, 2, 1)))
    assert np.array_equal(chosen, many[[3, 2, 1]].transpose(1, 2, 0))
    how = Preprocess((29, 31), "stretch", mean=(0.5,) * 4, std=(0.5,) * 4, bands=(2, 1, 0))
    net = tvc.Network(nn.Sequential(nn.Conv2d(4, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(1798, 2)).eval(), how)
    heat = tvc.grad_cam(net, tmp_path / "infrared.tif", "0", target=0, relu=False)
    expected = net.model(torch.from_numpy(many[:4] / np.float32(127.5) - 1)[None])
    torch.testing.assert_close(heat.logits, expected.detach())
    assert np.array_equal(np.asarray(heat.origin.photo(0)), many[[2, 1, 0]].transpose(1, 2, 0))
    with pytest.raises(ImageError, match="4 bands"):
        tvc.grad_cam(net, tmp_path / "many.tif", "0", target=0)


# Bands


@pytest.mark.parametrize("count", [2, 4, 13])
@pytest.mark.parametrize("kind", ["last", "first", "tensor", "folded"])
def test_as_many_bands_as_means(count: int, kind: str) -> None:
    values = pixels(9, 11, count)
    photo = {
        "last": values,
        "first": values.transpose(2, 0, 1),
        "tensor": torch.from_numpy(values).permute(2, 0, 1),
        "folded": values.astype(np.float32) / 255,
    }[kind]
    mean, std = tuple(np.linspace(0.2, 0.6, count).tolist()), tuple(np.linspace(0.3, 0.9, count).tolist())
    x = Preprocess((9, 11), "stretch", mean=mean, std=std)(photo)
    expected = (values / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(x.permute(1, 2, 0).numpy(), expected, atol=1e-5)
    pictured = Preprocess((9, 11), mean=mean, std=std, bands=(1, 0, 1)).to_image(x)
    assert np.abs(np.asarray(pictured).astype(int) - values[..., [1, 0, 1]]).max() <= 1


def test_transparency_is_a_band_where_four_are_wanted() -> None:
    values = pixels(9, 11, 4)
    x = Preprocess((9, 11), "stretch", mean=(0.0,) * 4, std=(1.0,) * 4)(Image.fromarray(values))
    np.testing.assert_allclose(x.permute(1, 2, 0).numpy() * 255, values, atol=1e-3)
    with pytest.raises(ImageError, match=r"4 bands, one for each mean, .* \(20, 30, 3\)"):
        Preprocess((9, 11), mean=(0.0,) * 4, std=(1.0,) * 4)(Image.new("RGB", (30, 20)))


@pytest.mark.parametrize("geometry", ["crop", "stretch", "pad"])
def test_every_band_is_fitted_as_colours_are(geometry: Any) -> None:
    values, scale = pixels(40, 50, 3), {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}
    three = Preprocess((20, 24), geometry, 26, **scale)(values)  # type: ignore[arg-type]
    four = Preprocess((20, 24), geometry, 26, (*scale["mean"], 0.1), (*scale["std"], 0.7))(
        np.concatenate([values, values[..., :1]], 2)
    )
    torch.testing.assert_close(four[:3], three)


@pytest.mark.parametrize(("count", "words"), [(2, "mean of both"), (5, "first three"), (13, "first three")])
def test_what_is_drawn_of_several_bands_is_said(count: int, words: str) -> None:
    values = pixels(20, 24, count)
    with pytest.warns(ImageWarning, match=f"{words}.*bands="):
        image = np.asarray(as_photo(values))
    expected = np.rint(values.mean(2, keepdims=True)) if count == 2 else values[..., :3]
    assert np.array_equal(image, np.broadcast_to(expected, image.shape))
    with pytest.raises(InputError, match=rf"bands of {count}, .*not \(0, 1, {count}\)"):
        to_rgb(values, bands=(0, 1, count))


def test_signed_values_of_any_number_of_channels() -> None:
    values = RANDOM.standard_normal((13, 6, 8))
    assert np.array_equal(signed_colours(values), signed_colours(values.mean(0, keepdims=True)))
    assert np.array_equal(signed_colours(values, bands=(3, 2, 1)), signed_colours(values[[3, 2, 1]]))
    model = nn.Sequential(nn.Conv2d(13, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    sal = tvc.saliency(model, torch.rand(1, 13, 6, 8), target=1)
    assert np.array_equal(
        np.asarray(sal.colour_image(bands=(3, 2, 1))), signed_colours(sal.gradients[0, [3, 2, 1]].numpy())
    )
    assert sal.colour_image().size == tvc.deconvnet(model, torch.rand(1, 13, 6, 8), "1", 0).image(bands=[5]).size
    pattern = tvc.filter_patterns(model, "0", [0], size=8, steps=1)
    assert pattern.image(bands=(3, 2, 1)).size == pattern.image().size
    assert len(tvc.first_filters(model).filters) == 4
    assert tvc.first_filters(model).grid().mode == "RGB"


@pytest.mark.parametrize("shape", [(3, 20, 24), (1, 20, 24), (3, 20, 4), (3, 24, 24), (4, 20, 24)])
def test_arrays_with_their_channels_first(shape: tuple[int, ...]) -> None:
    values = pixels(*shape)
    assert np.array_equal(np.asarray(as_photo(values)), np.asarray(as_photo(values.transpose(1, 2, 0))))
    assert np.array_equal(np.asarray(as_photo(values)), np.asarray(as_photo(torch.from_numpy(values))))


def test_what_may_be_read_in_two_ways_is_refused() -> None:
    values = pixels(3, 20, 3)
    with pytest.raises(ImageError, match=r"\(3, 20, 3\) may be \(H, W, n\) or \(n, H, W\)"):
        as_photo(values)
    assert as_photo(torch.from_numpy(values)).size == (3, 20)  # a tensor has its channels first
    assert as_photo(Image.fromarray(values)).size == (20, 3)


# Files


def test_what_is_no_file_of_an_image_says_what_it_is(tmp_path: Path) -> None:
    os.symlink("gone.jpg", tmp_path / "link.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "empty.jpg").touch()
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, words in (
        ("link.jpg", "a link to nothing: there is no gone.jpg"),
        ("folder.jpg", "is a folder"),
        ("empty.jpg", "has 0 bytes"),
        ("pipe.jpg", "a device or a pipe"),
    ):
        with pytest.raises(ImageError, match=words) as caught:
            read_image(tmp_path / name)
        assert name in str(caught.value)
    with pytest.raises(ImageError, match="a link to nothing"):
        tvc.PhotoFolder(tmp_path / "link.jpg")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(stat.S_IWUSR)
    with pytest.raises(ImageError, match=r"a\.png cannot be read: its permissions"):
        read_image(tmp_path / "a.png")
