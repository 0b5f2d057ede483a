"""Write docs/methods.md, the table of all methods that explain a class, from the table that the library itself reads.

python scripts/methods_table.py [FILE]
"""

from __future__ import annotations

import sys
from pathlib import Path

from torchviz_cnn.attribution.methods import METHODS

COMMANDS = {"cam": "cam", "saliency": "saliency", "occlusion": "occlusion"}
DEFAULTS = {"cam": "grad_cam", "saliency": "saliency", "occlusion": "occlusion"}
CALLS = {
    "cam": "class_activation_map(net, photo)",
    "guided": 'saliency(net, photo, relu="guided")',
    "deconvnet": 'saliency(net, photo, relu="deconvnet")',
}


def table() -> str:
    rows = ["| method | Python | command | shows | paper |", "|---|---|---|---|---|"]
    for name, method in METHODS.items():
        option = "" if name == DEFAULTS[method.kind] else f" --method {name.replace('_', '-')}"
        call = CALLS.get(name, f"{name}(net, photo)")
        rows.append(
            f"| {method.title} | `tvc.{call}` | `torchviz-cnn {COMMANDS[method.kind]} photo.jpg{option}` "
            f"| {method.shows} | {method.paper} |"
        )
    head = [
        "# All methods that explain a class",
        "",
        "Each takes a network, photos and a target (`target=`, `--target`), and gives a result that draws itself.",
        "This page is written by `make docs-table` from the table that library, command line and page read.",
        "",
    ]
    return "\n".join([*head, *rows]) + "\n"


if __name__ == "__main__":
    default = Path(__file__).parents[1] / "docs" / "methods.md"
    (Path(sys.argv[1]) if len(sys.argv) > 1 else default).write_text(table(), encoding="utf-8")
