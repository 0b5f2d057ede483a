"""Run the architectures of torchvision and timm, with random weights, through what the library promises.

    python scripts/zoo.py                      all networks, and the table in docs/compatibility.md
    python scripts/zoo.py resnet18 timm/dla34  these alone, without the table

Each network is compared with references that are written out here with plain PyTorch: hooks, `torch.autograd.grad`, and
copies of the network with other modules in it. What is finished is kept in a file (`--results`), so that a run that was
stopped goes on where it was; delete the file to begin anew.
"""

from __future__ import annotations

import argparse
import gc
import json
import signal
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torchvision
from usage import tell_mistakes
from zoo_checks import CHECKS, Subject, changed, state_of

import torchviz_cnn as tvc

PAGE = Path(__file__).parents[1] / "docs" / "compatibility.md"
BEGIN, END = "<!-- zoo: begin -->", "<!-- zoo: end -->"
SECONDS = 300
"""The limit for one network, of computing time."""
ROOMS = {"segmentation": torchvision.models.segmentation, "video": torchvision.models.video}
DETECTION = ("fasterrcnn_mobilenet_v3_large_320_fpn", "retinanet_resnet50_fpn", "ssdlite320_mobilenet_v3_large")
TIMM = [
    "coatnet_nano_rw_224",
    "convmixer_768_32",
    "convnext_atto",
    "convnextv2_atto",
    "cspdarknet53",
    "deit_tiny_patch16_224",
    "densenetblur121d",
    "dla34",
    "dm_nfnet_f0",
    "dpn68",
    "ecaresnet26t",
    "edgenext_xx_small",
    "efficientnet_lite0",
    "ese_vovnet19b_dw",
    "fastvit_t8",
    "ghostnet_100",
    "hrnet_w18_small",
    "inception_v4",
    "levit_128s",
    "mixer_s16_224",
    "mixnet_s",
    "mobilenetv1_100",
    "mobilenetv3_small_100",
    "mobilenetv4_conv_small",
    "mobileone_s0",
    "nf_resnet26",
    "poolformer_s12",
    "regnety_002",
    "repvgg_a0",
    "res2net50_26w_4s",
    "resnest14d",
    "resnet10t",
    "resnetv2_50",
    "rexnet_100",
    "selecsls42b",
    "skresnet18",
    "starnet_s1",
    "swin_tiny_patch4_window7_224",
    "tf_efficientnetv2_b0",
    "xception41",
]

Outcome = dict[str, Any]
"""What is kept of a network: `verdict`, `input`, `layer`, `seconds` of computing, and `checks`, a text for each."""


# --- the networks ---------------------------------------------------------------------------------------------------


def names() -> list[str]:
    """All networks of the zoo: `resnet18`, `segmentation/fcn_resnet50`, `timm/dla34`."""
    rooms = [f"{room}/{name}" for room, module in ROOMS.items() for name in torchvision.models.list_models(module)]
    classifiers = torchvision.models.list_models(torchvision.models)
    return [*classifiers, *rooms, *(f"detection/{name}" for name in DETECTION), *(f"timm/{name}" for name in TIMM)]


def parameters(name: str) -> int:
    """How many parameters a network of torchvision has; 0 for timm's, which are all small."""
    if name.startswith("timm/"):
        return 0
    weights = torchvision.models.get_model_weights(name.rpartition("/")[2])
    return max(int(one.meta["num_params"]) for one in weights)


# --- one network after the other ------------------------------------------------------------------------------------


class Overtime(Exception):
    """A network took longer than its limit."""


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise Overtime in the block once the process has computed for this time."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Overtime(f"not finished within {seconds} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def outcome_of(name: str, seconds: int = SECONDS) -> Outcome:
    """Run a network through all checks."""
    begin, checks, subject = time.process_time(), {}, None
    try:
        with limited(seconds), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            subject = Subject(name)
            before = state_of(subject.model)
            for check, judge in CHECKS.items():
                checks[check] = judged(lambda judge=judge: judge(subject))
            left = changed(before, state_of(subject.model))
            checks["untouched"] = f"fault: changed {left[:3]}" if left else "ok"
    except Overtime as error:
        checks["time"] = f"overtime: {error}"
    known = {"input": tuple(subject.x.shape[2:]), "layer": subject.layer} if subject else {"input": (), "layer": ""}
    return {"verdict": verdict(checks), **known, "seconds": round(time.process_time() - begin, 1), "checks": checks}


def judged(check: Any) -> str:
    """What a check says: ok, an option or a reason why it does not apply, a refusal of the library's, or a fault."""
    try:
        return str(check())
    except tvc.TorchvizError as error:
        return f"refused: {str(error).splitlines()[0]}"
    except AssertionError as error:
        return f"fault: {error}"
    except Overtime:
        raise
    except Exception as error:  # whatever else comes out of the library is what is looked for
        return f"fault: {type(error).__name__}: {str(error).splitlines()[:1]}"


def verdict(checks: dict[str, str]) -> str:
    """One of works, works with option, refused, not finished, fault."""
    kinds = {text.partition(":")[0] for text in checks.values()}
    words = {"fault": "fault", "overtime": "not finished", "refused": "refused", "option": "works with option"}
    return next((word for kind, word in words.items() if kind in kinds), "works")


def run(wanted: Sequence[str], results: Path) -> dict[str, Outcome]:
    """Run all that are not finished yet, the small ones first, and keep each in the file as it ends."""
    outcomes: dict[str, Outcome] = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}
    for i, name in enumerate(sorted(wanted, key=parameters)):
        if name in outcomes:
            continue
        outcomes[name] = outcome = outcome_of(name)
        results.parent.mkdir(parents=True, exist_ok=True)
        results.write_text(json.dumps(outcomes, indent=1), encoding="utf-8")
        print(
            f"{i + 1}/{len(wanted)} {name}: {outcome['verdict']} in {outcome['seconds']} s {note(outcome)}", flush=True
        )
        gc.collect()
    return outcomes


# --- the table ------------------------------------------------------------------------------------------------------


def note(outcome: Outcome) -> str:
    """What there is to say beyond the verdict."""
    said = [
        text if kind != "refused" else f"{check}: {text}"
        for check, words in outcome["checks"].items()
        for kind, _, text in [words.partition(": ")]
        if kind in ("option", "refused", "overtime", "fault")
    ]
    return "; ".join(dict.fromkeys(said))


def table(outcomes: dict[str, Outcome]) -> str:
    """The table of the page, and the sentences before it."""
    count = Counter(outcome["verdict"] for outcome in outcomes.values())
    waiting = len(names()) - len(outcomes)
    lines = [
        f"Of {len(outcomes)} networks, with torch {torch.__version__} and torchvision {torchvision.__version__}: "
        + ", ".join(f"{number} {kind}" for kind, number in count.most_common())
        + "."
        + (f" Not run yet: {waiting}." if waiting else ""),
        "",
        "| network | input | verdict | default layer | compared | remarks |",
        "|---|---|---|---|---|---|",
    ]
    for name in names():
        if name in outcomes:
            one = outcomes[name]
            compared = ", ".join(check for check, text in one["checks"].items() if text.startswith(("ok", "option")))
            size, remark = " × ".join(map(str, one["input"])), note(one).replace("|", "\\|")
            layer = f"`{one['layer']}`" if one["layer"] else ""
            lines.append(f"| {name} | {size} | {one['verdict']} | {layer} | {compared} | {remark} |")
    return "\n".join(lines)


def write_table(outcomes: dict[str, Outcome], page: Path = PAGE) -> None:
    """Write the table between the two markers of a page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{table(outcomes)}\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="networks; without, all of them, and the table is written")
    parser.add_argument("--results", type=Path, default=Path("build/zoo.json"))
    parser.add_argument("--table", action="store_true", help="run nothing: write the table of what is finished")
    args = parser.parse_args()
    torch.set_num_threads(1)
    outcomes = run([] if args.table else args.names or names(), args.results)
    if args.table or not args.names:
        write_table(outcomes)


if __name__ == "__main__":
    tell_mistakes()
    main()
