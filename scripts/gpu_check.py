"""Check and measure the library on a GPU: one command of a few minutes, one JSON file and one Markdown table.

    python scripts/gpu_check.py [--out gpu_check] [--seconds 330] [--tiny]

It runs the tests marked `gpu` (every method gives what the CPU gives), then times Grad-CAM, saliency, filter patterns
and top activations of VGG16, ResNet50 and EfficientNet-B0 beside a plain forward pass and, where it is installed,
captum. `--tiny` runs all of it on small inputs, on a CPU too.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from timing import Run, alternate, finish, peak_bytes
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import get_model
from usage import tell_mistakes

import torchviz_cnn as tvc

LAYERS = {"vgg16": "features.29", "resnet50": "layer4", "efficientnet_b0": "features"}
PATTERNS = {"vgg16": "features.10", "resnet50": "layer2.0.conv2", "efficientnet_b0": "features.3.0.block.0"}
ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Row:
    """One measurement."""

    network: str
    what: str
    batch: int
    milliseconds: float
    ratio: float | None
    """To a plain forward pass without gradients of the same batch."""
    megabytes: float
    share: float | None
    """Of the device's measured arithmetic, in float32."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("gpu_check"), help="writes OUT.json and OUT.md")
    parser.add_argument("--seconds", type=float, default=330, help="no measurement is begun after that (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="small inputs and batches, on a CPU too")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not args.tiny:
        parser.error("there is no CUDA device here; --tiny runs on the CPU")
    warnings.simplefilter("ignore")
    begun = time.monotonic()
    tests = run_tests()
    peak = arithmetic(device, args.tiny)
    rows: list[Row] = []
    for row in measurements(device, args.tiny, peak):
        rows.append(row)
        print(line(row), flush=True)
        write(args.out, device, tests, peak, rows, time.monotonic() - begun)
        if time.monotonic() - begun > args.seconds:
            print(f"{args.seconds:.0f} s are over: the rest is left out", flush=True)
            break
    print(f"{args.out}.json and {args.out}.md are written; the tests marked gpu: {tests}")


def run_tests() -> str:
    """The closing line of the tests marked `gpu`."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/test_gpu.py", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    failed = [text for text in done.stdout.splitlines() if text.startswith(("FAILED", "ERROR"))]
    print("\n".join([*done.stdout.splitlines()[-40:], *done.stderr.splitlines()[-5:]]) if failed else "", flush=True)
    return (done.stdout.strip().splitlines() or ["no output"])[-1].strip("= ")


def arithmetic(device: torch.device, tiny: bool) -> float:
    """Operations a second of a large float32 product, as convolutions of these networks run by default."""
    side = 512 if tiny else 8192
    a, b = (torch.randn(side, side, device=device) for _ in range(2))
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    seconds = alternate({"product": lambda: a @ b}, 5, 2)["product"].fastest
    torch.backends.cuda.matmul.allow_tf32 = allowed
    return 2 * side**3 / seconds


def measurements(device: torch.device, tiny: bool, peak: float) -> Iterator[Row]:
    size, batches = (64, (1, 2)) if tiny else (224, (1, 32, 256))
    for name, layer in LAYERS.items():
        model = get_model(name, weights=None).eval().to(device)
        for batch in batches:
            x = torch.randn(batch, 3, size, size, device=device)
            contenders = of_batch(model, x, layer)
            yield from timed(name, contenders, batch, 3 if tiny else 7, operations(model, x), peak)
        count, side, steps = (2, 32, 3) if tiny else (64, 128, 30)
        patterns = {
            f"filter_patterns, {precision}, {count} of {PATTERNS[name]}, {side} px, {steps} steps": ascent(
                model, PATTERNS[name], count, side, steps, precision
            )
            for precision in ("float32", "bfloat16")
        }
        yield from timed(name, patterns, count, 2, None, peak)
        photos = torch.randn(8 if tiny else 1024, 3, size, size)
        mining = mining_of(model, photos, layer)
        yield from timed(name, mining, 64, 1 if tiny else 2, None, peak)


def of_batch(model: nn.Module, x: Tensor, layer: str) -> dict[str, Run]:
    ten = torch.arange(10).expand(len(x), 10)
    contenders: dict[str, Run] = {
        "plain forward": lambda: plain(model, x),
        "grad_cam": lambda: tvc.grad_cam(model, x, layer, 0, relu=False),
        "grad_cam, 10 classes": lambda: tvc.grad_cam(model, x, layer, ten, relu=False),
        "saliency": lambda: tvc.saliency(model, x, 0),
    }
    try:
        from captum.attr import LayerGradCam, Saliency
    except ImportError:
        return contenders
    cam, saliency = LayerGradCam(model, model.get_submodule(layer)), Saliency(model)
    contenders["captum LayerGradCam"] = lambda: cam.attribute(x, target=0)
    contenders["captum Saliency"] = lambda: saliency.attribute(x, target=0)
    return contenders


def mining_of(model: nn.Module, photos: Tensor, layer: str) -> dict[str, Run]:
    device = next(model.parameters()).device
    return {
        "plain forward": lambda: forward_all(model, photos, device),
        f"top_activations, {len(photos)} images in memory": lambda: tvc.top_activations(
            model, photos, [layer], batch_size=64
        ),
    }


def ascent(model: nn.Module, layer: str, count: int, side: int, steps: int, precision: str) -> Callable[[], object]:
    def run() -> object:
        return tvc.filter_patterns(model, layer, range(count), size=side, steps=steps, precision=precision)  # type: ignore[arg-type]

    return run


def timed(
    network: str, contenders: dict[str, Run], batch: int, rounds: int, flops: float | None, peak: float
) -> Iterator[Row]:
    try:
        times = alternate(contenders, rounds)
        memory = {name: peak_bytes(run) for name, run in contenders.items()}
    except torch.OutOfMemoryError:
        print(f"{network}, batch {batch}: there is not enough memory", flush=True)
        return
    base = times.get("plain forward")
    for name, timing in times.items():
        ratio = timing.median / base.median if base is not None else None
        share = flops / timing.median / peak if flops is not None and name == "plain forward" else None
        yield Row(network, name, batch, 1000 * timing.median, ratio, memory[name] / 2**20, share)


def operations(model: nn.Module, x: Tensor) -> float:
    """Arithmetic operations of a forward pass."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x[:1])
    return float(counter.get_total_flops()) * len(x)


def plain(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        model(x)


def forward_all(model: nn.Module, photos: Tensor, device: torch.device) -> None:
    with torch.no_grad():
        for part in photos.split(64):  # type: ignore[no-untyped-call]
            model(part.to(device))
    finish()


def line(row: Row) -> str:
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    share = "" if row.share is None else f"{row.share:.0%}"
    cells = [row.network, row.what, row.batch, f"{row.milliseconds:.2f}", ratio, f"{row.megabytes:.0f}", share]
    return f"| {' | '.join(map(str, cells))} |"


def write(out: Path, device: torch.device, tests: str, peak: float, rows: list[Row], seconds: float) -> None:
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "CPU"
    about = {
        "device": name,
        "torch": str(torch.__version__),
        "tests": tests,
        "tera_operations_per_second": round(peak / 1e12, 2),
        "seconds": round(seconds, 1),
    }
    text = json.dumps({**about, "rows": [asdict(row) for row in rows]}, indent=1)
    out.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    head = [
        f"{name}, torch {torch.__version__}, {peak / 1e12:.1f} T operations/s in a large float32 product;",
        f"tests: {tests}",
        "",
        "| network | what | batch | ms | x forward | MB | share of arithmetic |",
        "|---|---|---|---|---|---|---|",
    ]
    out.with_suffix(".md").write_text("\n".join([*head, *map(line, rows)]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    tell_mistakes()
    main()
