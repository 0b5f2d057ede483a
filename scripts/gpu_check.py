"""Check and measure the library on a GPU: one command of a few minutes, one JSON file and one Markdown table.

    python scripts/gpu_check.py [--out gpu_check] [--seconds 330] [--tiny]

It runs the tests marked `gpu` (every method gives what the CPU gives), then times Grad-CAM, competitive CAM, saliency,
filter patterns and top activations of VGG16, ResNet50 and EfficientNet-Lite0 beside a plain forward pass, what the card
can do at the most and, where they are installed, captum, torchcam and lucent. The files are written after every
measurement. `--tiny` runs all of it on small inputs, on a CPU too. The exit code is 1 where tests fail.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from gpu.bounds import Ceilings, ceilings
from gpu.tables import Row, line, tables
from gpu.tasks import BASE, COMPUTING, DECODING, ON_DEVICE, READING, Case, Group, cases
from timing import Run, Timing, alternate, peak_bytes
from usage import tell_mistakes

ROOT = Path(__file__).resolve().parents[1]
TESTS_AT_MOST = 120
"""Seconds after which the tests are stopped."""


@dataclass(frozen=True)
class Goal:
    """What is to be reached, by the rows that it is of."""

    words: str
    of: Callable[[Row], bool]
    value: Callable[[Row], float | None]
    reached: Callable[[float], bool]


GOALS = (
    Goal(
        "grad_cam takes at most 1.15 times a plain forward pass at batch 1",
        lambda row: row.what == "grad_cam" and row.batch == 1,
        lambda row: row.ratio,
        lambda value: value <= 1.15,
    ),
    Goal(
        "grad_cam takes at most 1.03 times a plain forward pass at batches of 32 and more",
        lambda row: row.what == "grad_cam" and row.batch >= 32,
        lambda row: row.ratio,
        lambda value: value <= 1.03,
    ),
    Goal(
        "filter_patterns of VGG16's features.10 in bfloat16 reach at least half of the bound",
        lambda row: row.what.startswith("filter_patterns, 64 of features.10") and row.precision == "bfloat16",
        lambda row: row.share,
        lambda value: value >= 0.5,
    ),
    Goal(
        "top_activations of photos reach at least 0.9 of the slower of decoding alone and the network alone",
        lambda row: row.what.startswith("top_activations") and row.of_slower is not None,
        lambda row: row.of_slower,
        lambda value: value >= 0.9,
    ),
)


@dataclass
class Outcome:
    """All that is known so far."""

    device: str
    began: float = field(default_factory=time.monotonic)
    tests: str = ""
    failed: bool = False
    reached: Ceilings | None = None
    rows: list[Row] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """How long it has taken."""
        return time.monotonic() - self.began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("gpu_check"), help="writes OUT.json and OUT.md (%(default)s)")
    parser.add_argument("--seconds", type=float, default=330, help="nothing is begun that may end later (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="small inputs and batches, on a CPU too")
    parser.add_argument("--no-tests", action="store_true", help="measure only")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not args.tiny:
        parser.error("there is no CUDA device here; --tiny runs on the CPU")
    warnings.simplefilter("ignore")
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "CPU"
    outcome = Outcome(name)
    if not args.no_tests:
        outcome.failed, outcome.tests = run_tests(min(TESTS_AT_MOST, args.seconds))
        write(args.out, outcome)
    outcome.reached = ceilings(device, args.tiny)
    write(args.out, outcome)
    for case in cases(device, args.tiny):
        run_case(case, outcome, args.seconds, args.tiny)
        write(args.out, outcome)
    print("\n".join(["", *of_goals(outcome.rows)]))
    print(f"{args.out}.json and {args.out}.md are written, after {outcome.seconds:.0f} s; tests: {outcome.tests}")
    return int(outcome.failed)


def run_tests(seconds: float) -> tuple[bool, str]:
    """Whether a test marked `gpu` failed, and the closing line of all of them."""
    marked = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text("utf-8")]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--durations=5"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    try:
        done = subprocess.run(
            [*command, *map(str, marked)], cwd=ROOT, capture_output=True, text=True, timeout=seconds, env=environment
        )
    except subprocess.TimeoutExpired as stopped:
        print(bytes(stopped.stdout or b"").decode(errors="replace")[-3000:], flush=True)
        return True, f"stopped after {seconds:.0f} s"
    lines = done.stdout.strip().splitlines() or ["no output"]
    failed = done.returncode not in (0, 5)  # 5: there were none to run
    print("\n".join([*lines[-60 if failed else -8 :], *done.stderr.splitlines()[-5:]]), flush=True)
    return failed, lines[-1].strip("= ")


def run_case(case: Case, outcome: Outcome, seconds: float, tiny: bool = False) -> None:
    """Add the rows of one group of contenders, if it ends in time."""
    assert outcome.reached is not None
    title = f"{case.network}, {case.what}, {case.precision}, batch {case.batch}"
    if outcome.seconds + case.seconds > seconds:
        outcome.left_out.append(title)
        print(f"{title}: left out, as it may take {case.seconds:.0f} s", flush=True)
        return
    for row in measured(case, outcome.reached, tiny):
        outcome.rows.append(row)
        print(line(row), flush=True)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def measured(case: Case, reached: Ceilings, tiny: bool = False) -> Iterator[Row]:
    """The rows of one group. What fails is a row that says so, and the others go on."""
    about = case.network, case.precision, case.batch
    try:
        group = case.build()
    except Exception as error:  # whatever the library or PyTorch does on this device: it is told, not mended
        yield failure(case, case.what, error)
        return
    runs, memory = dict[str, Run](), dict[str, float | None]()
    for name, run in group.contenders.items():
        try:
            memory[name] = memory_of(run)
            runs[name] = run
        except Exception as error:  # as above, and whatever a peer raises
            yield failure(case, name, error)
    times = alternate(runs, 1 if tiny else group.rounds, 0, limit=case.seconds / 2) if runs else {}
    for name, timing in times.items():
        network, precision, batch = about
        row = Row(network, name, precision, batch, megabytes=memory[name])
        fill(row, timing, times.get(BASE), group, reached)
        yield with_photos(row, timing, times, group.photos)


def memory_of(run: Run) -> float | None:
    """The most megabytes that tensors took on the device in the first run; None on a CPU, where it is only run."""
    if torch.cuda.is_available():
        return peak_bytes(run) / 2**20
    run()
    return None


def fill(row: Row, timing: Timing, base: Timing | None, group: Group, reached: Ceilings) -> None:
    """Say how long a row's contender took, and how that compares."""
    row.milliseconds = 1000 * timing.median
    lower, upper = timing.quartiles
    row.quartiles = 1000 * lower, 1000 * upper
    row.ratio = None if base is None else timing.over(base)
    if row.what in group.work:
        least, row.bound = group.work[row.what].seconds(reached, row.precision)
        row.share = least / timing.median


def with_photos(row: Row, timing: Timing, times: dict[str, Timing], photos: int) -> Row:
    """A row with its photos a second, where it is of photos."""
    if photos:
        row.per_second = photos / timing.median
        reading = DECODING if row.what.endswith(ON_DEVICE) else READING
        bounds = [times[name].median for name in (reading, COMPUTING) if name in times]
        if len(bounds) == 2:
            row.of_slower = max(bounds) / timing.median
    return row


def failure(case: Case, what: str, error: Exception) -> Row:
    """The row of a measurement that failed."""
    text = " ".join(str(error).split())[:200]
    reason = "there is not enough memory" if isinstance(error, torch.OutOfMemoryError) else text
    return Row(case.network, what, case.precision, case.batch, error=f"{type(error).__name__}: {reason}")


def of_goals(rows: list[Row]) -> list[str]:
    """Which goals are met and which are missed, and by what."""
    lines = []
    for goal in GOALS:
        values = [(goal.value(row), row) for row in rows if goal.of(row) and row.error is None]
        missed = [(value, row) for value, row in values if value is None or not goal.reached(value)]
        state = "not measured" if not values else "missed" if missed else "met"
        known = sorted(value for value, _ in values if value is not None)
        shown = "" if not known else f", {known[0]:.2f}" if len(known) == 1 else f", {known[0]:.2f} to {known[-1]:.2f}"
        reached = f" ({len(values) - len(missed)} of {len(values)} rows{shown})" if values else ""
        lines.append(f"- {goal.words}: **{state}**{reached}.")
    return lines


def write(out: Path, outcome: Outcome) -> None:
    """Write all that is known so far."""
    reached = outcome.reached
    about = {
        "device": outcome.device,
        "torch": str(torch.__version__),
        "tests": outcome.tests,
        "ceilings": None if reached is None else asdict(reached),
        "seconds": round(outcome.seconds, 1),
        "left_out": outcome.left_out,
        "goals": of_goals(outcome.rows),
    }
    text = json.dumps({**about, "rows": [asdict(row) for row in outcome.rows]}, indent=1)
    out.with_name(f"{out.name}.json").write_text(text + "\n", encoding="utf-8")
    head = [f"{outcome.device}, torch {torch.__version__}; tests: {outcome.tests or 'not run'}."]
    if reached is not None:
        products = ", ".join(
            f"{value / 1e12:.1f} T operations/s in {name}" for name, value in reached.operations.items()
        )
        head.append(f"It reaches {products}, and {reached.bytes / 1e9:.0f} GB/s in a copy.")
    head += ["", *of_goals(outcome.rows), ""]
    lines = [*head, *tables(outcome.rows), *(f"Left out for want of time: {title}." for title in outcome.left_out)]
    out.with_name(f"{out.name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    tell_mistakes()
    sys.exit(main())
