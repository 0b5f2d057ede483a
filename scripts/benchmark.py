"""Measure the library beside its peers: one command, all in turns in one run, medians with quartiles, and ratios.

    python scripts/benchmark.py                                  everything: about twelve minutes on two quiet cores
    python scripts/benchmark.py grad_cam capture --rounds 9      two sections
    python scripts/benchmark.py saliency --only "guided" --set saliency_batch=8
    python scripts/benchmark.py --markdown docs/performance.md --figure docs/figures/benchmark_growth.png
    python scripts/benchmark.py --quick                          all of it on a tiny network, in seconds

What is measured is kept in a file (`--json`) after each case: a run that was stopped goes on where it was, and Ctrl-C
prints the tables of what is there. Peers that are not installed are left out, and named; the extra `bench` brings them.

Networks have random weights where `--weights` names no folder with a file of theirs, such as `vgg16-397923af.pth`
(EfficientNet-Lite0 has its own where the extra `demo` is installed). The time of dense arithmetic does not depend on
them; how many values a ReLU makes zero does, which is nothing to PyTorch's CPU kernels.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks import cam, capture, growth, machine, metrics, mining, patterns, saliency
from benchmarks.figure import draw
from benchmarks.results import Record, Results, measured
from benchmarks.settings import QUICK, Options, Sizes, changed
from benchmarks.tables import against_peer, article, number, page
from benchmarks.tasks import PEERS, Case, version
from timing import by_processor_time

import torchviz_cnn as tvc

SECTIONS: dict[str, Callable[[Options], Iterator[Case]]] = {
    "grad_cam": cam.cases,
    "family": cam.family_cases,
    "capture": capture.cases,
    "filters": patterns.cases,
    "saliency": saliency.cases,
    "metrics": metrics.cases,
    "mining": mining.cases,
    "video": mining.video_cases,
    "machine": machine.cases,
    "growth": growth.cases,
    "memory": growth.memory_cases,
}
BEGIN, END = "<!-- benchmark: begin -->", "<!-- benchmark: end -->"


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("sections", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)} (default: all)")
    add("--rounds", type=int, default=5, help="rounds at most (%(default)s); slow cases have fewer")
    add("--seconds", type=float, default=10, help="of a case, after which no further round begins (%(default)s)")
    add("--processor-time", action="store_true", help="measure the processor's time, where other work runs beside")
    add("--quick", action="store_true", help="a tiny network, one round")
    add("--only", default="", help="only cases whose name has this text")
    add("--set", action="append", default=[], metavar="SIZE=NUMBER", help="change a size, such as filters=64")
    add("--json", type=Path, help="the file of results (build/benchmark.json)")
    add("--fresh", action="store_true", help="begin anew, whatever the file has")
    add("--markdown", type=Path, help="a file for the tables, between its markers if it has them")
    add("--figure", type=Path, help="a file for the figure of growth")
    add("--weights", type=Path, help="a folder of checkpoints")
    add("--device", default="cpu")
    add("--photos", type=Path, help="a folder of photos for mining (default: generated ones)")
    add("--clip", type=Path, help="a clip for video (default: a generated one)")
    add("--batch", type=int, default=8, help="images in a forward pass of the metrics (%(default)s)")
    add("--workers", type=int, help="processes that decode photos")
    args = parser.parse_args(given)
    unknown = [name for name in args.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"no section {unknown[0]!r}; there are {', '.join(SECTIONS)}")
    if args.weights is not None and not args.weights.is_dir():
        parser.error(f"{args.weights} is no folder")
    if args.rounds < 1:
        parser.error(f"--rounds is at least 1, not {args.rounds}")
    try:
        args.sizes = changed(QUICK if args.quick else Sizes(), args.set)
    except ValueError as error:
        parser.error(str(error))
    args.rounds = 1 if args.quick else args.rounds
    args.json = args.json or Path("build", "benchmark_quick.json" if args.quick else "benchmark.json")
    return args


def about(args: argparse.Namespace) -> dict[str, Any]:
    """What a run is made of: one with anything else does not go on with its file."""
    return {
        "machine": machine_name(args.device),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "own": tvc.__version__,
        "versions": {name: version(name) for name in PEERS},
        "device": args.device,
        "weights": args.weights.name if args.weights else None,
        "quick": args.quick,
        "clock": "processor time" if args.processor_time else "time",
        "rounds": args.rounds,
        "seconds": args.seconds,
        "batch": args.batch,
        "sizes": dataclasses.asdict(args.sizes),
    }


def machine_name(device: str) -> str:
    """The name of what computes."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def run(results: Results, cases: Sequence[Case], args: argparse.Namespace) -> None:
    """Measure what is not in the file yet, with a line for each case."""
    for i, case in enumerate(cases):
        if results.has(case):
            continue
        begun = time.monotonic()
        record = measured(case, args.rounds, args.seconds)
        results.add(record)
        print(f"{i + 1}/{len(cases)} {line(record)}, {time.monotonic() - begun:.1f} s in all", flush=True)


def line(record: Record) -> str:
    """A case in one line."""
    ours = record.ours
    said = [f"{record.section}: {record.case}"]
    if ours and ours.seconds:
        said.append(f"{number(1e3 * ours.timing.median)} ms {article(record.unit)}")
    if ours and ours.peak is not None:
        said.append(f"{number(ours.peak / 2**20)} MB")
    if record.best_peer:
        said.append(f"to the best peer {against_peer(record)}")
    return ", ".join(said)


def write(path: Path, text: str) -> None:
    """Write the tables into a file, between its markers if it has them."""
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    if BEGIN in before and END in before:
        head, _, rest = before.partition(BEGIN)
        text = f"{head}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}"
    path.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")


def main(given: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns the exit code."""
    args = arguments(given)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    if args.processor_time:
        by_processor_time()
    if args.fresh:
        args.json.unlink(missing_ok=True)
    try:
        results = Results(args.json, about(args))
    except ValueError as error:
        print(f"benchmark.py: {error}", file=sys.stderr)
        return 2
    code = 0
    with tempfile.TemporaryDirectory() as scratch:
        options = Options(
            args.quick,
            args.sizes,
            args.weights,
            args.device,
            args.photos,
            args.clip,
            args.batch,
            args.workers,
            Path(scratch),
        )
        asked = [
            case for name in args.sections or SECTIONS for case in SECTIONS[name](options) if args.only in case.name
        ]
        try:
            run(results, asked, args)
        except KeyboardInterrupt:
            print(f"\nstopped: what was measured is in {args.json}, and the same command goes on", file=sys.stderr)
            code = 130
    text = page(results.about, results.records)
    print(f"\n{text}")
    if args.markdown is not None:
        write(args.markdown, text)
    if args.figure is not None:
        draw(results.records, args.figure)
    return code


if __name__ == "__main__":
    sys.exit(main())
