"""Time filter patterns of VGG16 (random weights, 128 px) beside lucent and a plain loop, as ratios to float32.

    python scripts/benchmark_filters.py [--layers features.0 features.10 features.28] [--filters 16] [--steps 30]
                                        [--rounds 3]

All take turns in one run, and medians are compared: a machine's noise then meets all alike. A filter step is one step
up for one filter. Ours is timed as a whole call for all filters, with all it sets up. The plain loop is what one would
write by hand: the network cut off behind the layer, frozen, channels last, one filter after the other, and a batch of a
few at once. lucent
(pixels, no transforms) is timed on a few steps of two filters without their first, which sets up; it enlarges an
image below 224 px to 224, so it is timed a second time at 128. Needs the `bench` extra.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import subprocess
import sys
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable

import psutil
import torch
from lucent.optvis import param, render
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.vgg import cfgs, make_layers, vgg16

import torchviz_cnn as tvc
from torchviz_cnn.ascent.loop import Precision

SIZE = 128
LOOPED = 4
"""Filters timed of the plain loop."""
MEMORY_FILTERS = (16, 256)
BFLOAT16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
Run = Callable[[], float]
"""Gives the seconds of a filter step."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--layers", nargs="+", default=["features.0", "features.10", "features.28"])
    parser.add_argument("--filters", type=int, default=16)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    if args.memory:
        print(*peak_memory(args.layers[0], args.memory))
        return
    model = vgg16(weights=None).eval()
    print(f"{args.filters} filters, {args.steps} steps, {torch.get_num_threads()} threads, torch {torch.__version__}")
    peaks = {torch.float32: 0.0, torch.bfloat16: 0.0}
    print(
        "G: 1e9 multiply-adds. Of a filter step: convolutions forward and back to the image, one filter of the last "
        "layer.\n"
    )
    for layer in args.layers:
        report(model, layer, args.filters, args.steps, args.rounds, peaks)
    memory(args.layers)


def report(
    model: nn.Module, layer: str, filters: int, steps: int, rounds: int, peaks: dict[torch.dtype, float]
) -> None:
    runs: dict[str, Run] = {"ours, float32": lambda: ours(model, layer, filters, steps, "float32")}
    if BFLOAT16:
        runs["ours, bfloat16"] = lambda: ours(model, layer, filters, steps, "bfloat16")
    part = cut(model, layer).to(memory_format=torch.channels_last)
    other = copy.deepcopy(model)
    runs |= {
        "plain loop": lambda: plain_loop(part, min(filters, LOOPED), steps, 1),
        "plain loop, batched": lambda: plain_loop(part, min(filters, LOOPED), steps, LOOPED),
        "lucent": lambda: lucent(other, layer, None),
        "lucent, kept at 128 px": lambda: lucent(other, layer, SIZE),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    plain_loop(part, 1, 2, 1)
    ours(model, layer, filters, 1, "float32")
    for _ in range(rounds):
        for name, run in runs.items():
            seconds[name].append(run())
        for kind, rate in peaks.items():
            peaks[kind] = max(rate, matrix_peak(kind))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    needed = multiply_adds(model, layer)
    print(f"{layer}: {needed / 1e9:.3f} G in a filter step\n{'':28}{'ms':>9}{'ratio':>9}{'G/s':>9}{'of peak':>9}")
    print(", ".join(f"    matrix product in {str(kind)[6:]}: {rate / 1e9:.0f} G/s" for kind, rate in peaks.items()))
    for name, median in medians.items():
        rate = needed / median
        share = rate / peaks[torch.bfloat16 if "bfloat16" in name else torch.float32]
        counted = f"{rate / 1e9:9.1f}{share:9.0%}" if "ours" in name or name.startswith("plain loop") else ""
        print(f"    {name:24}{median * 1000:9.3f}{median / medians['ours, float32']:9.2f}{counted}", flush=True)


def ours(model: nn.Module, layer: str, filters: int, steps: int, precision: Precision) -> float:
    start = time.perf_counter()
    tvc.filter_patterns(model, layer, range(filters), size=SIZE, steps=steps, precision=precision)
    return (time.perf_counter() - start) / (filters * steps)


def plain_loop(part: nn.Module, filters: int, steps: int, batch: int) -> float:
    start = time.perf_counter()
    for first in range(0, filters, batch):
        count = min(batch, filters - first)
        rows, channels = torch.arange(count), torch.arange(first, first + count)
        x = torch.empty(count, 3, SIZE, SIZE).uniform_(-0.5, 0.5).to(memory_format=torch.channels_last)
        for _ in range(steps):
            x.requires_grad_()
            loss = part(x)[rows, channels, 2:-2, 2:-2].mean((1, 2)).sum()
            (gradient,) = torch.autograd.grad(loss, x)
            x = (x + 10 * gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).detach()
    return (time.perf_counter() - start) / (filters * steps)


class Clocked(torch.optim.Adam):
    """lucent's optimizer, with the time at which each step ended."""

    def __init__(self, params: list[Tensor]) -> None:
        super().__init__(params, lr=5e-2)
        self.ends: list[float] = []

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss: float | None = super().step(closure)  # type: ignore[arg-type]
        self.ends.append(time.perf_counter())
        return loss


def lucent(model: nn.Module, layer: str, inside: int | None) -> float:
    """Two filters; at 128 px more steps, as they are shorter."""
    times: list[float] = []
    steps = 3 if layer_index(layer) > 10 else 5
    for index in range(2):
        made: list[Clocked] = []

        def clocked(params: list[Tensor], made: list[Clocked] = made) -> Clocked:
            made.append(Clocked(params))
            return made[-1]

        render.render_vis(
            model,
            f"{layer.replace('.', '_')}:{index}",
            lambda: param.image(SIZE, fft=False, decorrelate=False),
            clocked,
            transforms=[],
            thresholds=(steps,),
            progress=False,
            show_image=False,
            fixed_image_size=inside,
        )
        times += [b - a for a, b in zip(made[0].ends, made[0].ends[1:], strict=False)]
        for module in model.modules():  # it leaves its hooks behind, which would slow it down
            module._forward_hooks.clear()
    return statistics.median(times)


def layer_index(layer: str) -> int:
    return int(layer.rpartition(".")[2])


def cut(model: nn.Module, layer: str) -> nn.Sequential:
    part = copy.deepcopy(model.get_submodule("features")[: layer_index(layer) + 1])  # type: ignore[index]
    return part.requires_grad_(False)  # type: ignore[no-any-return]


def multiply_adds(model: nn.Module, layer: str) -> float:
    """What a filter step cannot do without: forward and back to the image, with one filter in the last convolution."""
    part = cut(model, layer)
    last = part[-1]
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    last.weight = nn.Parameter(last.weight[:1], requires_grad=False)
    last.bias = nn.Parameter(last.bias[:1], requires_grad=False)
    x = torch.zeros(1, 3, SIZE, SIZE, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(part(x.clone()).mean(), x)  # the counter wants no leaf
    flops: int = counter.get_total_flops()
    return flops / 2


def matrix_peak(kind: torch.dtype, side: int = 2048) -> float:
    """Multiply-adds per second in the best of a few square matrix products."""
    a, b = torch.randn(side, side).to(kind), torch.randn(side, side).to(kind)
    times = []
    for _ in range(8):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return side**3 / min(times)


def memory(layers: list[str]) -> None:
    """Peaks of memory, each of a process of its own."""
    parts = make_layers(cfgs["D"], False)
    widths = {layer: getattr(parts[layer_index(layer)], "out_channels", 0) for layer in layers}
    wide = [layer for layer, width in widths.items() if width >= max(MEMORY_FILTERS)]
    if not wide:
        return
    print(f"\npeak memory at {wide[0]}, MiB, beyond the loaded network and without the result itself")
    for filters in MEMORY_FILTERS:
        command = [sys.executable, __file__, "--layers", wide[0], "--memory", str(filters)]
        printed = subprocess.run(command, capture_output=True, check=True, text=True).stdout
        before, peak, result = map(int, printed.split())
        print(
            f"    {filters:4} filters: {(peak - before - result) / 2**20:7.0f}   (the result: {result / 2**20:.0f})",
            flush=True,
        )


def peak_memory(layer: str, filters: int) -> tuple[int, int, int]:
    """Bytes of the process before, at most, and of the result, looked at every few milliseconds."""
    model = nn.Sequential(OrderedDict(features=make_layers(cfgs["D"], False)))  # without the classifier's 500 MB
    tvc.filter_patterns(model, layer, 0, size=16, steps=1)  # what a first call loads
    process, ended = psutil.Process(), threading.Event()
    before = peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.002):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    patterns = tvc.filter_patterns(model, layer, range(filters), size=SIZE, steps=2)
    ended.set()
    watcher.join()
    return before, peak, patterns.values.nbytes + patterns.scores.nbytes


if __name__ == "__main__":
    main()
