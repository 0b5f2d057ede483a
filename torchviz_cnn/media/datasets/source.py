"""Any map-style dataset as inputs for a network, one by one, and the photos that these were made from."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import InputError, SkippedWarning, kind_of
from torchviz_cnn.core.warn import say_once
from torchviz_cnn.media.bands import colour
from torchviz_cnn.media.datasets.givers import TORCHVISION, gives_files, gives_stored, gives_together
from torchviz_cnn.media.datasets.photo_folder import PhotoFolder, file_of_item, makes_inputs, preprocess_of_transform
from torchviz_cnn.media.datasets.photos import Photos
from torchviz_cnn.media.datasets.shards.patterns import are_shards
from torchviz_cnn.media.datasets.shards.tar_shards import TarShards
from torchviz_cnn.media.datasets.subsets import owner_of, photos_within, require_places, whole_of
from torchviz_cnn.media.decoding import Decode, Jpeg, plain_jpeg, require_fits
from torchviz_cnn.media.images import Preprocess
from torchviz_cnn.media.origin import as_photo, input_of, is_photo, picture_of, stored
from torchviz_cnn.media.render import Box

_log = logging.getLogger("torchviz_cnn")
_IMAGE_KEYS = ("image", "pixel_values", "img", "images", "input", "x")
_LABEL_KEYS = ("label", "labels", "target", "class", "y")
_TOGETHER = 16


@dataclass(frozen=True, eq=False)
class View:
    """A picture, and what part of it the network sees."""

    photo: Image.Image
    box: tuple[float, float, float, float]
    """(left, top, right, bottom) in the photo's pixels; beyond them where the input was padded."""
    input_size: tuple[int, int]
    """(H, W) of the input that this part became."""


class ImageSource:
    """A dataset, whatever its items look like: inputs, photos (of PIL, paths, or arrays and tensors of whole numbers),
    tuples or dicts of these with a label.

    `preprocess` turns photos into inputs, and tells where on them the network looks. With `decode="cuda"` batches have
    plain JPEG files as they are, for a GPU to decode. Raises InputError for what is no
    map-style dataset.
    """

    def __init__(
        self, dataset: Any, preprocess: Callable[[Image.Image], Tensor] | None = None, decode: Decode = "cpu"
    ) -> None:
        if isinstance(dataset, (str, Path)):
            dataset = TarShards(dataset) if are_shards(dataset) else PhotoFolder(dataset)
        if isinstance(dataset, (list, tuple)) and dataset and are_shards(dataset[0]):
            raise InputError(
                f"a list as a dataset has photos, and {str(dataset[0])!r} means photos in tar files: pass "
                "TarShards(list)"
            )
        if isinstance(dataset, Mapping) or not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
            hint = "; pass its .dataset" if hasattr(dataset, "dataset") else ""
            raise InputError(
                "a dataset is a folder of photos, or map-style: len(dataset) and dataset[i]; "
                f"not {kind_of(dataset)}{hint}"
            )
        if not isinstance(dataset, Photos) and len(dataset) == 0:
            raise InputError(f"the dataset ({type(dataset).__name__}) is empty")
        if not isinstance(whole_of(dataset), TarShards):  # how many photos these have is known when they are prepared
            require_places(dataset)
        self.dataset = dataset
        self.preprocess = preprocess
        self.decode = checks.one_of("decode", decode, get_args(Decode))
        if decode == "cuda":
            require_fits(self.scaling)
            owner, _ = owner_of(dataset, 0)
            if not gives_stored(owner) or type(owner).encoded is Photos.encoded:
                raise InputError(f"decode='cuda' reads files, as of a folder of photos, not items of {kind_of(owner)}")

    def __len__(self) -> int:
        return len(self.dataset)

    def item(self, index: int) -> tuple[Tensor, int | None]:
        """The input (C, H, W) and its label, if it has one. Raises InputError for items that are not images."""
        x, label = self._prepared(index, self._stored(index))
        return x if self.scaling is None or x.dtype != torch.uint8 else self.scaling.scaled(x), label

    def prepare(self, folder: str | os.PathLike[str] | None, *, progress: bool = False) -> Path | None:
        """Get ready to read photos, as `Photos.prepare` says, with what is kept for that in a folder."""
        photos = photos_within(self.dataset)
        place = None if folder is None else checks.path("out", folder)
        kept = None if photos is None else photos.prepare(place, progress=progress)
        require_places(self.dataset)
        return kept

    def fetch(self, places: Sequence[int], ahead: Sequence[int] = ()) -> None:
        """Get all that several photos are read from, and begin with that of those that are asked for `ahead`."""
        owner, _ = owner_of(self.dataset, 0)
        if gives_stored(owner):
            owner.fetch([owner_of(self.dataset, place)[1] for place in places])
            owner.ahead([owner_of(self.dataset, place)[1] for place in ahead])

    def fetched(self, places: Sequence[int]) -> Iterator[int]:
        """These places one by one, with what their photos are read from fetched for some of them together."""
        for part in parts(places):
            self.fetch(part)
            yield from part

    def items(
        self, places: Sequence[int], ahead: Sequence[int] = ()
    ) -> list[tuple[Tensor | Jpeg, int | None] | Exception]:
        """Several inputs and their labels, or why one cannot be read; where the dataset has PyTorch's `__getitems__`,
        they are read together. Those that will be asked for next may be named `ahead`.

        Photos that a Preprocess prepares come in 8 bits: `scaling.scaled` makes inputs of them. With decode="cuda"
        plain JPEG files come as their bytes. Raises InputError for a dataset that cannot work.
        """
        self.fetch(places, ahead)
        together = self._together(places)
        answers = list[tuple[Tensor | Jpeg, int | None] | Exception]()
        for number, place in enumerate(places):
            try:
                answer: Any = self._jpeg(place) if self.decode == "cuda" else None
                if answer is None:
                    answer = self._prepared(place, self._stored(place) if together is None else together[number])
                answers.append(answer)
            except (InputError, torch.OutOfMemoryError):
                raise
            except Exception as error:  # a damaged file, or whatever else a dataset's own code raises for one item
                answers.append(error)
        return answers

    @property
    def scaling(self) -> Preprocess | None:
        """What scales photos that come in 8 bits; None where they are prepared in another way."""
        owner, _ = owner_of(self.dataset, 0)
        own = owner.preprocess if gives_stored(owner) else None
        preprocess = own if type(own) is Preprocess else self.preprocess
        return preprocess if type(preprocess) is Preprocess else None

    def _together(self, places: Sequence[int]) -> Sequence[Any] | None:
        """Items that the dataset reads in one call; None where it has no such call, or that fails."""
        if gives_stored(owner_of(self.dataset, 0)[0]) or not gives_together(self.dataset):
            return None
        try:
            several = self.dataset.__getitems__(list(places))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a dataset's own code raises; one by one it is known which item fails
            _log.info("images %d to %d are read one by one: together they give %r", places[0], places[-1], error)
            return None
        if not isinstance(several, (list, tuple)) or len(several) != len(places):
            what = f"{len(several)}" if isinstance(several, (list, tuple)) else kind_of(several)
            raise InputError(
                f"__getitems__ of {type(self.dataset).__name__} gives a list of {len(places)} items, not {what}"
            )
        return several

    def _jpeg(self, index: int) -> tuple[Jpeg, int | None] | None:
        """The file of a photo and its label, where a device may decode it."""
        owner, place = owner_of(self.dataset, index)
        try:
            file = plain_jpeg(owner.encoded(place), self.scaling or Preprocess())
        except OSError:  # as for its permissions: reading the photo says so
            return None
        return None if file is None else (file, self._class(owner.labels[place]))

    def _prepared(self, index: int, item: Any) -> tuple[Tensor, int | None]:
        """An input and its label; a photo that `scaling` is for in 8 bits."""
        image, label = _parts(item)
        if _is_photo(image):
            image = self._of_photo(index, image)
        if isinstance(image, np.ndarray) and image.dtype.kind in "biuf":
            image = torch.from_numpy(np.ascontiguousarray(image, image.dtype.newbyteorder("=")))
        if isinstance(image, Tensor) and image.ndim == 2:
            image = image[None]
        dense = isinstance(image, Tensor) and image.layout == torch.strided and not image.is_complex()
        if not dense or image.ndim != 3 or not image.numel():
            what = f"{tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
            kind = "" if dense or not isinstance(image, Tensor) else f" of {image.dtype} and {image.layout}"
            raise InputError(f"item {index} of the dataset is not an image: {what}{kind}, where (C, H, W) is needed")
        return image.detach(), self._class(label)

    def _of_photo(self, index: int, photo: Any) -> Tensor:
        if (scaling := self.scaling) is not None:
            return scaling.pixels(stored(photo))
        if self.preprocess is None:
            raise InputError(
                f"item {index} of the dataset is a photo ({_described(photo)}), and how this network's inputs "
                "are prepared is not known: pass preprocess=, or a Network"
            )
        return input_of(stored(photo), self.preprocess)

    def label(self, index: int) -> int | None:
        """The label of one item."""
        return self._class(_parts(self.dataset[index])[1])

    def _stored(self, index: int) -> Any:
        """An item; of a folder of photos, the photo with all its bands."""
        owner, place = owner_of(self.dataset, index)
        if not gives_stored(owner):
            return self._read(index)
        plain = owner.preprocess is None or owner.preprocess is self.scaling
        return (self._read(index), owner.labels[place]) if plain else self.dataset[index]

    def _read(self, index: int) -> Any:
        """What the dataset itself reads: a photo with all its bands where the library's own give it, else an item."""
        owner, place = owner_of(self.dataset, index)
        return owner.stored(place) if gives_stored(owner) else self.dataset[index]

    def _class(self, label: Any) -> int | None:
        """The class that a label means: a whole number, alone or as an array of one, or the name of a class.

        Other labels are ignored, with a warning.
        """
        number = label.tolist() if isinstance(label, (Tensor, np.ndarray, np.generic)) else label
        while isinstance(number, list) and len(number) == 1:
            number = number[0]
        if isinstance(number, str) and number in (names := self.categories or ()):
            return names.index(number)
        if isinstance(number, int) or (isinstance(number, float) and number.is_integer()):
            return int(number) if 0 <= number < 2**31 else None
        if number is not None:
            wanted = "the number of a class, or one of the dataset's classes by name"
            say_once(f"labels are left out: a label is {wanted}, not {_described(label)}", SkippedWarning)
        return None

    def name(self, index: int) -> str:
        """What an item is called: its file's path where it comes from one or is one, else its number."""
        owner, index = owner_of(self.dataset, index)
        if isinstance(owner, Photos) and len(owner) == len(owner.names):
            return owner.names[index]
        file = file_of_item(owner, index)
        if file is None and isinstance(owner, (list, tuple)):
            item = owner[index]
            photo = item[0] if isinstance(item, (list, tuple)) and item else item
            file = str(photo) if isinstance(photo, (str, Path)) else None
        number = index + len(owner) if index < 0 and hasattr(owner, "__len__") else index
        return file if file is not None else f"image {number}"

    @property
    def root(self) -> str | None:
        """The folder of the photos; None where they are in none."""
        owner = self.dataset
        if isinstance(owner, Photos):
            return owner.root
        root = getattr(owner, "root", None)
        return os.path.abspath(root) if isinstance(root, (str, os.PathLike)) and hasattr(owner, "samples") else None

    def require_apart(self, out: str | os.PathLike[str]) -> None:
        """Raise InputError for results among the photos, which the next run would take for photos."""
        place, root = Path(os.path.abspath(checks.path("out", out))).resolve(), self.root
        if root is not None and Path(root).resolve() in (place, *place.parents):
            raise InputError(f"out={str(out)!r} lies among the photos in {root}: results go to a folder beside them")

    @property
    def categories(self) -> tuple[str, ...] | None:
        """Names of the labels, where the dataset tells them."""
        owner, _ = owner_of(self.dataset, 0)
        names = getattr(owner, "categories", None) or getattr(owner, "classes", None)
        known = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
        return tuple(names) if known and names else None

    def view(self, index: int) -> View:
        """The photo that an input was made from, and what part of it the network sees.

        Where the dataset gives tensors only, or how it made them is not known, it is the input itself as a picture;
        where nothing says how photos are prepared, the whole photo.
        """
        owner, place = owner_of(self.dataset, index)
        file = _file_shown(owner, place)
        if gives_stored(owner):
            photo, preprocess = self._read(index), owner.preprocess or self.preprocess
        elif file is not None:
            photo, preprocess = owner.loader(file), owner.transform or self.preprocess
        else:
            photo, preprocess = _parts(self._read(index))[0], self.preprocess
        known = preprocess_of_transform(preprocess)
        if _is_photo(photo) and known is not None:
            return _seen(photo, known)
        alone = _is_photo(photo) and preprocess is None
        picture = picture_of(stored(photo), None) if alone else self._picture(self.item(index)[0])
        return View(picture, (0.0, 0.0, float(picture.width), float(picture.height)), (picture.height, picture.width))

    def frame(self, index: int, input_size: tuple[int, int]) -> tuple[tuple[int, int], Box]:
        """The size of a photo (width, height), and what part of it the network sees, as `view` has them.

        Of a file only the head is read. `input_size` is that of the input, (H, W), which stands for a photo that is not
        known.
        """
        owner, place = owner_of(self.dataset, index)
        file = _file_shown(owner, place)
        own = owner.preprocess if gives_stored(owner) else None if file is None else owner.transform
        known = preprocess_of_transform(own or self.preprocess)
        if known is not None and gives_stored(owner):
            size = owner.size(place)
            return size, known.seen_box(*size)
        if known is not None and file is not None and getattr(owner.loader, "__module__", "") == TORCHVISION:
            with Image.open(file) as photo:
                return photo.size, known.seen_box(*photo.size)
        if known is not None:
            photo = _parts(self._read(index))[0] if file is None else owner.loader(file)
            if _is_photo(photo):
                view = _seen(photo, known)
                return view.photo.size, view.box
        height, width = input_size
        return (width, height), (0.0, 0.0, float(width), float(height))

    def preparation(self) -> str:
        """How photos are prepared, in words that are the same in every process."""
        owner, _ = owner_of(self.dataset, 0)
        preprocess = getattr(owner, "preprocess", None) or getattr(owner, "transform", None) or self.preprocess
        return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(preprocess))

    def listing(self) -> dict[str, Any]:
        """What identifies the dataset: how many images, and a checksum over their names and sizes or, of tensors, over
        some of their values."""
        owner, _ = owner_of(self.dataset, 0)
        if gives_stored(owner) and owner is self.dataset:
            return owner.listing()
        digest = hashlib.sha256()
        if isinstance(owner, Photos) and owner is self.dataset:
            digest.update(f"{owner.listing()['checksum']}\n".encode())
        if file_of_item(owner, 0) is not None and owner is self.dataset:
            root = str(getattr(owner, "root", ""))
            for file, *label in owner.samples:
                digest.update(f"{str(file).removeprefix(root)} {label}\n".encode())
        for index in sorted({round(i * (len(self) - 1) / 15) for i in range(16)}):
            digest.update(f"{index}\n".encode())
            try:
                image, label = self.item(index)
                digest.update(f"{tuple(image.shape)} {image.dtype} {label}\n".encode())
                digest.update(image.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
            except (InputError, torch.OutOfMemoryError):
                raise
            except Exception:  # whatever a dataset's own code raises: the pass lists the image when its turn comes
                digest.update(b"unreadable\n")
        return {"images": len(self), "checksum": digest.hexdigest(), "of": "16 images"}

    def _picture(self, x: Tensor) -> Image.Image:
        """An input as a picture: by the preprocessing's own scale, else from its smallest to its largest value."""
        if isinstance(self.preprocess, Preprocess) and len(self.preprocess.mean) == len(x):
            return self.preprocess.to_image(x)
        values = colour(x.float().cpu().numpy())
        low, high = values.min(), values.max()
        scaled = np.rint((values - low) / max(high - low, 1e-12) * 255).astype(np.uint8)
        return as_photo(scaled.transpose(1, 2, 0))


def _parts(item: Any) -> tuple[Any, Any]:
    """The image and the label of an item; None where it has none."""
    if isinstance(item, Mapping):
        image = next((item[key] for key in _IMAGE_KEYS if key in item), None)
        if image is None:
            keys, known = ", ".join(map(str, item)), ", ".join(_IMAGE_KEYS)
            raise InputError(f"an item of the dataset is a dict of {keys}: none is called {known}")
        return image, next((item[key] for key in _LABEL_KEYS if key in item), None)
    if isinstance(item, (tuple, list)):
        if not item:
            raise InputError("an item of the dataset is empty")
        return item[0], item[1] if len(item) > 1 else None
    return item, None


def parts(places: Sequence[int]) -> Iterator[Sequence[int]]:
    """As many places as are fetched at once, where photos are asked for one by one."""
    return (places[first : first + _TOGETHER] for first in range(0, len(places), _TOGETHER))


def _seen(photo: Any, known: Preprocess) -> View:
    picture = picture_of(stored(photo), known)
    return View(picture, known.seen_box(picture.width, picture.height), known.size)


def _file_shown(owner: Any, place: int) -> str | None:
    """The file of an item, where the dataset's own loader and transform are all that made an input of it, or where
    nothing but the loader did."""
    if not gives_files(owner) or not (owner.transform is None or makes_inputs(owner.transform)):
        return None
    return file_of_item(owner, place)


def _is_photo(image: Any) -> bool:
    """Whether an item is a photo: a picture, a path, or whole numbers; others are ready for the network."""
    return is_photo(image) and (not isinstance(image, np.ndarray) or image.dtype.kind in "iu")


def _described(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"{type(value).__name__} of {tuple(shape)}"
