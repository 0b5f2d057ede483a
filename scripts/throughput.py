"""Photos a second that `top_activations` reads and runs, from a folder, from tar files, and from tar files on a server.

    python scripts/throughput.py                                  # 20,000 generated photos, about half an hour
    python scripts/throughput.py --tiny                           # to see that it runs
    python scripts/throughput.py --markdown docs/scale.md         # writes the table between its markers

Beside them stand the two bounds, each with its own processor: worker processes that only decode, and the network over
inputs that are in memory. No run can be quicker than the slower of both. The contenders take turns; medians
over the rounds are shown. The server adds a delay before each answer.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from timing import Lap, Run, Timing, alternate, now
from torch import nn
from usage import tell_mistakes

import torchviz_cnn as tvc
from torchviz_cnn.core.errors import InputError, counted
from torchviz_cnn.core.progress import progress_bar
from torchviz_cnn.media.datasets.source import ImageSource
from torchviz_cnn.topk.reading import read_batches

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- throughput: begin -->", "<!-- throughput: end -->"
SIZE = (500, 375)
IN_MEMORY = 256
"""Inputs that the network alone runs over, again and again."""


def arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--photos", type=int, default=20_000, metavar="NUMBER", help="how many photos (%(default)s)")
    add("--shards", type=int, default=20, metavar="NUMBER", help="in how many tar files (%(default)s)")
    add("--folder", type=Path, default=Path("throughput"), help="where the photos are made, once (%(default)s)")
    add("--model", default="cats_and_dogs", help="the network (%(default)s)")
    add("--layers", nargs="+", default=["relu1"], help="its layers (%(default)s: decoding takes about as long)")
    add("--batch-size", type=int, default=32, metavar="NUMBER", help="photos at once (%(default)s)")
    add("--workers", type=int, default=1, metavar="NUMBER", help="processes that decode (%(default)s)")
    add("--threads", type=int, default=1, metavar="NUMBER", help="threads of the network on a CPU (%(default)s)")
    add("--device", default="cpu", help="where the network runs (%(default)s)")
    add("--latency", type=float, default=30.0, metavar="MS", help="delay of each answer of the server (%(default)s)")
    add("--rounds", type=int, default=3, metavar="NUMBER", help="how often each is measured (%(default)s)")
    add("--markdown", type=Path, metavar="FILE", help="write the table between the markers of this page")
    add("--tiny", action="store_true", help="a few small photos and one round, to see that it runs")
    args = parser.parse_args(given)
    if args.tiny:
        args.photos, args.shards, args.rounds, args.batch_size, args.layers = 24, 2, 1, 4, ["1"]
    if args.photos % args.shards:
        raise InputError(f"{counted(args.photos, 'photo')} cannot be shared by {args.shards} shards alike")
    return args


def photo(seed: int, size: tuple[int, int] = SIZE) -> bytes:
    """The JPEG file of a picture with details of all sizes, as photos have them; about 100 kB at 500 x 375."""
    random = np.random.default_rng(seed)
    picture = np.zeros((size[1], size[0], 3), np.float32)
    for octave in range(1, 8):
        noise = random.standard_normal((2**octave * 3 // 4 + 1, 2**octave, 3)).astype(np.float32)
        picture += cv2.resize(noise, size, interpolation=cv2.INTER_CUBIC) * 2.0**-octave
    picture += random.standard_normal(picture.shape).astype(np.float32) * 0.02
    buffer = io.BytesIO()
    Image.fromarray(np.clip(128 + 90 * picture, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def generate(folder: Path, count: int, shards: int, size: tuple[int, int]) -> tuple[Path, str]:
    """The same photos as files of a folder and in shards, unless they are there; a shard is there once it is whole."""
    photos, each = folder / "photos", count // shards
    with progress_bar(True, total=count, desc="photos are made", unit=" photos") as bar:
        for shard in range(shards):
            path = folder / f"photos-{shard:06d}.tar"
            if not path.exists():
                place = photos / f"{shard:03d}"
                place.mkdir(parents=True, exist_ok=True)
                temporary = path.with_suffix(".part")
                with tarfile.open(temporary, "w") as tar:
                    for number in range(shard * each, (shard + 1) * each):
                        content = photo(number, size)
                        (place / f"{number:07d}.jpg").write_bytes(content)
                        member = tarfile.TarInfo(f"{number:07d}.jpg")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
                temporary.rename(path)
            bar.update(each)
    return photos, f"photos-{{000000..{shards - 1:06d}}}.tar"


def _serve(folder: Path, latency: float, pipe: Connection) -> None:
    sys.path.insert(0, str(ROOT))
    from tests.media.shards.server import serving

    with serving(folder, latency=latency) as server:
        pipe.send(server.address)
        pipe.recv()


@contextmanager
def served(folder: Path, latency: float) -> Iterator[str]:
    """The address of a server of a folder's files, which runs in a process of its own."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(folder, latency, there), daemon=True)
    process.start()
    if not here.poll(60):
        raise InputError("the server of the measurement does not start")
    try:
        yield here.recv()
    finally:
        here.send("end")
        process.join()


def decoding(dataset: Any, net: tvc.Network, args: argparse.Namespace) -> Run:
    """Worker processes decode; nothing else is done."""

    def run() -> None:
        source = ImageSource(dataset, net.preprocess)
        places = [range(at, min(at + args.batch_size, len(source))) for at in range(0, len(source), args.batch_size)]
        for _ in read_batches(source, range(len(places)), places, args.workers, torch.device("cpu")):
            pass

    return run


def network(net: tvc.Network, args: argparse.Namespace, like: Any) -> Run:
    """The network and all that is done with what it gives, over inputs in memory; the time is for all photos."""
    source = ImageSource(like, net.preprocess)
    count = min(IN_MEMORY, len(source))
    x = torch.stack([source.item(place)[0] for place in range(count)]).to(args.device)

    def run() -> Lap:
        start = now()
        tvc.top_activations(net, x, args.layers, workers=0, batch_size=args.batch_size)
        return Lap((now() - start) * args.photos / count)

    return run


def mining(dataset: Any, net: tvc.Network, args: argparse.Namespace) -> Run:
    def run() -> object:
        known = {"workers": args.workers, "batch_size": args.batch_size}
        top = tvc.top_activations(net, dataset, args.layers, **known)
        if top.skipped:
            raise InputError(f"photos were left out: {next(iter(top.skipped.values()))}")
        return top

    return run


def loaded(args: argparse.Namespace) -> tvc.Network:
    if args.tiny:
        layers = [nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3)]
        return tvc.Network(nn.Sequential(*layers).eval(), tvc.Preprocess((32, 32), resize=36), name="tiny")
    return tvc.load_model(args.model, device=args.device)


def indexed(pattern: str, place: Path) -> tuple[tvc.TarShards, float]:
    """Shards whose headers were read, and the seconds which that took."""
    shards, start = tvc.TarShards(pattern, index=place), now()
    shards.prepare()
    return shards, now() - start


def table(times: dict[str, Timing], args: argparse.Namespace, name: str, indexing: tuple[float, float]) -> str:
    """A row for each contender: photos a second, and the share of what is possible."""
    rates = {contender: args.photos / timing.median for contender, timing in times.items()}
    decode, compute = "decoding alone", "network alone"
    bound = min(rates[decode], rates[compute])
    layers = f"{'layer' if len(args.layers) == 1 else 'layers'} {', '.join(args.layers)}"
    where = (
        torch.cuda.get_device_name() if args.device.startswith("cuda") else f"CPU, {counted(args.threads, 'thread')}"
    )
    rows = [
        f"{counted(args.photos, 'generated photo')} of {SIZE[0]} x {SIZE[1]} in {counted(args.shards, 'shard')}; "
        f"{name}, {layers}, on {where}; {counted(args.workers, 'worker')}, batches of {args.batch_size}; medians of "
        f"{counted(args.rounds, 'round')}. Headers are read once: that took {indexing[0]:.1f} s from files and "
        f"{indexing[1]:.1f} s over HTTP.",
        "",
        "| | photos a second | share of the slower of both |",
        "|---|--:|--:|",
    ]
    for contender, rate in rates.items():
        share = "" if contender in (decode, compute) else f"{rate / bound:.2f}"
        rows.append(f"| {contender} | {rate:,.0f} | {share} |")
    return "\n".join(rows)


def write(page: Path, text: str) -> None:
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"{page} has no lines {BEGIN} and {END}")
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def main(given: list[str] | None = None) -> None:
    args = arguments(given)
    torch.set_num_threads(args.threads)
    net = loaded(args)
    folder = args.folder / ("tiny" if args.tiny else f"{args.photos}-{args.shards}")
    photos, pattern = generate(folder, args.photos, args.shards, (60, 45) if args.tiny else SIZE)
    with served(folder, args.latency / 1000) as address, tempfile.TemporaryDirectory() as index:
        shards, seconds = indexed(str(folder / pattern), Path(index, "files"))
        remote, remote_seconds = indexed(f"{address}/{pattern}", Path(index, "http"))
        contenders = {
            "decoding alone": decoding(photos, net, args),
            "network alone": network(net, args, photos),
            "a folder": mining(photos, net, args),
            "shards": mining(shards, net, args),
            f"shards over HTTP, {args.latency:g} ms an answer": mining(remote, net, args),
        }
        times = alternate(contenders, args.rounds, warmup=0)
    text = table(times, args, net.name, (seconds, remote_seconds))
    print(text)
    if args.markdown is not None:
        write(args.markdown, text)


if __name__ == "__main__":
    tell_mistakes()
    main()
