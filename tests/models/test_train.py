"""The training scripts on a few coloured squares."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import torchviz_cnn as tvc

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The scripts as modules, importable by their bare names as when they run."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    names = ("pictures", "train", "evaluate")
    for name in names:
        sys.modules.pop(name, None)
    yield {name: __import__(name) for name in names}
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reddish and bluish noise of several sizes: two classes that a linear model could tell apart."""
    folder = tmp_path_factory.mktemp("squares")
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 24), ("validation", 8), ("test", 6)):
        for label, name in enumerate(("blue", "red")):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                height, width = (int(side) for side in torch.randint(30, 60, (2,), generator=generator))
                noise = torch.randint(0, 120, (height, width, 3), generator=generator, dtype=torch.uint8)
                noise[..., 0 if label else 2] += 100
                Image.fromarray(noise.numpy()).save(folder / split / name / f"{index}.png")
    return folder


def command(data: Path, out: Path, *more: str) -> list[str]:
    return [
        str(data),
        "--model",
        "fashion_mnist_convnet",
        "--size",
        "24",
        "--batch",
        "12",
        "--epochs",
        "4",
        "--device",
        "cpu",
        "--out",
        str(out),
        *more,
    ]


def test_learns_and_writes_what_evaluate_reads(
    scripts: dict[str, ModuleType], squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scripts["train"].main(command(squares, tmp_path))
    rows = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert max(row["validation_accuracy"] for row in rows) >= 0.9
    path = tmp_path / "model.safetensors"
    assert {value.dtype for value in load_file(path).values()} == {torch.float16}
    with safe_open(path, "pt") as file:
        about = file.metadata()
    assert about["model"] == "fashion_mnist_convnet"
    assert json.loads(about["categories"]) == ["blue", "red"]
    assert scripts["evaluate"].main([str(path), str(squares / "test"), "--device", "cpu"]) >= 0.9
    assert "blue: " in capsys.readouterr().out


@contextmanager
def interrupted_at(function: Any, call: int) -> Iterator[None]:
    """Ctrl-C as a function is called for the `call`-th time."""
    code, calls = inspect.unwrap(function).__code__, 0

    def watch(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call" and frame.f_code is code
        if calls == call:
            sys.setprofile(None)
            raise KeyboardInterrupt

    sys.setprofile(watch)
    try:
        yield
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize("moment", ["train_epoch", "validate", "replace"])
def test_an_interrupted_run_ends_with_the_same_weights(
    moment: str, scripts: dict[str, ModuleType], squares: Path, tmp_path: Path
) -> None:
    train = scripts["train"]
    train.main(command(squares, tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt), interrupted_at(getattr(train, moment), 3):
        train.main(command(squares, tmp_path / "parts"))
    train.main(command(squares, tmp_path / "parts"))
    assert_same_files(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_process_goes_on(squares: Path, tmp_path: Path) -> None:
    def start(out: str) -> subprocess.Popen[bytes]:
        root = str(SCRIPTS.parent)
        call = [
            sys.executable,
            str(SCRIPTS / "train.py"),
            *command(squares, tmp_path / out, "--epochs", "12"),
        ]
        return subprocess.Popen(call, env={**os.environ, "PYTHONPATH": root}, stdout=subprocess.DEVNULL)

    assert start("whole").wait(120) == 0
    victim = start("parts")
    limit = time.monotonic() + 120
    while not (tmp_path / "parts" / "checkpoint.pt").exists() and time.monotonic() < limit:
        time.sleep(0.01)
    victim.kill()
    assert victim.wait(10) == -signal.SIGKILL
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    assert start("parts").wait(120) == 0
    assert_same_files(tmp_path / "whole", tmp_path / "parts")


def assert_same_files(one: Path, other: Path) -> None:
    a, b = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_with_other_settings_is_not_continued(
    scripts: dict[str, ModuleType], squares: Path, tmp_path: Path
) -> None:
    scripts["train"].main(command(squares, tmp_path, "--epochs", "1"))
    with pytest.raises(tvc.InputError, match="other settings"):
        scripts["train"].main(command(squares, tmp_path, "--epochs", "1", "--lr", "0.1"))


def test_a_second_run_starts_from_the_weights_of_a_first(
    scripts: dict[str, ModuleType], squares: Path, tmp_path: Path
) -> None:
    train = scripts["train"]
    train.main(command(squares, tmp_path / "first"))
    weights = str(tmp_path / "first" / "model.safetensors")
    train.main(command(squares, tmp_path / "second", "--weights", weights, "--epochs", "1", "--lr", "1e-9"))
    row = json.loads((tmp_path / "second" / "history.jsonl").read_text())
    assert row["validation_accuracy"] >= 0.9
    a, b = load_file(weights), load_file(tmp_path / "second" / "model.safetensors")
    assert all(torch.allclose(a[name], b[name], atol=1e-3) for name in a)


def test_stops_early_when_validation_does_not_improve(
    scripts: dict[str, ModuleType], squares: Path, tmp_path: Path
) -> None:
    scripts["train"].main(command(squares, tmp_path, "--lr", "1e-12", "--epochs", "9", "--patience", "2"))
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 3


def test_a_broken_picture_is_named(scripts: dict[str, ModuleType], squares: Path, tmp_path: Path) -> None:
    content = (squares / "train" / "red" / "0.png").read_bytes()
    folder = tmp_path / "train" / "red"
    folder.mkdir(parents=True)
    (folder / "torn.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(tvc.InputError, match=r"torn\.png"):
        scripts["train"].main(command(tmp_path, tmp_path / "out"))


@pytest.mark.parametrize("missing", ["nowhere", "empty"])
def test_a_folder_without_pictures_is_said(missing: str, scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    (tmp_path / "empty" / "train" / "cat").mkdir(parents=True)
    with pytest.raises(tvc.InputError, match=f"{missing}.train"):
        scripts["train"].main(command(tmp_path / missing, tmp_path / "out"))


def test_training_pictures_grow(scripts: dict[str, ModuleType]) -> None:
    args = scripts["train"].arguments(["x", "--out", "y", "--epochs", "20", "--start-size", "112", "--size", "160"])
    sizes = [scripts["train"].size_of_epoch(epoch, args) for epoch in range(20)]
    assert sizes[0] == 112
    assert sizes[16:] == [160] * 4
    assert sizes == sorted(sizes)
    assert set(sizes) == {112, 128, 144, 160}


def test_augmented_crops_lie_inside_the_picture_and_repeat(scripts: dict[str, ModuleType]) -> None:
    """A picture that is white on its left half only: crops see both, mirrored ones on the other side."""
    pictures = scripts["pictures"]
    images = torch.zeros(64, 3, 40, 40, dtype=torch.uint8)
    images[..., :20] = 255
    aspect = torch.linspace(0.5, 2, 64)

    def draw(seed: int) -> torch.Tensor:
        out: torch.Tensor = pictures.augment((images, aspect), 32, torch.Generator().manual_seed(seed))
        return out

    out = draw(0)
    assert out.shape == (64, 3, 32, 32)
    assert out.isfinite().all()
    assert torch.equal(out, draw(0))
    assert not torch.equal(out, draw(1))
    left = out[..., :16].mean((1, 2, 3)) > out[..., 16:].mean((1, 2, 3))
    assert 10 < int(left.sum()) < 54
    assert out.std((1, 2, 3)).median() > 0.3
    darkest, brightest = (0 - max(pictures.MEAN)) / min(pictures.STD), 1 / min(pictures.STD)
    assert out.min() >= darkest
    assert out.max() <= brightest


def test_an_upright_crop_keeps_its_proportions(scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    """A disc in a wide picture, squeezed in memory, is a disc again in the crop."""
    pictures = scripts["pictures"]
    y, x = torch.meshgrid(torch.linspace(-1, 1, 80), torch.linspace(-1, 1, 80), indexing="ij")
    disc = (((x * 2) ** 2 + y**2) < 0.25).to(torch.uint8)[None, None].mul(255)  # picture twice as wide as high
    monkeypatch.setattr(torch, "rand", lambda n, generator: torch.full((n,), 0.5))
    crop = pictures.augment((disc, torch.tensor([2.0])), 64, None)[0, 0]
    white = crop > crop.mean()
    rows, columns = white.any(1).sum(), white.any(0).sum()
    assert rows > 20
    assert abs(int(rows - columns)) <= 2


def test_fashion_mnist_is_read_in_its_own_format(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchvision's loader on small files of its format, written here: nothing is downloaded."""
    from torchvision.datasets import FashionMNIST

    raw = tmp_path / "fashion-mnist" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    count = 5240
    labels = torch.arange(count, dtype=torch.uint8) % 10
    images = torch.zeros(count, 28, 28, dtype=torch.uint8)
    for index, label in enumerate(labels.tolist()):
        images[index, :, 2 * label : 2 * label + 8] = 200
    for split in ("train", "t10k"):
        (raw / f"{split}-images-idx3-ubyte").write_bytes(
            bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in images.shape) + images.numpy().tobytes()
        )
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(
            bytes([0, 0, 8, 1]) + count.to_bytes(4, "big") + labels.numpy().tobytes()
        )
    assert FashionMNIST(str(tmp_path / "fashion-mnist"), download=False).data.shape == images.shape
    scripts["train"].main(
        [
            "fashion-mnist",
            "--model",
            "fashion_mnist_convnet",
            "--size",
            "28",
            "--epochs",
            "1",
            "--batch",
            "24",
            "--device",
            "cpu",
            "--out",
            str(tmp_path),
        ]
    )
    row = json.loads((tmp_path / "history.jsonl").read_text())
    assert row["validation_accuracy"] > 0.05
    assert row["size"] == 28
