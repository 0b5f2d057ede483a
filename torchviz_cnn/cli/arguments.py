"""The arguments that commands share, how messages speak of them, and what a command is.

Nothing here imports PyTorch: no help waits for it.
"""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import shtab

from torchviz_cnn.cli.choices import choices

BATCH_SIZE = 16
"""How many photos commands take at once where it is not said."""
OTHER_ACTIVATIONS: dict[str, Any] = {
    "choices": choices("other_activations"),
    "help": "plain: take the gradient of activations that are not ReLUs as it is (default: error)",
}


class Command(NamedTuple):
    """A command of the command line."""

    name: str
    run: Callable[[argparse.Namespace], None]
    """What it does; the docstring is its help. It imports what needs PyTorch itself."""
    add_arguments: Callable[[argparse.ArgumentParser], None]
    takes: str
    """What must be given besides options, and what may be."""
    examples: tuple[str, ...]
    """What follows the program's name, in lines that run as they stand where the files are."""


def add_network(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a network, and say how it sees photos."""
    add = parser.add_argument_group("the network").add_argument
    words = (
        "efficientnet_lite0 (the default where it is installed), cats_and_dogs (elsewhere), torchvision's networks as "
    )
    words += "resnet50, a Keras file, or module:factory of yours; torchviz-cnn layers --models lists the names"
    add("--model", help=words)
    words = "a checkpoint file, 'random', or 'DEFAULT' to download torchvision's (default: those that come with it)"
    add("--weights", metavar="FILE", help=words).complete = shtab.FILE  # type: ignore[attr-defined]
    add("--head", choices=choices("head"), help="none: the checkpoint is of a network without its head")
    words = "class names: a file with one per line, or JSON (default: the network's)"
    add("--labels", metavar="FILE", help=words).complete = shtab.FILE  # type: ignore[attr-defined]
    words = "cpu, cuda, mps, or auto: the GPU if there is one, otherwise the CPU (%(default)s)"
    add("--device", default="auto", help=words)
    add = parser.add_argument_group("how a photo becomes the input (default: as the network was trained)").add_argument
    words = "take the middle, change the sides, or add a border"
    add("--geometry", choices=choices("geometry"), help=words)
    add("--input-size", type=positive, nargs="+", metavar="PIXELS", help="side, or height and width, of the input")
    add("--resize", type=positive, metavar="PIXELS", help="a photo's shorter side, before its middle is cropped")
    add("--crop", type=positive, nargs="+", metavar="PIXELS", help="short for --geometry crop --input-size PIXELS")
    numbers: dict[str, Any] = {"type": float, "nargs": "+", "metavar": "NUMBER"}
    add("--mean", **numbers, help="mean of each channel, for values of 0..1")
    add("--std", **numbers, help="standard deviation of each channel, for values of 0..1")
    words = "the values of a photo that are black and white, where it has more than 8 bits"
    add("--window", type=float, nargs=2, metavar=("LOW", "HIGH"), help=words)
    words = "which bands of a photo are red, green and blue, or grey, from 0"
    add("--bands", type=whole, nargs="+", metavar="NUMBER", help=words)


def add_photos(
    parser: argparse.ArgumentParser,
    words: str = "photos, or folders of them",
    at_once: str = "photos at once (%(default)s)",
) -> None:
    """Add the arguments of a command that takes photos; `at_once` is the help of --batch-size."""
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help=words)
    parser.add_argument("--batch-size", type=positive, default=BATCH_SIZE, metavar="NUMBER", help=at_once)


def add_out(parser: argparse.ArgumentParser, default: str = "out", words: str = "folder to write to") -> None:
    """Add the folder that a command writes to."""
    parser.add_argument("--out", type=Path, default=Path(default), metavar="PATH", help=f"{words} (%(default)s)")


def add_layers(parser: argparse.ArgumentParser, default: str) -> None:
    """Add the option of a command that takes several layers."""
    words = f"names or glob patterns, as torchviz-cnn layers lists them (default: {default})"
    parser.add_argument("--layers", "--layer", dest="layers", nargs="+", metavar="LAYER", help=words)


def add_channels(parser: argparse.ArgumentParser, words: str) -> None:
    """Add the option that selects channels by their numbers."""
    parser.add_argument("--channels", "--channel", dest="channels", type=whole, nargs="+", metavar="NUMBER", help=words)


def add_target(parser: argparse.ArgumentParser, default: str) -> None:
    """Add the options that say what is explained."""
    words = f"class names or indices (default: {default}), or package.module:function of the model's output"
    parser.add_argument("--target", nargs="+", metavar="CLASS", help=words)
    add_output(parser, "is explained")


def add_output(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the option that chooses a part of what the model gives."""
    words = (
        f"what of the model's output {what}: a key, an index or an attribute, as heads.0.logits (default: all of it)"
    )
    parser.add_argument("--output", metavar="PART", help=words)


def add_decode(parser: argparse.ArgumentParser) -> None:
    """Add the option that says where photos are decoded."""
    words = "where plain JPEG files are decoded; cuda needs --device cuda (%(default)s)"
    parser.add_argument("--decode", choices=choices("decode"), default="cpu", help=words)


def add_budget(
    parser: argparse.ArgumentParser,
    default: float | str,
    words: str = "seconds after which no further filter pattern or projection is begun",
) -> None:
    """Add the time that a command may take."""
    words += "; 'all': no limit (%(default)s)"
    parser.add_argument("--budget", type=_seconds, default=default, metavar="SECONDS", help=words)


def option(name: str) -> str:
    """The option that sets a parameter.

    >>> option("other_activations")
    '--other-activations'
    """
    return f"--{name.replace('_', '-')}"


_OPTIONS = (
    *("other_activations", "score", "method", "layer", "layout", "target", "output", "head", "size", "workers"),
    *("geometry", "k", "batch_size", "steps", "stride", "truth", "by", "start", "end", "decode"),
)
_WORDS = (
    (r"layer_names\(model[^)]*\) lists", "torchviz-cnn layers lists"),
    (r"torchviz_cnn\.model_names\(\) lists", "torchviz-cnn layers --models lists"),
    (r"\buse (\w+_cam)\b", lambda match: f"use --method {match[1].replace('_', '-')}"),
    (r"(?<=explains this network: )\w+(?=:)", lambda match: match[0].replace("_", "-")),
    (r", which batch_size=1, as filter_patterns has it, mends", ""),
    (r", and geometry='crop', .* says it", ""),
    (r", as \w+(?: and \w+)* ha(?:s|ve) it,", ""),
    (
        rf"\b({'|'.join(_OPTIONS)})=(?:['\"]([\w-]+)['\"]|(\w+|\([^)]*\)))",
        lambda match: f"{option(match[1])} {match[2] or match[3]}",
    ),
    (
        r"\btarget= takes a function of it(, as tvc[\w.]+\([^)]*\))?",
        "--target package.module:function makes numbers of it",
    ),
    (r"\boutput= chooses", "--output chooses"),
    (r"\bwindow=\(low, high\)", "--window LOW HIGH"),
    (r"\bbands=\(red, green, blue\)", "--bands RED GREEN BLUE"),
    (r"\binput_size=\(height, width\)", "--input-size HEIGHT WIDTH"),
    (r"^(window|bands) (is|are)\b", r"--\1 \2"),
    (r"; layer= names one\b", "; --layer names one"),
    (r"; name layers\b", "; name them with --layers"),
    (r"\bout=('[^']+')", r"--out \1"),
    (r"^mask_values say\b", "--mask-values say"),
    (r"\bas mask_values=\((\d+),\)", r"as --mask-values \1"),
    (r"\(resume\)", "(--resume)"),
    (r": model\.to\('cuda'\)", ": --device cuda"),
    (r": pass preprocess=Preprocess\(\.\.\.\)", ""),
    (r"\ba Network that has them, as load_model\(model, labels=\.\.\.\) makes it", "a file of them, --labels FILE"),
    (r"\bload_model\(\.\.\., labels=.*\) names them", "--labels FILE has a line for each, that of 0 first"),
    (
        r"\bload_model\('xception', weights=path\), or build it and call load_keras_weights\(model, path\)",
        "--model xception --weights FILE",
    ),
    (r"\bload_model\('([^']+)'\) builds", r"--model \1 builds"),
    (r"\bload_model\('[^']+'\), without weights .*", "leave --weights out"),
    (r"; one of weights alone goes into a network that you build, load_keras_weights\(model, path\)", ""),
    (r", and more by read_image\(path, max_pixels=\.\.\.\)", ""),
    (r", or pass its array\b", ""),
    (r"`save` does not write it, top_activations\(\.\.\., out=\) does", "torchviz-cnn top writes it"),
    (r"\bTarShards\(\.\.\., image=", "in Python, TarShards(..., image="),
    (r" \(skipped lists (them|what is left out)\)", ""),
)
"""What messages say to someone who writes Python, and what to say instead to someone at the command line."""


def in_options(message: object, options: Collection[str]) -> str:
    """A message in one line that speaks of options, not of Python, and advises none but these.

    >>> in_options("no scores; output= chooses a part, and score='logit' is one", ["--output"])
    'no scores; --output chooses a part'
    """
    text = " ".join(str(message).split())
    for python, instead in _WORDS:
        text = re.sub(python, instead, text)
    first, *rest = re.split(r"(?=; |, (?:and|or) --)", text)
    known = {*options, "--nproc-per-node"}  # torchrun's
    own = (part for part in rest if "torchviz-cnn " in part or known.issuperset(re.findall(r"--[a-z][\w-]*", part)))
    return first + "".join(own)


def whole(text: str, least: int = 0) -> int:
    """A whole number of at least 0."""
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"{text} is not at least {least}")
    return value


def positive(text: str) -> int:
    """A whole number of at least 1."""
    return whole(text, 1)


def share(text: str) -> float:
    """A number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share from 0 to 1")
    return value


def _seconds(text: str) -> float | None:
    """A number of seconds; None for `all`."""
    with contextlib.suppress(ValueError):
        if text == "all" or float(text) >= 0:
            return None if text == "all" else float(text)
    raise argparse.ArgumentTypeError(f"{text} is not a number of seconds, nor 'all'")
