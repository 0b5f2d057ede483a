"""Every result is a value: it can be pickled and deep-copied, and is then what it was."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import torchviz_cnn as tvc
from tests import networks
from tests.media.shards.tars import photo_bytes, write_tar


def results(folder: Path) -> dict[str, Any]:
    """One of each, from a Network and a photo where the method takes one."""
    model = networks.vgg_like()
    net = tvc.Network(model, tvc.Preprocess((32, 32), "stretch"))
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8))
    photo.save(folder / "photo.png")
    clean: Any = {"size": 16, "steps": 1, "quality": "clean"}
    tar = write_tar(folder / "photos.tar", [("1.jpg", photo_bytes(1)), ("2.jpg", photo_bytes(2))])
    return {
        "Activations": tvc.capture(net, photo, ["features.0"]),
        "Atlas": tvc.filter_atlas(net, folder / "atlas", "features.0", 2, size=16, steps=1),
        "Box": tvc.Box(1, 2, 3, 4, 0.5),
        "CamVideo": tvc.cam_video(net, [photo, photo], folder / "clip.avi", target=1),
        "Comparison": tvc.compare({"a": net}, {"a": ["features.0"]}, photo=photo, k=1),
        "Deconvolution": tvc.deconvnet(net, photo, "features.3", 0),
        "Description": tvc.describe(model, (32, 32)),
        "Explanation": tvc.explain(net, photo, 1, ["features.0", "features.3"], "layer_cam", relu=False),
        "FirstFilters": tvc.first_filters(net),
        "Heatmap": tvc.eigen_cam(net, photo, target=1),
        "Measurement": tvc.metrics.insertion(net, photo, "grad_cam", 1, steps=2),
        "Network": net,
        "Occlusion": tvc.occlusion(net, photo, target=1, patch=16),
        "Patterns": tvc.filter_patterns(net, "features.0", [0], **clean),
        "PhotoFolder": tvc.PhotoFolder(folder, net.preprocess),
        "Predictions": net.predict(photo),
        "Preprocess": net.preprocess,
        "Recipe": tvc.Recipe.named("clean"),
        "Saliency": tvc.saliency(net, photo, target=1),
        "SignedHeatmap": tvc.grad_cam(net, photo, target=1, relu=False),
        "Survey": tvc.survey(net, [photo, photo], truth=[0, 1], k=1),
        "SimilarChannels": tvc.similar_channels(net, "features.0", 1),
        "TarShards": tvc.TarShards(tar),
        "TopActivations": tvc.top_activations(net, folder, ["features.0"], k=1),
        "Trust": tvc.trust(net, photo, methods="grad_cam", truth=[1], steps=2, mosaics=0),
    }


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_is_no_path_is_one_line(tmp_path: Path) -> None:
    """Where a result is saved, and in every function that takes a path."""
    net = tvc.Network(networks.vgg_like(), tvc.Preprocess((32, 32), "stretch"))
    photo, x = Image.new("RGB", (40, 50)), networks.images(1)
    calls: dict[str, Callable[[Any], object]] = {
        name: result.save for name, result in results(tmp_path).items() if hasattr(result, "save")
    }
    assert len(calls) > 8
    calls |= {
        "trust": lambda out: tvc.trust(net, x, methods="saliency", out=out),
        "survey": lambda out: tvc.survey(net, x, out=out),
        "Survey.load": tvc.Survey.load,
        "report": lambda out: tvc.report(net, [photo], out),
        "cam_video": lambda out: tvc.cam_video(net, [photo], out),
        "filter_atlas": lambda out: tvc.filter_atlas(net, out, "features.0"),
        "top_activations": lambda out: tvc.top_activations(net, x, ["features.0"], out=out),
        "TopActivations.load": tvc.TopActivations.load,
        "merge": tvc.merge,
        "Atlas.read": tvc.Atlas.read,
        "PhotoFolder": tvc.PhotoFolder,
        "read_image": tvc.read_image,
        "load_keras_weights": lambda path: tvc.load_keras_weights(net, path),
    }
    for name, call in calls.items():
        for path in (5, b"a.png", ["a.png"]):
            with pytest.raises(tvc.InputError) as error:
                call(path)
            assert "names a file or folder by a str or a Path, not by" in str(error.value), name


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        assert torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
    elif isinstance(one, (Image.Image, np.ndarray)):
        assert one.tobytes() == other.tobytes()
    elif dataclasses.is_dataclass(one):
        for field in dataclasses.fields(one):
            assert_same(getattr(one, field.name), getattr(other, field.name))
    elif isinstance(one, Mapping):
        assert list(one) == list(other)
        assert_same(list(one.values()), list(other.values()))
    elif isinstance(one, (tuple, list)):
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    elif isinstance(one, nn.Module):
        assert_same(one.state_dict(), other.state_dict())
    elif "__eq__" in vars(type(one)):
        assert one == other or (one != one and other != other)  # NaN is itself in a copy, too


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_result_pickles_and_copies(tmp_path: Path) -> None:
    made = results(tmp_path)
    others = {"HookManager", "Report", "ReluRule", "Watch"}
    classes = {name for name in tvc.__all__ if isinstance(getattr(tvc, name), type)}
    errors = {name for name in classes if issubclass(getattr(tvc, name), (Exception, Warning))}
    assert classes - errors - others == set(made)
    for name, result in made.items():
        assert type(result).__name__ == name
        assert_same(result, pickle.loads(pickle.dumps(result)))
        assert_same(result, copy.deepcopy(result))
    for name in errors:
        error = getattr(tvc, name)("what is wrong")
        assert str(pickle.loads(pickle.dumps(error))) == "what is wrong"
