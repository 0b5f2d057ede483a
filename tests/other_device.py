"""A second device that is none: its tensors compute on the CPU, and what mixes them with others of the CPU fails.

It takes the place of a GPU where there is none: run as a program, every public function works on a network that lies on
it and on photos that do not, and a line is printed for each that fails. It uses the name of the meta device, for which
PyTorch needs no driver, and changes PyTorch for this process.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "meta"
_MOVES = {"_to_copy", "copy_", "to", "set_"}
_TAKES_INDICES = {"index", "index_put", "index_put_"}


class Other(Tensor):
    """A tensor on the other device, around one on the CPU."""

    inside: Tensor

    @staticmethod
    def __new__(cls, inside: Tensor) -> Other:
        made: Other = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inside.size(),
            strides=inside.stride(),
            storage_offset=inside.storage_offset(),
            dtype=inside.dtype,
            device=torch.device(NAME),
        )
        made.inside = inside
        return made

    is_meta = False  # type: ignore[assignment]

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("a tensor of another device has no array: .cpu() comes first")

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copy = Other(self.inside.clone())
        return nn.Parameter(copy, self.requires_grad) if isinstance(self, nn.Parameter) else copy

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _run(func, args, kwargs or {})


class Watching(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tensors that are made for the other device lie on it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func._schema.name.partition("::")[2]
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    others = [tensor for tensor in tensors if isinstance(tensor, Other)]
    if others and name not in _MOVES:
        on_cpu = [tensor for tensor in tensors if not isinstance(tensor, Other) and tensor.ndim]
        if on_cpu and not (name in _TAKES_INDICES and isinstance(args[0], Other)):
            raise RuntimeError(f"{name} mixes two devices: {[tuple(tensor.shape) for tensor in tensors]}")
    asked = kwargs.get("device")
    inside = {**tree_map(_inside, kwargs), **({} if asked is None else {"device": torch.device("cpu")})}
    output = func(*tree_map(_inside, args), **inside)
    if name.endswith("_") and not name.endswith("__"):
        return args[0]
    there = bool(others) if asked is None else torch.device(asked).type == NAME
    return tree_map(lambda part: Other(part) if there and type(part) is Tensor else part, output)


def _inside(value: Any) -> Any:
    return value.inside if isinstance(value, Other) else value


def moved(model: nn.Module) -> nn.Module:
    """A network with its parameters and buffers on the other device."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                own = Other(parameter.detach().clone())
                module._parameters[name] = nn.Parameter(own, parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = Other(buffer.detach().clone())
    return model


def pretend() -> None:
    """Have PyTorch take the other device for one that has values."""

    def made(real: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def make(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
            if device is not None and torch.device(device).type == NAME and not isinstance(data, Tensor):
                return real(data, *args, **kwargs).to(NAME)
            return real(data, *args, **({} if device is None else {"device": device}), **kwargs)

        return make

    of_cpu = torch.Generator

    class Generator(of_cpu):  # type: ignore[misc, valid-type]
        def __new__(cls, device: Any = "cpu") -> Any:
            return of_cpu.__new__(cls)

    def indices(index: Any) -> Any:
        if isinstance(index, tuple):
            return tuple(map(indices, index))
        return torch.tensor(index) if isinstance(index, list) else index

    get, listed = Tensor.__getitem__, Tensor.tolist
    changes: dict[Any, dict[str, Any]] = {
        torch: {
            "tensor": made(torch.tensor),
            "as_tensor": made(torch.as_tensor),
            "Generator": Generator,
            "autocast": lambda *args, **kwargs: contextlib.nullcontext(),
        },
        Tensor: {"tolist": lambda self: listed(_inside(self))},
        Other: {
            "__getitem__": lambda self, index: get(self, indices(index)),
            "new_tensor": lambda self, data, **kwargs: torch.tensor(data, **{"dtype": self.dtype, **kwargs}).to(NAME),
        },
    }
    for owner, functions in changes.items():
        for name, function in functions.items():
            setattr(owner, name, function)


def main() -> int:
    """Run everything, and return how many failed."""
    pretend()
    warnings.simplefilter("ignore")
    import torchviz_cnn as tvc
    from tests import networks, test_gpu
    from tests.networks import images
    from torchviz_cnn.scores.predictions import Predictions

    Predictions.of = staticmethod(lambda probabilities, origin, names: probabilities)  # type: ignore[assignment]
    x, folder = images(3), Path(tempfile.mkdtemp())
    noise = np.random.default_rng(0)
    photos = [Image.fromarray(noise.integers(0, 255, (40, 48, 3), dtype=np.uint8)) for _ in range(6)]
    for number, photo in enumerate(photos):
        (folder / "photos" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        photo.save(folder / "photos" / "ab"[number % 2] / f"{number}.png")
    mask = np.zeros((40, 48), np.uint8)
    mask[10:20, 10:30] = 1
    model = moved(networks.vgg_like())
    net = tvc.Network(model, tvc.Preprocess((32, 32), resize=32), tuple("abcde"), "tiny", "random")

    def compared(name: str) -> None:
        method = test_gpu.METHODS[name]
        expected, result = method(test_gpu.built(name), x), _inside(method(moved(test_gpu.built(name)), x))
        if not test_gpu.off(result, expected) < 1e-4:
            raise AssertionError("its values differ from those of the CPU")

    def drawn() -> None:
        tvc.grad_cam(net, photos[0], target="a").overlay()
        tvc.saliency(net, photos[0], target="a").overlay()
        tvc.capture(net, photos[0], ["features.2"]).plot("features.2")
        tvc.filter_patterns(net, "features.2", [0, 1], size=24, steps=2).grid(2)
        tvc.top_activations(net, folder / "photos", ["features.9"], k=2, workers=0).page("features.9", [0, 1])

    everything: dict[str, Callable[[], object]] = {
        **{name: (lambda name=name: compared(name)) for name in test_gpu.METHODS},  # type: ignore[misc]
        "trust": lambda: tvc.trust(net, photos, methods="all", steps=2, mosaics=4, masks=[mask] * 6),
        "report": lambda: tvc.report(net, photos[:2], folder / "report" / "index.html", k=2, budget=20),
        "survey": lambda: tvc.survey(net, folder / "photos", out=folder / "survey", truth="none", workers=0),
        "survey, saliency": lambda: tvc.survey(net, folder / "photos", method="saliency", truth="none", workers=0),
        "describe": lambda: str(tvc.describe(model, (32, 32))),
        "Watch": lambda: tvc.Watch(model, images(2), folder / "watch", every=1, target=1).step(),
        "pointing_game": lambda: tvc.metrics.pointing_game(net, photos, "grad_cam", masks=[mask] * 6),
        "energy_in_mask": lambda: tvc.metrics.energy_in_mask(net, photos, "grad_cam", masks=[mask] * 6),
        "randomization": lambda: tvc.metrics.randomization(model, x, "grad_cam"),
        "sensitivity": lambda: tvc.metrics.sensitivity(model, x, "grad_cam"),
        "top_activations, exact": lambda: tvc.top_activations(model, x, ["features.9"], k=2, exact=True),
        "filter_atlas": lambda: tvc.filter_atlas(net, folder / "atlas", ["features.2"], k=2, steps=2),
        "pictures": drawn,
    }
    failed = 0
    for name, run in everything.items():
        try:
            with Watching():  # type: ignore[no-untyped-call]
                run()
        except Exception as error:
            failed += 1
            places = [frame for frame in traceback.extract_tb(error.__traceback__) if "torchviz_cnn" in frame.filename]
            where = "; ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in places[-4:])
            print(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:200]} ({where})", flush=True)
    print(f"{len(everything) - failed} of {len(everything)} work on another device")
    return failed


if __name__ == "__main__":
    sys.exit(min(main(), 100))
