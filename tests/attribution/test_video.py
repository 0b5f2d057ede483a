"""Heatmaps over clips: where the heat is, on what scale, of which class, and files that are whole or not there."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn

import torchviz_cnn as tvc
from tests.media.test_video import Camera, clip
from torchviz_cnn.media.render import Array

SIDE = 64


def network(**changes: Any) -> tvc.Network:
    """Scores how much red and how much blue there is: the Grad-CAM of a class is where its colour is."""
    conv = nn.Conv2d(3, 2, 4, stride=4, bias=False)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[0, 0], conv.weight[1, 2] = 1, 1
    linear = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.eye(2))
    model = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
    still: dict[str, Any] = {"mean": (0, 0, 0), "std": (1, 1, 1), **changes}
    return tvc.Network(model, tvc.Preprocess((SIDE, SIDE), "stretch", **still), ("red", "blue"))


def moving(count: int = 24, *, level: int = 255, channel: int = 0, width: int = 96) -> tuple[list[Array], list[int]]:
    """A square of 16 x 16 that moves over black, and the place of its middle in each frame."""
    places = [round(8 + (width - 16) * (0.5 - 0.5 * np.cos(2 * np.pi * i / count))) for i in range(count)]
    pictures = []
    for x in places:
        frame = np.zeros((SIDE, width, 3), np.uint8)
        frame[24:40, x - 8 : x + 8, channel] = level
        pictures.append(frame)
    return pictures, places


def read(path: Path) -> list[Array]:
    capture, found = cv2.VideoCapture(str(path)), []
    while (frame := capture.read())[0]:
        found.append(frame[1][..., ::-1])
    return found


def heat_of(frame: Array) -> Array:
    """The heat of a frame that is drawn in grey over red or blue on black: its green."""
    return frame[..., 1].astype(float)


@pytest.mark.parametrize("scale", ["clip", "frame"])
def test_the_heat_follows_what_moves(scale: Any, tmp_path: Path) -> None:
    pictures, places = moving()
    made = tvc.cam_video(
        network(), clip(tmp_path / "a.avi", pictures), tmp_path / "b.avi", scale=scale, colormap="gray", batch_size=5
    )
    drawn = read(tmp_path / "b.avi")
    assert (made.frames, made.size, made.fps, made.category, made.layer) == (24, (96, 64), 12.5, "red", "1")
    assert len(drawn) == 24
    columns = [float((heat_of(f).sum(0) * np.arange(96)).sum() / heat_of(f).sum()) + 0.5 for f in drawn]
    rows = [float((heat_of(f).sum(1) * np.arange(64)).sum() / heat_of(f).sum()) + 0.5 for f in drawn]
    assert np.corrcoef(columns, places)[0, 1] > 0.99
    assert np.abs(np.subtract(columns, places)).max() < 3
    assert np.abs(np.subtract(rows, 32)).max() < 2


def test_a_clip_of_overlays_is_that_of_each_frame(tmp_path: Path) -> None:
    """What `overlay` draws, but for what the codec, a JPEG for each frame, changes."""
    rng = np.random.default_rng(0)
    smooth = [cv2.resize(rng.integers(60, 256, (4, 6, 3), dtype=np.uint8), (96, 64)) for _ in range(7)]
    net = tvc.Network(network().model, tvc.Preprocess((SIDE, SIDE), "crop", SIDE), ("red", "blue"))
    tvc.cam_video(net, smooth, tmp_path / "a.avi", target="red", scale="frame", batch_size=3)
    drawn = read(tmp_path / "a.avi")
    heat = tvc.grad_cam(net, smooth, target="red")
    assert len(drawn) == 7
    for number, frame in enumerate(drawn):
        assert np.abs(frame.astype(float) - np.asarray(heat.overlay(index=number))).mean() < 6


def test_a_part_of_the_output_is_explained_as_if_it_were_the_output(tmp_path: Path) -> None:
    class Heads(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network().model

        def forward(self, x: torch.Tensor) -> dict[str, Any]:
            scores = self.net(x)
            return {"maps": x, "heads": [-scores, scores]}

    pictures, plain = moving(6)[0], network()
    heads = tvc.Network(Heads(), plain.preprocess, plain.categories)
    expected = tvc.cam_video(plain, pictures, tmp_path / "a.avi", target="red")
    with pytest.raises(tvc.ModelError, match="output= chooses a part of it"):
        tvc.cam_video(heads, pictures, tmp_path / "b.avi")
    made = tvc.cam_video(heads, pictures, tmp_path / "b.avi", output="heads.1")
    assert (made.category, made.probability, made.layer) == ("red", expected.probability, "net.1")
    assert all(np.array_equal(a, b) for a, b in zip(read(tmp_path / "a.avi"), read(tmp_path / "b.avi"), strict=True))


def test_one_scale_over_the_clip_keeps_what_is_weaker_weak(tmp_path: Path) -> None:
    (bright,), (dim,) = (moving(1, level=level)[0] for level in (250, 125))
    peaks = {}
    for scale in ("clip", "frame"):
        options: dict[str, Any] = {"scale": scale, "colormap": "gray", "alpha": 1, "target": "red"}
        tvc.cam_video(network(), [dim, bright, dim], tmp_path / "a.avi", batch_size=1, **options)
        peaks[scale] = [int(heat_of(frame).max()) for frame in read(tmp_path / "a.avi")]
    assert peaks["clip"] == pytest.approx([127, 255, 127], abs=16)
    assert peaks["frame"] == pytest.approx([255, 255, 255], abs=16)


def test_the_likeliest_class_of_the_clip_is_explained(tmp_path: Path) -> None:
    red, blue = moving(12, channel=0)[0], moving(12, channel=2)[0]
    path = tmp_path / "a.avi"
    with pytest.warns(tvc.EmptyMapWarning, match="no positive evidence for 'blue' in 4 of 12 frames"):
        assert tvc.cam_video(network(), red[:4] + blue[:8], path).category == "blue"
    with pytest.warns(tvc.EmptyMapWarning, match="no positive evidence for 'red' in 8 of 12 frames"):
        made = tvc.cam_video(network(), red[:4] + blue[:8], path, target="red")
    assert made.target == 0
    expected = tvc.predict(network(), red[:4] + blue[:8])[:, 0].mean()
    assert made.probability == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("method", ["layer_cam", "cam"])
def test_every_method_that_explains_a_layer(method: str, tmp_path: Path) -> None:
    made = tvc.cam_video(network(), moving(3)[0], tmp_path / "a.mp4", method=method)
    assert made.method == {"layer_cam": "LayerCAM", "cam": "CAM"}[method]
    assert made.path.stat().st_size > 0


def test_seconds_and_rate(tmp_path: Path) -> None:
    source = clip(tmp_path / "a.avi", moving(20)[0], fps=10)
    assert tvc.cam_video(network(), source, tmp_path / "b.avi", seconds=0.5).frames == 5
    made = tvc.cam_video(network(), source, tmp_path / "b.avi", fps=20, seconds=0.5)
    assert (made.frames, made.fps) == (10, 20)
    assert cv2.VideoCapture(str(tmp_path / "b.avi")).get(cv2.CAP_PROP_FPS) == pytest.approx(20)


def test_a_damaged_file_is_told_once(tmp_path: Path) -> None:
    data = clip(tmp_path / "a.avi", moving(20)[0]).read_bytes()
    (tmp_path / "half.avi").write_bytes(data[: len(data) // 2])
    with pytest.warns(tvc.SkippedWarning, match=r"half\.avi ends after \d+ of 20 frames: the file is") as told:
        tvc.cam_video(network(), tmp_path / "half.avi", tmp_path / "b.avi")
    assert len(told) == 1


class Interrupted:
    """A preprocessing that raises after some frames."""

    def __init__(self, error: BaseException, after: int) -> None:
        self.calls, self.error, self.after, self.net = itertools.count(), error, after, network()

    def __call__(self, photo: Any) -> torch.Tensor:
        if next(self.calls) >= self.after:
            raise self.error
        return self.net.preprocess(photo)


@pytest.mark.filterwarnings("ignore::torchviz_cnn.core.errors.GeometryWarning")
@pytest.mark.parametrize("scale", ["clip", "frame"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("mine")])
def test_what_is_interrupted_leaves_nothing_and_what_was_there_stays(
    scale: Any, error: BaseException, tmp_path: Path
) -> None:
    stops: Any = Interrupted(error, after=7)
    net = tvc.Network(network().model, stops, ("red", "blue"))
    (tmp_path / "a.avi").write_bytes(b"before")
    with pytest.raises(type(error)):
        tvc.cam_video(net, moving(12)[0], tmp_path / "a.avi", target=0, scale=scale, batch_size=2)
    assert [path.name for path in tmp_path.iterdir()] == ["a.avi"]
    assert (tmp_path / "a.avi").read_bytes() == b"before"


@pytest.mark.filterwarnings("ignore::torchviz_cnn.core.errors.GeometryWarning")
def test_a_camera_is_recorded_in_real_time_until_it_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, path, seconds = cv2.VideoCapture, tmp_path / "a.avi", itertools.count(0, 0.1)
    clock = [next(seconds)]

    class Slow(Camera):
        """Gives 10 frames each second of the clock."""

        def grab(self) -> bool:
            clock[0] = next(seconds)
            return True

        def retrieve(self) -> tuple[bool, Array]:
            return True, np.full((32, 48, 3), 200, np.uint8)

    monkeypatch.setattr("torchviz_cnn.attribution.video.time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(cv2, "VideoCapture", lambda source: Slow(source) if source == 0 else real(source))
    made = tvc.cam_video(network(), 0, path, seconds=0.6, target=0)
    assert 3 <= made.frames <= 8
    assert len(read(path)) == pytest.approx(0.6 * 15, abs=3)

    stops: Any = Interrupted(KeyboardInterrupt(), after=4)
    made = tvc.cam_video(tvc.Network(network().model, stops, ("red", "blue")), 0, path, target=0)
    assert made.frames == 4
    assert len(read(path)) >= 4


def test_what_cannot_be_meant_is_told_before_the_work(tmp_path: Path) -> None:
    source, net = clip(tmp_path / "a.avi", moving(2)[0]), network()
    (tmp_path / "link.avi").symlink_to(source)
    before = source.read_bytes()
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"out": source}, tvc.InputError, "is the clip itself"),
        ({"out": tmp_path / "link.avi"}, tvc.InputError, "is the clip itself"),
        ({"out": tmp_path / "a.flv"}, tvc.OutputError, "written as"),
        ({"out": tmp_path}, tvc.OutputError, "written as"),
        ({"out": source / "b.avi"}, tvc.OutputError, "is a file, not a folder"),
        ({"model": net.model}, tvc.InputError, "a clip needs a Network"),
        ({"scale": "all"}, tvc.InputError, "no scale 'all'"),
        ({"method": "saliency"}, tvc.InputError, "no method 'saliency'"),
        ({"method": "cam", "score": "probability"}, tvc.InputError, "cam explains the logit alone"),
        ({"batch_size": 0}, tvc.InputError, "batch_size"),
        ({"seconds": -1}, tvc.InputError, "seconds"),
        ({"alpha": 2}, tvc.InputError, "alpha"),
        ({"colormap": "jett"}, tvc.InputError, "did you mean 'jet'"),
        ({"interpolation": "cubic"}, tvc.InputError, "interpolation"),
        ({"target": "rod"}, tvc.TargetError, "did you mean 'red'"),
        ({"target": 7}, tvc.TargetError, "out of range"),
        ({"target": tvc.targets.contrast(0, 1)}, tvc.TargetError, "the target is a function"),
        ({"layer": "9"}, tvc.LayerError, "no layer"),
    ]
    for changes, error, words in wrong:
        options: dict[str, Any] = {"model": net, "source": source, "out": tmp_path / "b.avi", **changes}
        with pytest.raises(error, match=words):
            tvc.cam_video(**options)
    assert source.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"a.avi", "link.avi"}


@pytest.mark.slow
def test_the_heat_of_a_trained_network_follows_a_cat(tmp_path: Path) -> None:
    """Ten seconds of a cat's face that moves over a plain background."""
    data = pytest.importorskip("skimage.data")
    photo = cv2.resize(data.chelsea()[:, 75:375], (150, 150))
    places = [75 + 170 * (0.5 - 0.5 * np.cos(2 * np.pi * i / 120)) for i in range(240)]
    pictures = []
    for x in places:
        frame = np.full((240, 320, 3), 150, np.uint8)
        frame[45:195, round(x) - 75 : round(x) + 75] = photo
        pictures.append(frame)
    path = clip(tmp_path / "cat.mp4", pictures, fps=24)
    net = tvc.load_model("cats_and_dogs", geometry="stretch")
    made = tvc.cam_video(net, path, tmp_path / "b.mp4", colormap="gray", alpha=1, blend="mix")
    assert (made.frames, made.category, made.fps) == (240, "cat", 24)
    assert made.probability > 0.9
    drawn = [heat_of(frame).sum(0) for frame in read(tmp_path / "b.mp4")]
    columns = [float((heat * np.arange(320)).sum() / heat.sum()) for heat in drawn]
    assert np.corrcoef(columns, places)[0, 1] > 0.8
