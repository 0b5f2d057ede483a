"""torchviz_cnn: see what a convolutional network sees.

Each function takes a `torch.nn.Module` or a `Network`, and a tensor or, with a Network, photos.

The public names are those of `torchviz_cnn.api`, which is imported when the first of them is used: neither `import
torchviz_cnn` nor the help of the command line waits for PyTorch.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:  # for type checkers, what `__getattr__` gives at run time
    from torchviz_cnn.api import *  # noqa: F403
    from torchviz_cnn.api import __all__ as __all__
    from torchviz_cnn.attribution.cam.formulas import *  # noqa: F403
else:

    def __getattr__(name: str) -> Any:
        asked = name == "__all__" or not name.startswith("__")  # Python itself asks for names such as `__wrapped__`
        if asked and "__all__" not in globals():
            api = importlib.import_module("torchviz_cnn.api")
            globals().update({public: getattr(api, public) for public in api.__all__}, __all__=api.__all__)
        if name not in globals():
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return globals()[name]

    def __dir__() -> list[str]:
        return sorted({*globals(), *__getattr__("__all__")})
