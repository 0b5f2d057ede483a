"""Train one of the package's networks on your own pictures, or on Fashion-MNIST.

    python scripts/train.py DIR --model convnet_2025 --out runs/convnet
    python scripts/train.py fashion-mnist --model fashion_mnist_convnet --size 28 --out runs/fashion

DIR holds `train/CLASS/*.jpg` and `validation/CLASS/*.jpg`. Run the same command again after an interruption:
it goes on from the last whole epoch and ends with the same weights. The best epoch on the validation pictures
is written to `OUT/model.safetensors` in half precision, the history to `OUT/history.jsonl`.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from pictures import MEAN, STD, Pictures, augment, fashion_mnist, normalize, read_folder, resize
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from usage import tell_mistakes

from torchviz_cnn.core.errors import InputError
from torchviz_cnn.models.convnets import convnet_2017, convnet_2025, fashion_mnist_convnet, zfnet
from torchviz_cnn.models.xception import mini_xception, mini_xception_fer2013, xception

MODELS: dict[str, Callable[..., nn.Module]] = {
    "convnet_2017": convnet_2017,
    "convnet_2025": partial(convnet_2025, batch_norm=True),
    "fashion_mnist_convnet": fashion_mnist_convnet,
    "mini_xception": mini_xception,
    "mini_xception_fer2013": mini_xception_fer2013,
    "xception": xception,
    "zfnet": zfnet,
}


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to: sizes in pixels, accuracies in 0..1, seconds on this machine."""

    epoch: int
    size: int
    train_loss: float
    validation_loss: float
    validation_accuracy: float
    seconds: float


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("data", help="folder with train/CLASS and validation/CLASS, or fashion-mnist (downloaded into OUT)")
    add("--model", choices=sorted(MODELS), default="convnet_2025")
    add("--out", type=Path, required=True, help="folder of the run")
    add("--epochs", type=int, default=40)
    add("--size", type=int, default=160, help="side of the validation pictures and of the last training ones")
    add(
        "--start-size",
        type=int,
        help="side of the first training pictures; grows to --size (default: --size)",
    )
    add("--batch", type=int, default=64)
    add("--lr", type=float, default=4e-3, help="peak of the one-cycle schedule")
    add("--weight-decay", type=float, default=0.05)
    add("--label-smoothing", type=float, default=0.05)
    add("--min-zoom", type=float, default=0.55, help="smallest random crop, as a share of the shorter side")
    add("--weights", type=Path, help="start from a file that train.py wrote (default: from random weights)")
    add("--patience", type=int, default=15, help="stop after so many epochs without a better validation")
    add("--seed", type=int, default=0)
    add("--grey", action="store_true", help="read pictures as one grey channel")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    args.start_size = args.start_size or args.size
    return args


def size_of_epoch(epoch: int, args: argparse.Namespace) -> int:
    """Training pictures grow in steps of 16 pixels over the first four fifths of the run: early epochs are
    cheap."""
    grown = min(1.0, epoch / max(1, round(0.8 * args.epochs)))
    return int(min(args.size, args.start_size + 16 * int((args.size - args.start_size) / 16 * grown + 1e-6)))


def batches(count: int, size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Shuffled indices in whole batches: a last small one would upset BatchNorm."""
    order = torch.randperm(count, generator=generator)
    size = min(size, count)
    return torch.split(order[: count // size * size], size)


def autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type in ("cpu", "cuda"))


def optimiser_of(model: nn.Module, args: argparse.Namespace) -> torch.optim.Optimizer:
    """AdamW; kernels decay, biases and BatchNorm do not."""
    kernels = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": kernels, "weight_decay": args.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=args.lr)


def train_epoch(run: Run, pictures: Pictures, epoch: int, args: argparse.Namespace) -> float:
    """One pass over the pictures; the mean loss."""
    device = torch.device(args.device)
    size = size_of_epoch(epoch, args)
    # Every epoch has its own seed, so an interrupted run needs no random state from the one before it.
    torch.manual_seed(args.seed * 1_000_003 + epoch)
    generator = torch.Generator().manual_seed(args.seed * 1_000_003 + epoch)
    run.model.train()
    losses = []
    steps = batches(len(pictures), args.batch, generator)
    for indices in tqdm(steps, desc=f"epoch {epoch + 1}/{args.epochs}, {size} px", disable=None, leave=False):
        x = augment(pictures.at(indices, device), size, generator, args.min_zoom).contiguous(
            memory_format=torch.channels_last
        )
        y = pictures.labels[indices].to(device)
        with autocast(device):
            logits = run.model(x)
        loss = F.cross_entropy(logits.float(), y, label_smoothing=args.label_smoothing)
        run.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        run.optimiser.step()
        run.schedule.step()
        losses.append(loss.detach())
    return float(torch.stack(losses).mean())


@torch.no_grad()
def validate(model: nn.Module, images: Tensor, labels: Tensor, device: torch.device) -> tuple[float, float]:
    """Mean cross-entropy and accuracy of the model as it will be used: eval mode, float32, centre crops."""
    model.eval()
    loss, right = 0.0, 0
    for x, y in zip(torch.split(images, 128), torch.split(labels, 128), strict=True):
        x, y = normalize(x.to(device)).contiguous(memory_format=torch.channels_last), y.to(device)
        logits = model(x)
        loss += float(F.cross_entropy(logits, y, reduction="sum"))
        right += int((logits.argmax(1) == y).sum())
    return loss / len(labels), right / len(labels)


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside `path`, then rename: a kill at any moment leaves the old file or the new one, never half
    of one."""
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def export(
    state: dict[str, Tensor],
    path: Path,
    categories: tuple[str, ...],
    channels: int,
    best: Epoch,
    args: argparse.Namespace,
) -> None:
    """Half-precision safetensors, with what a reader needs to use them in the file's metadata."""
    half = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in state.items()}
    metadata = {
        "model": args.model,
        "categories": json.dumps(categories),
        "in_channels": str(channels),
        "input_size": str(args.size),
        "mean": json.dumps(MEAN[:channels]),
        "std": json.dumps(STD[:channels]),
        "epoch": str(best.epoch),
        "validation_accuracy": f"{best.validation_accuracy:.4f}",
    }
    replace(path, lambda temporary: temporary.write_bytes(save(half, metadata)))


def keep_freed_memory() -> None:
    """On Linux, reuse what is freed instead of handing it back: a step on the CPU takes 40 % less time.

    glibc maps every large activation anew, and the kernel fills it with zeros, page by page.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        m_trim_threshold, m_mmap_max = -1, -4
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, -1)


def settings_of(args: argparse.Namespace, train: Pictures) -> dict[str, str]:
    """What a checkpoint must have in common with the run that goes on from it; folders and devices may
    differ."""
    same = {k: str(v) for k, v in vars(args).items() if k not in ("out", "device", "data", "patience")}
    return same | {"classes": json.dumps(train.categories), "pictures": str(len(train))}


@dataclass(eq=False)
class Run:
    """All that changes while training, and how it is kept: one file, replaced after every epoch."""

    model: nn.Module
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    history: list[Epoch]
    best_state: dict[str, Tensor]

    @property
    def best(self) -> Epoch | None:
        """The best epoch so far by validation accuracy; of equals the first."""
        return max(self.history, key=lambda epoch: epoch.validation_accuracy, default=None)

    def add(self, epoch: Epoch) -> None:
        if self.best is None or epoch.validation_accuracy > self.best.validation_accuracy:
            self.best_state = {k: v.detach().to("cpu", copy=True) for k, v in self.model.state_dict().items()}
        self.history.append(epoch)

    def save(self, path: Path, settings: dict[str, str]) -> None:
        saved = {
            "settings": settings,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "best": self.best_state,
            "history": [asdict(epoch) for epoch in self.history],
        }
        replace(path, partial(torch.save, saved))

    def restore(self, path: Path, settings: dict[str, str], device: torch.device) -> None:
        saved = torch.load(path, map_location=device, weights_only=True)
        if saved["settings"] != settings:
            other = {k: v for k, v in saved["settings"].items() if settings.get(k) != v}
            raise InputError(f"{path} belongs to a run with other settings: {other}; choose another --out")
        self.model.load_state_dict(saved["model"])
        self.optimiser.load_state_dict(saved["optimiser"])
        self.schedule.load_state_dict(saved["schedule"])
        self.history = [Epoch(**row) for row in saved["history"]]
        self.best_state = saved["best"]


def read_data(args: argparse.Namespace) -> tuple[Pictures, Pictures]:
    """Training and validation pictures, a tenth larger in memory than the network's, for crops to choose
    from."""
    if args.data == "fashion-mnist":
        return fashion_mnist(args.out / "fashion-mnist")
    stored = round(args.size * 1.1)
    train, validation = (read_folder(Path(args.data) / split, stored, args.grey) for split in ("train", "validation"))
    if train.categories != validation.categories:
        raise InputError(f"classes differ: train has {train.categories}, validation {validation.categories}")
    if len(train.categories) < 2:
        raise InputError(
            f"one class, {train.categories[0]!r}, is nothing to tell apart: {args.data}/train has no other folder"
        )
    return train, validation


def new_run(args: argparse.Namespace, classes: int, channels: int, steps: int) -> Run:
    """A network, its optimiser and one cycle of learning rates: up for a fifth of the run, then a cosine down
    to zero."""
    torch.manual_seed(args.seed)
    fixed = {"input_size": args.size} if args.model == "convnet_2017" else {}
    model = MODELS[args.model](num_classes=classes, in_channels=channels, **fixed)
    if args.weights is not None:
        state = load_file(args.weights)
        model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    model = model.to(args.device).to(memory_format=torch.channels_last)
    optimiser = optimiser_of(model, args)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, args.lr, total_steps=args.epochs * steps, pct_start=0.2)
    return Run(model, optimiser, schedule, [], {})


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    if args.epochs < 1 or args.batch < 1:
        raise InputError("--epochs and --batch must be at least 1")
    device = torch.device(args.device)
    if device.type == "cpu":
        keep_freed_memory()
    args.out.mkdir(parents=True, exist_ok=True)
    train, validation = read_data(args)
    channels = train.images.shape[1]
    validation_images = resize(validation, args.size)
    run = new_run(args, len(train.categories), channels, steps=len(train) // min(args.batch, len(train)))
    checkpoint = args.out / "checkpoint.pt"
    if checkpoint.exists():
        run.restore(checkpoint, settings_of(args, train), device)
        print(f"going on after epoch {len(run.history)} of {checkpoint}", flush=True)

    for epoch in range(len(run.history), args.epochs):
        if run.best is not None and epoch - run.best.epoch >= args.patience:
            print(f"no better validation for {args.patience} epochs: stopped", flush=True)
            break
        start = time.monotonic()
        train_loss = train_epoch(run, train, epoch, args)
        loss, accuracy = validate(run.model, validation_images, validation.labels, device)
        row = Epoch(epoch + 1, size_of_epoch(epoch, args), train_loss, loss, accuracy, time.monotonic() - start)
        run.add(row)
        run.save(checkpoint, settings_of(args, train))
        print(
            f"epoch {row.epoch:3d}  {row.size} px  train loss {train_loss:.4f}  validation loss {loss:.4f}  "
            f"accuracy {accuracy:.4f}  {row.seconds:.0f} s",
            flush=True,
        )

    best = run.best
    assert best is not None  # after at least one epoch
    rows = "".join(json.dumps(asdict(epoch)) + "\n" for epoch in run.history)
    replace(args.out / "history.jsonl", lambda temporary: temporary.write_text(rows, encoding="utf-8"))
    export(run.best_state, args.out / "model.safetensors", train.categories, channels, best, args)
    print(f"best: epoch {best.epoch}, validation accuracy {best.validation_accuracy:.4f}")
    print(f"written: {args.out / 'model.safetensors'}")


if __name__ == "__main__":
    tell_mistakes()
    main()
