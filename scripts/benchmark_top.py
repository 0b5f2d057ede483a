"""How fast and how large `top_activations` is, beside the least that any such pass must do.

    python scripts/benchmark_top.py [--photos FOLDER] [--count 192] [--device cuda]

Prints images per second of a bare forward pass that ends at the last layer, fed from memory; of `top_activations` fed
from memory; of reading and decoding alone; of `top_activations` on photos, where the network is the limit and where
decoding is; and the peak memory for 1 000 and 10 000 generated images.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import torchviz_cnn as tvc
from torchviz_cnn.media.dataset import ImageSource
from torchviz_cnn.topk.reading import read_batches, usual_workers

LAYERS = ["features.3", "features.7", "features.12"]


class Generated(torch.utils.data.Dataset[Tensor]):
    """As many images as wanted, made when asked for: the same each time, and none kept."""

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        return torch.randn(3, self.size, self.size, generator=torch.Generator().manual_seed(index))


class Ended(BaseException):
    """Raised at the last layer."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--photos", type=Path, help="a folder of photos (default: generated ones)")
    parser.add_argument("--model", default="squeezenet1_0")
    parser.add_argument("--layers", nargs="+", default=LAYERS)
    parser.add_argument("--count", type=int, default=192, help="images in memory (%(default)s)")
    parser.add_argument("--files", type=int, default=1000, help="photos generated where none are given (%(default)s)")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=usual_workers(), help="decoding processes (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", choices=["speed", "decoding", "memory"], help="only one of the three")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    net = tvc.load_model(args.model, "random", device=args.device)
    if args.peak:
        peak(net.model, args)
        return
    print(
        f"{args.model}, {', '.join(args.layers)}, batch {args.batch}, {args.device}, {torch.get_num_threads()} threads"
    )
    if args.only in (None, "speed"):
        speed(net, args)
    if args.only in (None, "decoding"):
        with tempfile.TemporaryDirectory() as made:
            decoding(net, args.photos or generate(Path(made), args.files), args)
    if args.only in (None, "memory"):
        memory(args)


def speed(net: tvc.Network, args: argparse.Namespace) -> None:
    images = torch.randn(args.count, 3, *net.input_size, generator=torch.Generator().manual_seed(0))

    def bare() -> None:
        with torch.no_grad():
            for x in torch.split(images, args.batch):
                until(net.model, args.layers[-1], x.to(args.device, non_blocking=True))
        finish(args.device)

    def ours(exact: bool = False) -> None:
        tvc.top_activations(net.model, images, args.layers, batch_size=args.batch, workers=0, exact=exact)

    rates = in_turns({"bare": bare, "ours": ours, "exact": lambda: ours(True)}, args.count, args.rounds)
    print(f"bare truncated forward from memory  {rates['bare']:9.1f} images/s")
    print(
        f"top_activations from memory         {rates['ours']:9.1f} images/s  {rates['ours'] / rates['bare']:.3f} of it"
    )
    print(
        f"  exact=True                       {rates['exact']:9.1f} images/s  {rates['exact'] / rates['bare']:.3f} of it"
    )


def decoding(net: tvc.Network, folder: Path, args: argparse.Namespace) -> None:
    source = ImageSource(folder, net.preprocess)
    count, device = len(source), torch.device(args.device)
    first = next(name for name in tvc.layer_names(net.model, types=nn.Conv2d))
    shrunk = tvc.Preprocess((32, 32), resize=36)  # as many photos to decode, next to nothing to compute

    def read(how: tvc.Preprocess) -> None:
        places = [range(at, min(at + args.batch, count)) for at in range(0, count, args.batch)]
        for _ in read_batches(ImageSource(folder, how), range(len(places)), places, args.workers, device):
            pass

    def ours(layers: list[str], how: tvc.Preprocess) -> None:
        tvc.top_activations(net, folder, layers, preprocess=how, batch_size=args.batch, workers=args.workers)

    rates = in_turns(
        {
            "read": lambda: read(net.preprocess),
            "ours": lambda: ours(args.layers, net.preprocess),
            "read small": lambda: read(shrunk),
            "ours small": lambda: ours([first], shrunk),
        },
        count,
        1,
    )
    print(f"decoding {count} photos alone, {args.workers} workers {rates['read']:9.1f} images/s")
    print(f"top_activations on them             {rates['ours']:9.1f} images/s: the slower of network and decoding")
    print(f"decoding, inputs of 32 x 32         {rates['read small']:9.1f} images/s")
    share = rates["ours small"] / rates["read small"]
    print("top_activations, where the network")
    print(f"  is next to nothing ({first})  {rates['ours small']:9.1f} images/s  {share:.3f} of it")


def memory(args: argparse.Namespace) -> None:
    peaks = {}
    for count in (1000, 10000):
        command = [sys.executable, __file__, "--peak", str(count), "--model", args.model, "--layers", *args.layers]
        done = subprocess.run([*command, "--device", args.device], check=True, capture_output=True, text=True)
        peaks[count] = float(done.stdout)
        print(f"peak memory, {count:6} generated images {peaks[count]:9.1f} MB")
    print(f"                                    {peaks[10000] / peaks[1000]:9.3f} times as much")


def peak(model: nn.Module, args: argparse.Namespace) -> None:
    """Print the peak memory of this process in MB, after a pass over so many images."""
    import resource

    tvc.top_activations(model, Generated(args.peak, 64), args.layers, batch_size=32, workers=0)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def until(model: nn.Module, layer: str, x: Tensor) -> None:
    def end(*_: object) -> None:
        raise Ended

    handle = model.get_submodule(layer).register_forward_hook(end)
    try:
        model(x)
    except Ended:
        pass
    finally:
        handle.remove()


def in_turns(runs: dict[str, Callable[[], None]], count: int, rounds: int) -> dict[str, float]:
    """Images per second of each: the median of some rounds, in which they take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + (rounds > 1)):
        for name, run in runs.items():
            gc.collect()
            start = time.perf_counter()
            run()
            if number or rounds == 1:
                seconds[name].append(time.perf_counter() - start)
    return {name: count / statistics.median(times) for name, times in seconds.items()}


def finish(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def generate(folder: Path, count: int) -> Path:
    """JPEG files of 500 x 375 pixels with something to decode."""
    random = np.random.default_rng(0)
    for i in range(count):
        small = Image.fromarray(random.integers(0, 256, (25, 33, 3), dtype=np.uint8))
        small.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{i:05d}.jpg", quality=90)
    return folder


if __name__ == "__main__":
    main()
