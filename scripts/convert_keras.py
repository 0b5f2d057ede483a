"""Turn a Keras file into safetensors for one of the package's or torchvision's networks.

    python scripts/convert_keras.py vgg16.h5 --model torchvision.models:vgg16 --out vgg16.safetensors
    python scripts/convert_keras.py pets.keras --model torchviz_cnn.models.convnets:convnet_2025 \\
        --arg num_classes=37 --out pets.safetensors

`--model` names a factory as `module:function`, `--arg` its arguments. Needs h5py (the extra `keras`), not
Keras.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import os
from pathlib import Path

from safetensors.torch import save
from torch import nn
from usage import tell_mistakes

from torchviz_cnn.core.errors import InputError
from torchviz_cnn.models.keras.weights import load_keras_weights


def build(reference: str, arguments: list[str]) -> nn.Module:
    """The network that `module:function` gives for `key=value` arguments."""
    module, separator, function = reference.partition(":")
    if not separator:
        raise InputError(f"--model {reference!r} is not of the form module:function")
    try:
        factory = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise InputError(f"--model {reference!r}: {error}") from error
    pairs = dict(argument.split("=", 1) for argument in arguments)
    model = factory(**{key: ast.literal_eval(value) for key, value in pairs.items()})
    if not isinstance(model, nn.Module):
        raise InputError(f"--model {reference!r} gave a {type(model).__name__}, no network")
    return model


def epsilons(model: nn.Module) -> dict[str, float]:
    """Of every BatchNorm, by name."""
    return {name: m.eps for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help=".h5, .weights.h5 or .keras")
    parser.add_argument("--model", required=True, help="factory as module:function")
    parser.add_argument("--arg", action="append", default=[], metavar="KEY=VALUE", help="argument of the factory")
    parser.add_argument("--out", type=Path, required=True, help=".safetensors to write")
    parser.add_argument("--half", action="store_true", help="store 16-bit floats")
    args = parser.parse_args(argv)

    model = build(args.model, args.arg)
    before = epsilons(model)
    load_keras_weights(model, args.file)
    changed = [name for name, value in epsilons(model).items() if abs(value - before[name]) > 1e-9]
    if changed:
        # safetensors hold tensors only: the factory would build these with its own epsilon again.
        raise InputError(f"BatchNorm epsilon of {args.file} differs from the factory's in {', '.join(changed)}")
    state = {k: (v.half() if args.half and v.is_floating_point() else v) for k, v in model.state_dict().items()}
    temporary = args.out.with_name(args.out.name + ".tmp")
    about = {"model": args.model, "source": args.file.name}
    temporary.write_bytes(save({k: v.contiguous() for k, v in state.items()}, about))
    os.replace(temporary, args.out)
    print(f"{args.out}: {sum(p.numel() for p in model.parameters()):,} parameters")


if __name__ == "__main__":
    tell_mistakes()
    main()
