"""The command `cam` on a clip: a file, frames in a folder, or a camera."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from PIL import Image

import torchviz_cnn as tvc
from torchviz_cnn.attribution.video import LOOKED_AT
from torchviz_cnn.cli import shared
from torchviz_cnn.cli.arguments import option
from torchviz_cnn.cli.outputs import Outputs
from torchviz_cnn.core.errors import InputError, OutputError, counted
from torchviz_cnn.media.video import CODECS, natural

_ENDINGS = {*CODECS, ".3gp", ".flv", ".m2ts", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".wmv"}
"""Files that are clips without more being said; with the name of a clip as --out every file is."""
_OF_CLIPS = ("scale", "fps", "seconds")
_OF_PHOTOS = ("truth", "preset")


def is_clip(args: argparse.Namespace) -> bool:
    """Whether a clip is asked for: by what is given, or by the name of what is to be written.

    Raises InputError for several clips, and options of clips without one.
    """
    clips = [path for path in args.images if _is_camera(path) or path.suffix.lower() in _ENDINGS]
    if len(clips) > 1 or (clips and len(args.images) > 1):
        raise InputError(f"one clip at a time, without other files: {', '.join(map(str, args.images[:4]))}")
    asked = bool(clips) or (args.out.suffix.lower() in CODECS and not args.out.is_dir())
    wrong = [name for name in (_OF_PHOTOS if asked else _OF_CLIPS) if getattr(args, name) is not None]
    if wrong:
        what = "photos" if asked else "a clip: name one, or a file as --out clip.mp4"
        raise InputError(f"{', '.join(map(option, wrong))}: for {what}")
    if asked and len(args.target or ()) > 1:
        raise InputError(f"one class of a clip is explained, not {len(args.target)}")
    return asked


def draw(args: argparse.Namespace, method: str, chosen: dict[str, Any]) -> None:
    """Explain the frames of a clip, and write it with the heatmaps over them."""
    source, out = _source(args), args.out
    if out.is_file():
        raise OutputError(f"{out} is there already: name another file with --out, or remove it")
    net = shared.network(args)
    asked, _ = shared.asked_target(net, args.target)
    if not out.suffix or out.is_dir():
        parts = [Path(args.images[0]).stem, method, *filter(None, [args.layer, *(args.target or ())])]
        out = Outputs(args, []).path(parts, ".mp4", args.images[:1])
    if isinstance(source, int):
        until = f"for {args.seconds:g} seconds, or " if args.seconds is not None else ""
        shared.say(f"camera {source} is recorded {until}until Ctrl-C")
    made = tvc.cam_video(
        net,
        source,
        out,
        method=method.replace("-", "_"),
        target=asked[0] if isinstance(asked, list) else asked,
        scale=args.scale or "clip",
        colormap=args.colormap or "jet",
        progress=True,
        **shared.options(args, "batch_size", "fps", "seconds", "alpha", "blend", "output"),
        **chosen,
    )
    why = "as asked" if args.target else f"the likeliest in {LOOKED_AT} frames spread over it"
    scale = "each frame on its own scale" if args.scale == "frame" else "one scale for all"
    if isinstance(source, int):
        why, scale = why.replace("spread over it", "at its start"), scale.replace("for all", "of all so far")
    words = f"explained: {made.category}, {why}; mean probability {made.probability:.3f}"
    shared.say(f"{', '.join(map(str, args.images[:2]))}: {words}; {made.method} at {made.layer}")
    width, height = made.size
    size = f"{counted(made.frames, 'frame')} of {width} x {height} at {made.fps:g} per second, {scale}"
    sound = "; sound is not kept" if isinstance(source, Path) else ""
    shared.say(f"  {made.path}: {size}; {made.frames / made.seconds:.1f} frames per second{sound}")


def _source(args: argparse.Namespace) -> Path | int | list[Path]:
    """A file, a camera's number, or photos in the order of the frames: those of a folder in natural order."""
    first = args.images[0]
    if _is_camera(first):
        return int(str(first))
    pictures = set(Image.registered_extensions()) - _ENDINGS - {".gif"}
    if len(args.images) == 1 and not first.is_dir() and first.suffix.lower() not in pictures:
        return Path(first)
    photos = list(shared.named_photos(args))
    return sorted(photos, key=lambda path: natural(str(path))) if len(args.images) == 1 else photos


def _is_camera(path: Path) -> bool:
    return str(path).isdecimal() and not path.exists()
