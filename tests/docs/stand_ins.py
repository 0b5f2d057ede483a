"""What the blocks of the docs speak of and do not make: small networks, photos and files in their place.

Networks have the layers that a page names, and weights that nobody has trained.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from skimage import data
from torch import Tensor, nn
from torchvision.models import ResNet, VisionTransformer
from torchvision.models.resnet import BasicBlock
from torchvision.models.vgg import make_layers

import torchviz_cnn as tvc

Names = dict[str, Any]
KITCHEN = ("cup", "fork", "glass", "knife", "plate", "spoon")
_load_model = tvc.load_model


def load_model(name: Any, weights: Any = None, **options: Any) -> tvc.Network:
    """`tvc.load_model` of networks that are there, and small ones in the place of those whose files are not."""
    if name == "vgg16":
        return network(vgg(), 128, imagenet())
    if str(name).endswith(".keras"):
        return network(Residual(len(KITCHEN)), 64, options.get("labels", KITCHEN))
    made_here = not isinstance(weights, (str, Path)) or Path(weights).exists() or weights == "random"
    return _load_model(name, weights if made_here else "random", **options)


def network(model: nn.Module, size: int, categories: Any) -> tvc.Network:
    return tvc.Network(model.eval(), tvc.Preprocess((size, size)), tuple(categories))


def imagenet() -> tuple[str, ...]:
    return tuple(_load_model("efficientnet_lite0").categories or ())


def vgg() -> nn.Module:
    """VGG16's layers, each with few channels, but for those that pages ask for by number."""
    plan: list[str | int] = [13, 13, "M", 64, 64, "M", 97, 13, 13, "M", 13, 13, 13, "M", 13, 13, 13, "M"]
    model = nn.Sequential()
    model.add_module("features", make_layers(plan))  # type: ignore[arg-type]
    model.add_module("classifier", head(13, 1000))
    return model


def head(channels: int, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class Residual(ResNet):  # type: ignore[misc, unused-ignore]
    """A ResNet with at most three blocks in a stage, and the other layers that pages name."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__(BasicBlock, [1, 1, 1, 3], num_classes=classes)
        self.relu3 = nn.ReLU()
        self.xception = nn.Module()
        self.xception.block14_sepconv2_act = nn.ReLU()

    def _forward_impl(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.relu3(self.layer3(self.layer2(self.layer1(x)))))
        x = self.xception.block14_sepconv2_act(x)  # type: ignore[operator]
        return torch.as_tensor(self.fc(self.avgpool(x).flatten(1)))


class Segmenter(nn.Module):
    """Scores of 21 classes for each pixel, under `out`, as torchvision's segmentation networks give them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 21, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.layers(x)}


class Trunk(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer4 = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.layer4(x))


class Siamese(nn.Module):
    """How alike two pictures are: (B, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk()
        self.out = nn.Linear(8, 1)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        a, b = self.trunk(left), self.trunk(right)
        return torch.as_tensor(self.out((a * b).mean((2, 3))))


class Detector(nn.Module):
    """One box for each image, as torchvision's detectors give them."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.body = Trunk()

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        scores = self.backbone.body(x).mean((1, 2, 3)).sigmoid()  # type: ignore[operator]
        box = torch.tensor([[4.0, 4.0, 20.0, 20.0]])
        return [{"boxes": box, "scores": score[None], "labels": torch.tensor([1])} for score in scores]


class WithAge(nn.Module):
    """A picture and a number: keyword inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk()
        self.out = nn.Linear(9, 4)

    def forward(self, image: Tensor, age: Tensor) -> Tensor:
        return torch.as_tensor(self.out(torch.cat([self.trunk(image).mean((2, 3)), age], 1)))


def signals_net() -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 6, 5), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 4)).eval()


def clips_net() -> nn.Module:
    return nn.Sequential(nn.Conv3d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, 5)).eval()


def vit() -> nn.Module:
    model = VisionTransformer(32, 8, num_layers=12, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=400)
    nn.init.normal_(model.heads.head.weight)  # of a new one all weights of the head are 0
    model.eval()
    made: nn.Module = model
    return made


def coffee() -> Image.Image:
    return Image.fromarray(data.coffee())  # type: ignore[no-untyped-call]


def _cam() -> Names:
    return {
        "vit": vit(),
        "x": torch.rand(1, 3, 32, 32),
        "video_net": clips_net(),
        "clips": torch.rand(1, 3, 6, 16, 16),
        "ecg_net": signals_net(),
        "signals": torch.rand(1, 2, 60),
        "net": _load_model("efficientnet_lite0"),
        "photo": coffee(),
    }


def _targets() -> Names:
    class Both(WithAge):
        """Takes a batch alone too, as `model` stands for several networks on the page."""

        def forward(self, image: Tensor, age: Tensor | None = None) -> Tensor:
            scores = super().forward(image, torch.zeros(len(image), 1) if age is None else age)
            return torch.cat([scores, scores.square()], 1)

    return {
        "model": Both().eval(),
        "regression": Both().eval(),
        "x": torch.rand(2, 3, 32, 32),
        "age": torch.rand(2, 1),
        "segmenter": Segmenter().eval(),
        "mask": torch.ones(32, 32, dtype=torch.bool),
        "net": _load_model("efficientnet_lite0"),
        "photo": coffee(),
        "detector": Detector().eval(),
        "siamese": Siamese().eval(),
        "left": torch.rand(2, 3, 32, 32),
        "right": torch.rand(2, 3, 32, 32),
    }


def _trust() -> Names:
    names = {"model": Residual().eval(), "x": torch.rand(2, 3, 64, 64), "my_maps": torch.rand(2, 64, 64), "classes": 3}
    return {**names, "photos": ["photos/cat.png", "photos/cup.png"]}


def _models() -> Names:
    from torchviz_cnn.models.keras.layers import table

    class MyScale(nn.Module):
        pass

    return {"builds": table.builds, "LayerPlan": Any, "nn": nn, "MyScale": MyScale}


def _watch() -> Names:
    model = Residual(2)
    loader = [(torch.rand(2, 3, 32, 32), torch.tensor([0, 1]))] * 2
    photos = ["photos/cat.png", "cat.jpg", "dog.jpg"]
    known = {"preprocess": tvc.Preprocess((32, 32)), "names": ("cat", "dog"), "loader": loader, "torch": torch}
    return {**known, "model": model, "photos": photos, "optimizer": torch.optim.SGD(model.parameters(), 0.01)}


def _readme() -> Names:
    names = {**_targets(), "my_model": Residual().eval(), "my_batch": torch.rand(1, 3, 64, 64), "torch": torch}
    return {**names, "mask": torch.ones(64, 64, dtype=torch.bool), "categories": tuple("abcdefghij")}


NAMES: dict[str, Callable[[], Names]] = {
    "README.md": _readme,
    "docs/cam.md": _cam,
    "docs/deconvnet.md": lambda: {"net": load_model("vgg16"), "photo": coffee()},
    "docs/models.md": _models,
    "docs/saliency.md": lambda: {"net": _load_model("efficientnet_lite0")},
    "docs/targets.md": _targets,
    "docs/top.md": lambda: {"net": _load_model("squeezenet1_0", "random")},
    "docs/trust.md": _trust,
    "docs/watch.md": _watch,
}
"""What a page speaks of before its first block, by name."""


MODULE = """
from torch import nn


def small_cnn(channels=3, classes=3):
    return nn.Sequential(
        *(nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, classes)),
    )
"""
"""A reader's own module: the network of docs/own_model.md."""


def write_files(folder: Path) -> None:
    """The photos, masks, clips and modules that the pages name."""
    (folder / "mymodels.py").write_text(MODULE, encoding="utf-8")
    (folder / "classes.txt").write_text("cup\nfork\nplate\n", encoding="utf-8")
    for name, made in {"coffee.png": "coffee", "elephant.jpg": "coffee", "fork.jpg": "coffee"}.items():
        Image.fromarray(getattr(data, made)()).save(folder / name)
    for name in ("dog.jpg", "husky.jpg", "photo.jpg", "cat.jpg"):
        Image.fromarray(data.chelsea()).save(folder / name)  # type: ignore[no-untyped-call]
    for name in ("photos", "trimaps"):
        (folder / name).mkdir()
    for name, made in {"cat": "chelsea", "cup": "coffee"}.items():
        photo = Image.fromarray(getattr(data, made)()).resize((150, 100))
        photo.save(folder / "photos" / f"{name}.png")
        mask = np.full((100, 150), 2, np.uint8)
        mask[30:70, 40:100] = 1
        Image.fromarray(mask).save(folder / "trimaps" / f"{name}.png")
    for shard in range(4):
        with tarfile.open(folder / f"train-{shard:06d}.tar", "w") as tar:
            for name in ("cat", "cup"):
                tar.add(folder / "photos" / f"{name}.png", f"{name}.png")
    clip = cv2.VideoWriter(str(folder / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 5, (64, 48))
    for shade in range(4):
        clip.write(np.full((48, 64, 3), 60 * shade, np.uint8))
    clip.release()
