"""The commands: a file each, with its `COMMAND`. A new command is a new file, and its name in `ORDER`."""

ORDER = (
    "demo",
    "layers",
    "predict",
    "activations",
    "filters",
    "cam",
    "saliency",
    "deconvnet",
    "occlusion",
    "top",
    "merge",
    "survey",
    "trust",
    "report",
)
"""In which the help lists them."""
