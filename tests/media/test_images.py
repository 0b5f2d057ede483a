"""Photos: any file into upright RGB or a clear error, torchvision's preprocessing, and where on the photo it looked."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import nn
from torchvision import models
from torchvision.transforms import InterpolationMode

from torchviz_cnn.core.errors import ImageError, InputError
from torchviz_cnn.media.images import Preprocess, read_image, to_rgb
from torchviz_cnn.media.render import overlay


def photo(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    """Smooth seeded colours, so that JPEG keeps them."""
    values = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def error_of(picture: Image.Image, other: Image.Image) -> float:
    return float(np.abs(np.asarray(picture, float) - np.asarray(other, float)).max())


# Reading


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".jpg", ".webp"])
def test_formats(suffix: str, tmp_path: Path) -> None:
    photo().save(tmp_path / f"a{suffix}", quality=100, subsampling=0)
    image = read_image(str(tmp_path / f"a{suffix}"))
    assert (image.mode, image.size) == ("RGB", (40, 30))
    assert error_of(image, photo()) <= {".jpg": 4, ".webp": 60}.get(suffix, 0)


def test_the_file_is_closed_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    photo().save(path)
    before = path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        image = read_image(path)
    path.unlink()
    assert error_of(image, photo()) == 0
    assert len(before) > 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_upright(orientation: int, tmp_path: Path) -> None:
    undo: dict[int, Any] = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = photo() if orientation == 1 else photo().transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    stored.save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)
    assert error_of(read_image(tmp_path / "a.png"), photo()) == 0
    assert error_of(read_image(tmp_path / "a.jpg"), photo()) <= 4


@pytest.mark.parametrize(
    "exif", [b"", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02", b"Exif\0\0" + b"\xff" * 40]
)
def test_broken_exif_does_not_matter(exif: bytes, tmp_path: Path) -> None:
    photo().save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)
    assert error_of(read_image(tmp_path / "a.jpg"), photo()) <= 4


def test_an_unknown_orientation_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 77
    photo().save(tmp_path / "a.png", exif=exif)
    assert error_of(read_image(tmp_path / "a.png"), photo()) == 0


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV"])
def test_modes_without_transparency(mode: str) -> None:
    stored = photo().convert(mode)
    assert to_rgb(stored).mode == "RGB"
    assert error_of(to_rgb(stored), stored.convert("RGB")) == 0
    if mode in ("RGB", "CMYK"):
        assert error_of(to_rgb(stored), photo()) == 0


def test_cmyk_and_grey_files(tmp_path: Path) -> None:
    photo().convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    photo().convert("CMYK").save(tmp_path / "cmyk.tiff")
    photo().convert("L").save(tmp_path / "grey.png")
    assert error_of(read_image(tmp_path / "cmyk.jpg"), photo()) < 30
    assert error_of(read_image(tmp_path / "cmyk.tiff"), photo()) == 0
    grey = np.asarray(read_image(tmp_path / "grey.png"))
    assert grey.shape == (30, 40, 3)
    assert (grey == np.asarray(photo().convert("L"))[..., None]).all()


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_16_bits_are_scaled_not_clipped(suffix: str, tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 1200).round().astype(np.uint16).reshape(30, 40)
    Image.fromarray(values).save(tmp_path / f"deep{suffix}")
    image = np.asarray(read_image(tmp_path / f"deep{suffix}"))
    assert image.shape == (30, 40, 3)
    assert np.abs(image[..., 0] - values / 257).max() <= 0.5 + 1e-9
    assert (image[0, 0, 0], image[-1, -1, 0]) == (0, 255)


@pytest.mark.parametrize("top", [1.0, 255.0])
def test_float_images(top: float) -> None:
    values = np.linspace(0, top, 1200, dtype=np.float32).reshape(30, 40)
    values[0, 0] = np.nan
    image = np.asarray(to_rgb(Image.fromarray(values)))
    assert np.abs(image[..., 0] - np.nan_to_num(values) * (255 / top)).max() <= 0.51


def test_a_mode_that_cannot_be_converted() -> None:
    with pytest.raises(ImageError, match="'La' cannot be turned into RGB"):
        to_rgb(photo().convert("LA").convert("La"))


@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA", "RGBa"])
def test_transparency_is_laid_on_white(mode: str, tmp_path: Path) -> None:
    grey = mode == "LA"
    base = photo().convert("L").convert("RGB") if grey else photo()
    alpha = Image.fromarray(np.tile(np.array([0, 128, 255, 255], np.uint8), (30, 10)))
    rgba = base.copy()
    rgba.putalpha(alpha)
    stored = rgba.convert("LA" if grey else "RGBA").convert(mode) if mode != "PA" else base.quantize(200).convert("PA")
    if mode == "PA":
        stored.putalpha(alpha)  # before Pillow 11, convert("PA") forgets it
    drawn = np.asarray(to_rgb(stored), float)
    share = np.asarray(alpha, float)[..., None] / 255
    source = np.asarray((stored.convert("RGBA") if mode == "PA" else rgba).convert("RGB"), float)
    expected = share * source + (1 - share) * 255
    assert np.abs(drawn - expected).max() <= (2 if mode in ("RGBA", "LA", "PA") else 5)
    assert (drawn[:, 0] == 255).all()
    if mode in ("LA", "RGBA"):
        stored.save(tmp_path / "a.png")
        assert error_of(read_image(tmp_path / "a.png"), to_rgb(stored)) == 0


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "1"])
def test_a_transparent_colour_is_white(mode: str, tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 2), (0, 0, 0))
    picture.paste((255, 0, 0) if mode in ("P", "RGB") else (255, 255, 255), (2, 0, 4, 2))
    stored = picture.convert(mode)
    key: Any = stored.getpixel((0, 0))
    stored.save(tmp_path / "a.png", transparency=key)
    image = read_image(tmp_path / "a.png")
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert image.getpixel((3, 1)) == ((255, 0, 0) if mode in ("P", "RGB") else (255, 255, 255))


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "a.tiff", save_all=True, append_images=frames[1:])
    for name in ("a.gif", "a.tiff"):
        assert read_image(tmp_path / name).getpixel((3, 3)) == (255, 0, 0)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (2, 3)])
def test_very_thin_photos(size: tuple[int, int], tmp_path: Path) -> None:
    photo(*size).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.size == size
    for geometry in ("crop", "stretch", "pad"):
        x = Preprocess(geometry=geometry)(image)  # type: ignore[arg-type]
        assert x.shape == (3, 224, 224)
        assert x.isfinite().all()


def test_a_strip_too_long_to_be_resized_whole() -> None:
    strip = photo(4, 40_000)
    preprocess = Preprocess()
    drawn = preprocess.prepare(strip)
    left, top, right, bottom = preprocess.seen_box(*strip.size)
    middle = strip.crop((0, round(top), 4, round(bottom))).resize((224, 224), Image.Resampling.BILINEAR)
    assert drawn.size == (224, 224)
    assert right - left == pytest.approx(bottom - top)
    assert error_of(drawn, middle) < 80


def test_missing_files_and_folders(tmp_path: Path) -> None:
    photo().save(tmp_path / "elephant.jpg")
    with pytest.raises(ImageError, match=r"no image .*elephnt.jpg; did you mean 'elephant.jpg'\?"):
        read_image(tmp_path / "elephnt.jpg")
    with pytest.raises(ImageError, match=r"no image .*zzz"):
        read_image(tmp_path / "nowhere" / "zzz.jpg")
    with pytest.raises(ImageError, match="is a folder, not an image"):
        read_image(tmp_path)
    for name in ("x" * 5000 + ".jpg", "a\0b.jpg", "elephant.jpg/inside.jpg"):
        with pytest.raises(ImageError):
            read_image(tmp_path / name)


@pytest.mark.parametrize(
    "content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"\0" * 1000]
)
def test_what_is_no_image_names_itself(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "strange.jpg").write_bytes(content)
    with pytest.raises(ImageError, match=r"strange\.jpg"):
        read_image(tmp_path / "strange.jpg")


def outcome(path: Path) -> str | None:
    """None for a photo that is read, the message for one that is refused."""
    try:
        assert read_image(path, max_pixels=1_000_000).mode == "RGB"
    except ImageError as error:
        return str(error)
    return None


@pytest.mark.parametrize("suffix", ["png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm", "tga", "ico"])
def test_broken_files_give_a_picture_or_one_error_that_names_them(suffix: str, tmp_path: Path) -> None:
    """Cut off anywhere, or with bytes overwritten: never another exception. Truncated photos are refused."""
    buffer = io.BytesIO()
    photo(48, 48).save(buffer, suffix)
    whole = buffer.getvalue()
    random = np.random.default_rng(5)
    path = tmp_path / f"broken.{suffix}"
    refused = 0
    for i in range(60):
        content = bytearray(whole)
        if i % 2:
            content = content[: int(random.integers(0, len(whole)))]
        for _ in range(0 if i % 2 else 8):
            content[int(random.integers(0, len(content) if i % 4 else min(len(content), 64)))] = int(
                random.integers(256)
            )
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            message = outcome(path)
        refused += message is not None
        assert message is None or str(path) in message
    assert refused >= 20


def test_a_truncated_photo_is_refused(tmp_path: Path) -> None:
    photo(400, 300).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match=r"a.jpg cannot be read, it may be truncated"):
        read_image(tmp_path / "a.jpg")


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    photo(100, 50).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"a.png has 100 x 50 pixels; at most 4,999"):
        read_image(tmp_path / "a.png", max_pixels=4999)
    assert read_image(tmp_path / "a.png", max_pixels=5000).size == (100, 50)
    header = (tmp_path / "a.png").read_bytes()
    for side in (30_000, 2**31 - 1):
        chunk = b"IHDR" + struct.pack(">II", side, side) + header[24:29]
        bomb = header[:8] + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + header[33:]
        (tmp_path / "bomb.png").write_bytes(bomb)
        with pytest.raises(ImageError, match=r"bomb\.png"):
            read_image(tmp_path / "bomb.png")


def test_what_is_no_photo() -> None:
    with pytest.raises(ImageError, match=r"not a str; read_image\(path\)"):
        to_rgb("a.png")  # type: ignore[arg-type]


# Preparing

PRESETS = {
    "vgg16": models.VGG16_Weights.IMAGENET1K_V1,
    "resnet50 V2": models.ResNet50_Weights.IMAGENET1K_V2,
    "inception_v3": models.Inception_V3_Weights.IMAGENET1K_V1,
    "efficientnet_b0": models.EfficientNet_B0_Weights.IMAGENET1K_V1,
    "efficientnet_v2_s": models.EfficientNet_V2_S_Weights.IMAGENET1K_V1,
    "convnext_tiny": models.ConvNeXt_Tiny_Weights.IMAGENET1K_V1,
}
RESAMPLING = {InterpolationMode.BILINEAR: "bilinear", InterpolationMode.BICUBIC: "bicubic"}
SIZES = [
    (256, 256),
    (500, 375),
    (375, 500),
    (224, 224),
    (61, 97),
    (1023, 401),
    (33, 1000),
    (300, 299),
    (7, 5),
    (232, 233),
]


def preset(name: str) -> tuple[Preprocess, Any]:
    theirs: Any = PRESETS[name].transforms()
    (crop,), (resize,) = theirs.crop_size, theirs.resize_size
    ours = Preprocess(
        (crop, crop), "crop", resize, tuple(theirs.mean), tuple(theirs.std), RESAMPLING[theirs.interpolation]
    )
    return ours, theirs


@pytest.mark.parametrize("name", PRESETS)
def test_it_equals_torchvisions_preset(name: str) -> None:
    ours, theirs = preset(name)
    for size in SIZES:
        picture = photo(*size)
        torch.testing.assert_close(ours(picture), theirs(picture), rtol=0, atol=1e-6)


def test_an_input_size_larger_than_the_resize_is_padded_as_torchvision_does() -> None:
    from torchvision.transforms._presets import ImageClassification

    theirs = ImageClassification(crop_size=231, resize_size=200)
    ours = Preprocess((231, 231), "crop", 200)
    for size in ((200, 200), (300, 201), (100, 177)):
        torch.testing.assert_close(ours(photo(*size)), theirs(photo(*size)), rtol=0, atol=1e-6)


def bright_square(width: int, height: int, left: int, top: int, side: int) -> Image.Image:
    picture = np.zeros((height, width, 3), np.uint8)
    picture[top : top + side, left : left + side] = 255
    return Image.fromarray(picture)


def centre_of_light(x: torch.Tensor) -> tuple[float, float]:
    """Centre (column, row) of what is bright in an input, in its pixels."""
    light = x.mean(0).double()
    light = light - light.min()
    rows, columns = (torch.arange(n, dtype=torch.float64) + 0.5 for n in light.shape)
    return float((light.sum(0) * columns).sum() / light.sum()), float((light.sum(1) * rows).sum() / light.sum())


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("size", [(640, 427), (427, 640), (500, 500), (224, 224), (1200, 301), (150, 151)])
def test_what_the_network_sees_is_located_on_the_photo(name: str, size: tuple[int, int]) -> None:
    """A bright square, through torchvision's preset itself, mapped back to where it is on the photo."""
    ours, theirs = preset(name)
    width, height = size
    side = max(min(size) // 12, 4)
    left, top, right, bottom = ours.seen_box(width, height)
    for across, down in ((0.5, 0.5), (0.15, 0.2), (0.8, 0.7)):
        x0, y0 = round(left + across * (right - left)) - side // 2, round(top + down * (bottom - top)) - side // 2
        x, y = centre_of_light(theirs(bright_square(width, height, x0, y0, side)))
        columns, rows = theirs.crop_size[0], theirs.crop_size[0]
        assert left + x / columns * (right - left) == pytest.approx(x0 + side / 2, abs=1)
        assert top + y / rows * (bottom - top) == pytest.approx(y0 + side / 2, abs=1)


@pytest.mark.parametrize("geometry", ["crop", "stretch", "pad"])
@pytest.mark.parametrize("size", [(640, 427), (301, 900), (224, 224), (97, 61)])
@pytest.mark.parametrize("shape", [(224, 224), (160, 240)])
def test_every_geometry_maps_back(geometry: Any, size: tuple[int, int], shape: tuple[int, int]) -> None:
    preprocess = Preprocess(shape, geometry, 256, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    width, height = size
    side = max(min(size) // 10, 3)
    x0, y0 = width // 2 + side, height // 2 - 2 * side
    x, y = centre_of_light(preprocess(bright_square(width, height, x0, y0, side)))
    left, top, right, bottom = preprocess.seen_box(width, height)
    assert left + x / shape[1] * (right - left) == pytest.approx(x0 + side / 2, abs=1)
    assert top + y / shape[0] * (bottom - top) == pytest.approx(y0 + side / 2, abs=1)


def test_a_map_is_drawn_where_the_network_saw_it() -> None:
    """The heatmap that is the network's own input, pooled to 14 x 14, lies over the bright square of the photo."""
    ours, theirs = preset("vgg16")
    picture = bright_square(640, 427, 400, 120, 40)
    heat = nn.functional.adaptive_avg_pool2d(theirs(picture).mean(0)[None], 14)[0]
    heat = (heat - heat.min()) / (heat.max() - heat.min())
    drawn = overlay(Image.new("RGB", (640, 427)), heat.numpy(), ours.seen_box(640, 427), alpha=1, colormap_name="gray")
    columns, rows = centre_of_light(torch.from_numpy(np.array(drawn)).permute(2, 0, 1).double())
    assert columns == pytest.approx(420, abs=3)
    assert rows == pytest.approx(140, abs=3)
    stretched = np.asarray(
        overlay(Image.new("RGB", (640, 427)), heat.numpy(), (0, 0, 640, 427), alpha=1, colormap_name="gray")
    )
    wrong, _ = centre_of_light(torch.from_numpy(stretched.copy()).permute(2, 0, 1).double())
    assert abs(wrong - 420) > 20  # what a map stretched over the whole photo would have shown


def test_boxes() -> None:
    assert Preprocess().seen_box(256, 256) == (16, 16, 240, 240)
    assert Preprocess().seen_box(512, 1024) == (32, 288, 480, 736)
    assert Preprocess(geometry="stretch").seen_box(31, 77) == (0, 0, 31, 77)
    assert Preprocess((100, 100), "pad").seen_box(200, 100) == (0, -50, 200, 150)


def test_padding_keeps_all_of_the_photo_and_is_the_mean_colour() -> None:
    preprocess = Preprocess((64, 64), "pad")
    x = preprocess(Image.new("RGB", (128, 64), "white"))
    assert x[:, :16].abs().max() < 0.02
    assert x[:, -16:].abs().max() < 0.02
    assert x[:, 16:48].min() > 2
    assert error_of(preprocess.prepare(photo(64, 64)), photo(64, 64)) == 0


def test_grey_networks_get_one_channel() -> None:
    preprocess = Preprocess((28, 28), "stretch", mean=(0.5,), std=(0.25,))
    x = preprocess(photo())
    assert x.shape == (1, 28, 28)
    grey = np.asarray(photo().convert("L").resize((28, 28), Image.Resampling.BILINEAR), np.float32) / 255
    np.testing.assert_allclose(x[0].numpy(), (grey - 0.5) / 0.25, atol=1e-6)
    assert preprocess.to_image(x).mode == "RGB"


@pytest.mark.parametrize("name", PRESETS)
def test_an_input_shows_the_picture_it_was_made_of(name: str) -> None:
    ours, _ = preset(name)
    assert error_of(ours.to_image(ours(photo(300, 400))), ours.prepare(photo(300, 400))) == 0
    with pytest.raises(InputError, match=r"\(3, H, W\), not \(1, 3, 8, 8\)"):
        ours.to_image(torch.zeros(1, 3, 8, 8))


def test_any_kind_of_photo_is_prepared() -> None:
    expected = Preprocess()(photo().convert("L").convert("RGB"))
    torch.testing.assert_close(Preprocess()(photo().convert("L")), expected)
    assert torch.equal(Preprocess()(photo().convert("RGBA")), Preprocess()(photo()))
    with pytest.raises(ImageError):
        Preprocess()(torch.zeros(30, 80, 80))


def test_numbers_of_any_type_are_kept_as_floats() -> None:
    given = Preprocess(mean=np.full(3, 0.5, np.float32), std=torch.full((3,), 0.25))  # type: ignore[arg-type]
    assert given == Preprocess(mean=(0.5,) * 3, std=(0.25,) * 3)
    assert all(type(value) is float for value in (*given.mean, *given.std))


def test_other_settings_are_refused() -> None:
    for options, message in (
        ({"geometry": "zoom"}, "zoom"),
        ({"interpolation": "spline"}, "spline"),
        ({"mean": (0.0,)}, "one number per channel"),
        ({"std": (1.0, 0.0, 1.0)}, "std above 0"),
        ({"std": (1.0, -1.0, 1.0)}, "std above 0"),
        ({"mean": 0.5}, "a finite number for each channel"),
        ({"mean": "imagenet"}, "a finite number for each channel"),
        ({"mean": (0.5, float("nan"), 0.5)}, "a finite number for each channel"),
        ({"mean": (123.7, 116.3, 103.5), "std": (58.4, 57.1, 57.4)}, r"for values of 0\.\.1.*a 255th"),
        ({"size": (0, 224)}, "at least 1"),
        ({"resize": 0}, "at least 1"),
    ):
        with pytest.raises(InputError, match=message):
            Preprocess(**options)  # type: ignore[arg-type]


def test_the_shared_photos_read(data: Path) -> None:
    photos = sorted((data / "images").glob("*"))
    assert photos
    for path in photos:
        if path.suffix.lower() in (".jpg", ".jpeg", ".png"):
            image = read_image(path)
            with Image.open(path) as stored:
                assert image.size == ImageOps.exif_transpose(stored).size


@pytest.mark.parametrize("name", ["a.tar", "train-{000..003}.tar", "b.tgz"])
def test_tar_files_are_no_photo(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.tar").write_bytes(b"x" * 2000)
    with pytest.raises(
        ImageError, match=r"means tar files of photos, which top, survey and trust take; here one photo"
    ):
        read_image(tmp_path / name)
