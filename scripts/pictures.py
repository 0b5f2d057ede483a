"""Pictures for training: decoded once into one uint8 tensor, augmented a whole batch at a time."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F
from torchvision.datasets import FashionMNIST
from torchvision.transforms import functional as TF
from tqdm import tqdm

from torchviz_cnn.core.errors import InputError

MEAN = (0.485, 0.456, 0.406)  # of ImageNet: what visualisation tools expect where nothing else is said
STD = (0.229, 0.224, 0.225)
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm"})


@dataclass(frozen=True, eq=False)
class Pictures:
    """A whole split in memory.

    `images` is `(N, C, S, S)` uint8: every picture squeezed into a square, whole; `aspect` `(N,)` is width /
    height before that, `labels` `(N,)` the class index. `paths` is empty where the pictures are no files.
    """

    images: Tensor
    aspect: Tensor
    labels: Tensor
    categories: tuple[str, ...]
    paths: tuple[Path, ...] = ()
    grey: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, indices: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Images and aspect ratios of one batch."""
        return self.images[indices].to(device), self.aspect[indices].to(device)


def open_picture(path: Path, grey: bool) -> Image.Image:
    """RGB (or grey), the right way up."""
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("L" if grey else "RGB")
    except (OSError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as a picture: {error}") from error


def _squeezed(path: Path, size: int, grey: bool) -> tuple[Tensor, float]:
    image = open_picture(path, grey)
    square: Tensor = TF.pil_to_tensor(image.resize((size, size), Image.Resampling.BILINEAR))
    return square, image.width / image.height


def _centre(path: Path, size: int, grey: bool) -> Tensor:
    """Shorter side to `size`, centre crop: the preprocessing that the finished network is used with."""
    crop: Tensor = TF.pil_to_tensor(TF.center_crop(TF.resize(open_picture(path, grey), [size]), [size, size]))
    return crop


def read_folder(folder: Path, size: int, grey: bool = False) -> Pictures:
    """Every picture of `folder/CLASS/`, classes in alphabetical order, `size` pixels square in memory."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: expected DIR/train/CLASS and DIR/validation/CLASS")
    categories = tuple(sorted(d.name for d in folder.iterdir() if d.is_dir()))
    result = [
        (path, label)
        for label, name in enumerate(categories)
        for path in sorted((folder / name).iterdir())
        if path.suffix.lower() in SUFFIXES
    ]
    if not result:
        raise InputError(f"no pictures in {folder}/CLASS ({', '.join(categories) or 'no classes'})")
    paths = tuple(path for path, _ in result)
    with ThreadPoolExecutor() as pool:
        work = pool.map(partial(_squeezed, size=size, grey=grey), paths)
        read = list(tqdm(work, desc=f"reading {folder.name}", total=len(paths), disable=None, leave=False))
    return Pictures(
        images=torch.stack([image for image, _ in read]),
        aspect=torch.tensor([aspect for _, aspect in read]),
        labels=torch.tensor([label for _, label in result]),
        categories=categories,
        paths=paths,
        grey=grey,
    )


def fashion_mnist(root: Path) -> tuple[Pictures, Pictures]:
    """torchvision's training pictures, downloaded to `root`; the last 5 000 of them are for validation."""
    data = FashionMNIST(str(root), train=True, download=True)
    images, labels = data.data[:, None], data.targets
    aspect = torch.ones(len(labels))
    categories = tuple(data.classes)
    train, validation = slice(0, -5000), slice(-5000, None)
    return (
        Pictures(images[train], aspect[train], labels[train], categories, grey=True),
        Pictures(images[validation], aspect[validation], labels[validation], categories, grey=True),
    )


def resize(pictures: Pictures, size: int) -> Tensor:
    """The pictures as the finished network will see them: `(N, C, size, size)` uint8 centre crops."""
    if not pictures.paths:
        if pictures.images.shape[-1] == size:
            return pictures.images
        return F.interpolate(pictures.images, size=(size, size), mode="bilinear", antialias=True)
    with ThreadPoolExecutor() as pool:
        return torch.stack(list(pool.map(partial(_centre, size=size, grey=pictures.grey), pictures.paths)))


def normalize(images: Tensor) -> Tensor:
    """uint8 `(B, C, H, W)` to float32, minus the mean, over the standard deviation."""
    channels = images.shape[1]
    mean = torch.tensor(MEAN[:channels], device=images.device).view(1, -1, 1, 1)
    std = torch.tensor(STD[:channels], device=images.device).view(1, -1, 1, 1)
    return (images.float() / 255 - mean) / std


def augment(batch: tuple[Tensor, Tensor], size: int, generator: torch.Generator, min_zoom: float = 0.55) -> Tensor:
    """A random crop of each picture, zoomed, turned, mirrored and recoloured: `(B, C, size, size)`,
    normalised.

    The crop is a square of `min_zoom` to 1.05 of the picture's shorter side, anywhere in the picture, turned by up
    to 15 degrees, a tenth wider or higher than it was.
    """
    images, aspect = batch
    count, channels = images.shape[:2]
    device = images.device

    def uniform(low: float, high: float) -> Tensor:
        return (torch.rand(count, generator=generator) * (high - low) + low).to(device)

    # Half the crop's width and height, in units of half the picture's: grid_sample's coordinates.
    zoom, stretch = uniform(min_zoom, 1.05), uniform(-0.1, 0.1).exp()
    wide = zoom * stretch / aspect.clamp(min=1)
    high = zoom / stretch * aspect.clamp(max=1)
    x = uniform(-1, 1) * (1 - wide).clamp(min=0)
    y = uniform(-1, 1) * (1 - high).clamp(min=0)
    angle = uniform(-math.pi / 12, math.pi / 12)
    mirror = torch.where(uniform(-1, 1) < 0, -1.0, 1.0)
    cos, sin = angle.cos(), angle.sin()
    theta = torch.stack(
        [
            torch.stack([wide * cos * mirror, -wide * sin, x], 1),
            torch.stack([high * sin * mirror, high * cos, y], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, [count, channels, size, size], align_corners=False)
    out = F.grid_sample(images.float(), grid, padding_mode="reflection", align_corners=False) / 255

    if channels == 3:
        grey = out.mean(1, keepdim=True)
        out = grey + (out - grey) * uniform(0.5, 1.5).view(-1, 1, 1, 1)  # saturation
    middle = out.mean((1, 2, 3), keepdim=True)
    out = (out - middle) * uniform(0.7, 1.3).view(-1, 1, 1, 1) + middle * uniform(0.7, 1.3).view(-1, 1, 1, 1)
    mean = torch.tensor(MEAN[:channels], device=device).view(1, -1, 1, 1)
    std = torch.tensor(STD[:channels], device=device).view(1, -1, 1, 1)
    return (out.clamp(0, 1) - mean) / std
