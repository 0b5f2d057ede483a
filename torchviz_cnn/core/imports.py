"""Objects of other packages, by name: `package.module:attribute`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from torchviz_cnn.core.errors import TorchvizError, did_you_mean


def imported(name: str, error: type[TorchvizError]) -> Any:
    """What `package.module:attribute` names; raises an error of this type where there is no such thing."""
    module_name, _, attribute = name.partition(":")
    if module_name.endswith(".py"):
        dotted = ".".join(part for part in Path(module_name).with_suffix("").parts if part not in (".", "..", "/"))
        raise error(f"{name!r} names a file: a module is named with dots, as '{dotted}:{attribute}'")
    try:
        target: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as cause:
        raise error(f"no module {cause.name!r} to import for {name!r}") from cause
    except (Exception, SystemExit) as cause:  # a user's module may raise anything
        raise error(f"importing {module_name!r} failed: {type(cause).__name__}: {cause}") from cause
    for part in attribute.split("."):
        public = [known for known in dir(target) if not known.startswith("_")]
        if not hasattr(target, part):
            raise error(f"{module_name!r} has no {attribute!r}{did_you_mean(part, public)}")
        target = getattr(target, part)
    return target
