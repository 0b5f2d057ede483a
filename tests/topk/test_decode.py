"""Photos that a device decodes: the same images, near the same pixels, and Pillow for whatever is not a plain JPEG."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Subset

import torchviz_cnn as tvc
from tests import networks
from torchviz_cnn.cli.main import main
from torchviz_cnn.core.errors import InputError, OutputError, SkippedWarning
from torchviz_cnn.media import decoding
from torchviz_cnn.media.datasets.photo_folder import PhotoFolder
from torchviz_cnn.media.datasets.source import ImageSource
from torchviz_cnn.surveys import survey as surveying
from torchviz_cnn.topk import mining
from torchviz_cnn.topk.reading import Batch, read_batches

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
SMALL = tvc.Preprocess((32, 40), resize=44)
ON_A_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def picture(seed: int, width: int = 90, height: int = 70) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, options.pop("format", "JPEG"), **options)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Plain JPEG files of several sizes, and one of each kind that is not one; the last two are broken."""
    photos = tmp_path / "photos"
    photos.mkdir()
    turned = Image.Exif()
    turned[0x0112] = 6
    files = [encoded(picture(seed, 90 + 10 * (seed % 3)), quality=90, progressive=seed == 2) for seed in range(8)]
    files += [encoded(picture(8).convert("L")), encoded(picture(9).convert("CMYK")), encoded(picture(10), exif=turned)]
    files += [encoded(picture(11), format="PNG"), encoded(picture(12), keep_rgb=True)]
    files += [files[0][: len(files[0]) // 2], files[1][:300] + bytes(range(200)) + b"\xff\xd9"]
    for number, file in enumerate(files):
        (photos / f"{number:02d}.jpg").write_bytes(file)
    return photos


def batches(source: ImageSource, workers: int = 0, size: int = 6, device: torch.device = CPU) -> list[Batch]:
    places = [range(at, min(at + size, len(source))) for at in range(0, len(source), size)]
    return list(read_batches(source, range(len(places)), places, workers, device))


def differences(a: list[Batch], b: list[Batch]) -> Tensor:
    assert [batch.images.tolist() for batch in a] == [batch.images.tolist() for batch in b]
    assert [batch.labels for batch in a] == [batch.labels for batch in b]
    assert [batch.skipped for batch in a] == [batch.skipped for batch in b]
    pixels = [torch.cat([batch.x.cpu() for batch in some if batch.x is not None]).int() for some in (a, b)]
    return (pixels[0] - pixels[1]).abs().float()


def warned(run: Callable[[], Any]) -> Any:
    with pytest.warns(SkippedWarning, match="2 of 15"):
        return run()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "how",
    [
        SMALL,
        tvc.Preprocess((32, 40), "stretch", interpolation="bicubic"),
        tvc.Preprocess((48, 40), "pad"),
        tvc.Preprocess((48, 48), "crop", 40),
        tvc.Preprocess((32, 40), resize=44, mean=(0.5,), std=(0.2,)),
    ],
    ids=lambda how: f"{how.geometry} {how.resize} {len(how.mean)}",
)
def test_pixels_are_those_of_pillow_but_for_rounding(how: tvc.Preprocess, workers: int, folder: Path) -> None:
    off = differences(batches(ImageSource(folder, how)), batches(ImageSource(folder, how, "cuda"), workers))
    assert off.max() <= 2
    assert (off == 0).float().mean() > 0.95


def test_only_plain_files_are_left_to_the_device(folder: Path) -> None:
    source = ImageSource(folder, SMALL, "cuda")
    kinds = [decoding.plain_jpeg(source.dataset.encoded(i), SMALL) is not None for i in range(len(source))]
    assert kinds == [True] * 9 + [False] * 5 + [True]  # that the last one is broken, its decoder notices
    assert decoding.plain_jpeg(encoded(picture(0)), tvc.Preprocess(resize=10**9)) is None  # as large a picture as that
    assert decoding.plain_jpeg(encoded(picture(0)), tvc.Preprocess((1, 1), "stretch")) is None  # and as small a one


def test_a_file_that_the_device_refuses_is_read_as_ever(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = batches(ImageSource(folder, SMALL))
    decode, refused = decoding._decode, (folder / "02.jpg").read_bytes()

    def choosy(files: list[Tensor], device: torch.device) -> list[Tensor]:
        if any(bytes(file.numpy()) == refused for file in files):
            raise RuntimeError("nvjpegDecode failed: 5")
        return decode(files, device)

    monkeypatch.setattr(decoding, "_decode", choosy)
    with caplog.at_level(logging.INFO, "torchviz_cnn"):
        off = differences(expected, batches(ImageSource(folder, SMALL, "cuda")))
    assert off[2].max() == 0  # by Pillow, to the bit
    assert off.max() <= 2
    assert caplog.text.count("nvjpegDecode failed: 5") == 1
    assert "5 of 13 photos were decoded on the CPU" in caplog.text


def test_files_that_are_gone_or_no_files_are_said_as_ever(folder: Path) -> None:
    sources = ImageSource(folder, SMALL), ImageSource(folder, SMALL, "cuda")
    (folder / "01.jpg").unlink()
    (folder / "02.jpg").write_bytes(b"")
    (folder / "03.jpg").unlink()
    (folder / "03.jpg").mkdir()
    cpu, cuda = (batches(source, size=5)[0].skipped for source in sources)
    assert list(cpu) == [1, 2, 3]
    assert cuda == cpu


def test_damaged_files_are_pixels_or_left_out(tmp_path: Path) -> None:
    random, whole = np.random.default_rng(0), encoded(picture(0))
    for number in range(120):
        file = np.frombuffer(whole, np.uint8).copy()
        places = random.integers(2, len(file) - 2 if number % 2 else 200, 1 + number % 3)
        file[places] = random.integers(0, 256, len(places))
        (tmp_path / f"{number:03d}.jpg").write_bytes(file.tobytes())
    source = ImageSource(tmp_path, SMALL, "cuda")
    plain = [decoding.plain_jpeg(source.dataset.encoded(i), SMALL) is not None for i in range(len(source))]
    assert 60 < sum(plain) < 120
    read, expected = batches(source, size=20), batches(ImageSource(tmp_path, SMALL), size=20)
    for batch, by_pillow in zip(read, expected, strict=True):
        assert sorted([*batch.images.tolist(), *batch.skipped]) == sorted(
            [*by_pillow.images.tolist(), *by_pillow.skipped]
        )
        assert set(batch.skipped) <= set(by_pillow.skipped)
        assert batch.x is not None
        assert len(batch.x) == len(batch.images) == len(batch.labels)


def test_an_error_of_memory_is_none_of_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> list[Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(decoding, "_decode", full)
    with pytest.raises(torch.OutOfMemoryError):
        batches(ImageSource(folder, SMALL, "cuda"))


def test_many_pixels_are_decoded_in_parts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "14.jpg").unlink()  # which is broken, and asked for again
    asked, decode = list[int](), decoding._decode

    def counted(files: list[Tensor], device: torch.device) -> list[Tensor]:
        asked.append(len(files))
        return decode(files, device)

    monkeypatch.setattr(decoding, "_decode", counted)
    expected = batches(ImageSource(folder, SMALL, "cuda"), size=9)
    assert asked == [9]
    monkeypatch.setattr(decoding, "_AT_ONCE", 2 * 110 * 70)
    assert differences(expected, batches(ImageSource(folder, SMALL, "cuda"), size=9)).max() == 0
    assert asked[1:] == [2, 2, 2, 2, 1]


def test_what_cannot_be_decoded_on_a_device_is_said(folder: Path) -> None:
    for how, reason in (
        (torch.nn.Identity(), "prepared in another way"),
        (tvc.Preprocess(mean=(0.5,) * 4, std=(0.5,) * 4), "4 bands"),
        (tvc.Preprocess(bands=(2, 1, 0)), "bands="),
        (tvc.Preprocess(interpolation="lanczos"), "not 'lanczos'"),
    ):
        with pytest.raises(InputError, match=reason):
            ImageSource(folder, how, "cuda")
    with pytest.raises(InputError, match="reads files"):
        ImageSource([picture(0)], SMALL, "cuda")
    with pytest.raises(InputError, match="no decode 'gpu'"):
        ImageSource(folder, SMALL, "gpu")  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_is_an_error(folder: Path) -> None:
    net = tvc.Network(networks.vgg_like(), SMALL)
    with pytest.raises(InputError, match="needs a CUDA device, and there is none"):
        tvc.top_activations(net, folder, ["features.2"], k=2, decode="cuda")
    with pytest.raises(InputError, match="needs a CUDA device, and there is none"):
        tvc.survey(net, folder, decode="cuda")
    command = [str(folder), "--decode", "cuda", "--model", "cats_and_dogs", "--out", str(folder.parent / "out")]
    assert main(["top", *command]) == main(["survey", *command]) == 2


def test_the_manifest_says_who_decoded(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mining, "require_decoder", lambda device: None)  # the CPU stands for the device
    net, layers = tvc.Network(networks.vgg_like(), SMALL), ["features.2"]
    options: Any = {"k": 2, "exact": True}
    cuda = warned(lambda: tvc.top_activations(net, folder, layers, **options, decode="cuda", out=tmp_path / "cuda"))
    cpu = warned(lambda: tvc.top_activations(net, folder, layers, **options, out=tmp_path / "cpu"))
    assert torch.equal(cuda.images["features.2"][:, 0], cpu.images["features.2"][:, 0])
    manifests = {name: json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("cuda", "cpu")}
    assert manifests["cuda"]["identity"]["decode"] == "cuda"
    assert "decode" not in manifests["cpu"]["identity"]
    with pytest.raises(OutputError, match="decode is 'cuda'"):
        tvc.top_activations(net, folder, layers, **options, out=tmp_path / "cuda")


def test_a_survey_takes_the_same_decoder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surveying, "require_decoder", lambda device: None)
    net = tvc.Network(networks.vgg_like(), SMALL)
    options: Any = {"k": 2, "batch_size": 4}
    cuda = warned(lambda: tvc.survey(net, folder, **options, decode="cuda", out=tmp_path / "cuda"))
    cpu = warned(lambda: tvc.survey(net, folder, **options))
    assert cuda.names == cpu.names
    assert cuda.skipped.keys() == cpu.skipped.keys()
    assert 0 < np.abs(cuda.confidence - cpu.confidence).max() < 0.05
    boxes = {one.name: (one.size, one.box) for one in cpu.shown}
    both = [one for one in cuda.shown if one.name in boxes]
    assert both
    assert [(one.size, one.box) for one in both] == [boxes[one.name] for one in both]
    assert json.loads((tmp_path / "cuda" / "manifest.json").read_text())["identity"]["decode"] == "cuda"
    with pytest.raises(OutputError, match="decode is 'cuda'"):
        tvc.survey(net, folder, **options, out=tmp_path / "cuda")


class TestOnAGpu:
    pytestmark = ON_A_GPU

    def test_pixels(self, folder: Path) -> None:
        for how in (SMALL, tvc.Preprocess((48, 40), "pad"), tvc.Preprocess((32, 40), "stretch", mean=(0.5,), std=(1,))):
            on_gpu = batches(ImageSource(folder, how, "cuda"), 1, device=GPU)
            off = differences(batches(ImageSource(folder, how)), on_gpu)
            assert off.mean() < 2
            assert off.max() <= 40  # chrominance is made larger in another way

    def test_pixels_do_not_depend_on_what_the_device_computes_meanwhile(self, folder: Path) -> None:
        source = ImageSource(Subset(PhotoFolder(folder), [0, 1, 2, 3, 4, 5] * 40), SMALL, "cuda")
        quiet = [batch.on(GPU).cpu() for batch in batches(source, 1, device=GPU)]
        places = [range(at, at + 6) for at in range(0, len(source), 6)]
        busy = list[Tensor]()
        for batch in read_batches(source, range(len(places)), places, 1, GPU):
            torch.cuda._sleep(10_000_000)  # type: ignore[no-untyped-call]  # milliseconds, for which all that follows waits
            busy.append(batch.on(GPU) + torch.zeros(300, device=GPU).sum())
        assert all(torch.equal(a, b.cpu()) for a, b in zip(quiet, busy, strict=True))
        assert all(torch.equal(quiet[0], other) for other in quiet)

    def test_scaling_is_that_of_the_cpu_to_the_bit(self) -> None:
        pixels = torch.arange(256, dtype=torch.uint8).expand(3, 16, 256).contiguous()
        assert torch.equal(SMALL.scaled(pixels.cuda()).cpu(), SMALL.scaled(pixels))

    def test_top_activations(self, folder: Path, tmp_path: Path) -> None:
        net, layers = tvc.Network(networks.vgg_like().cuda(), SMALL), ["features.2"]
        cuda = warned(lambda: tvc.top_activations(net, folder, layers, k=3, decode="cuda", out=tmp_path / "cuda"))
        cpu = warned(lambda: tvc.top_activations(net, folder, layers, k=3, workers=1))
        assert cuda.skipped.keys() == cpu.skipped.keys()
        same = cuda.images["features.2"][:, 0] == cpu.images["features.2"][:, 0]
        assert same.float().mean() > 0.7
        assert json.loads((tmp_path / "cuda" / "manifest.json").read_text())["identity"]["decode"] == "cuda"

    def test_a_network_on_the_cpu_is_an_error(self, folder: Path) -> None:
        with pytest.raises(InputError, match="that is on cpu"):
            tvc.top_activations(tvc.Network(networks.vgg_like(), SMALL), folder, ["features.2"], k=2, decode="cuda")
