"""Who takes part: for each task a table of contenders, to which a peer is added in five lines.

    @GRAD_CAM.peer("captum")
    def captum(setting: Setting) -> Run:
        from captum.attr import LayerGradCam

        cam = LayerGradCam(setting.model, setting.module)
        return lambda: cam.attribute(setting.x, target=setting.classes[0])

The function is called once for each case, and gives what is timed. A peer whose package is not installed is left out.
`same` says which tensors of ours and of the peer must be equal, where both define the same.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from timing import Run
from torch import Tensor

Kind = Literal["ours", "peer", "floor", "peak"]
"""`peer` is whoever does the same, a loop written by hand too; `floor` what none can do without, such as one forward
pass; `peak` what shows how fast the machine is."""
S = TypeVar("S")
Maker = Callable[[S], Run]
Same = Callable[[Any, Any], tuple[Tensor, Tensor]]
OURS, BY_HAND, FORWARD = "torchviz_cnn", "by hand", "forward pass"
PEERS = ("captum", "grad-cam", "torchcam", "torch-lucent", "torchlens", "torchvision", "quantus")
"""The packages of the peers, by the names under which they are installed."""


@dataclass(frozen=True)
class Contender:
    """One that takes part in a case."""

    name: str
    kind: Kind
    run: Run
    same: Same | None = None
    units: float = 1
    """How many of the case's units, such as images, a run does: times are by unit."""
    work: float | None = None
    """Floating-point operations of a unit."""


@dataclass(frozen=True)
class Case:
    """One line of a table."""

    section: str
    name: str
    contenders: Callable[[], Iterable[Contender]]
    """Makes the contenders, once the case's turn has come."""
    unit: str = "call"
    memory: bool = False
    """Whether peaks of memory are measured too."""
    large: bool = False
    """Whether a round takes so long that the first one, in which memory is measured, counts too."""
    rounds: int | None = None
    """Rounds at most, where the case needs fewer than the others."""
    place: tuple[str, float] | None = None
    """What grows in a series of cases, and how large it is here."""
    peak: Callable[[], int] | None = None
    """Measures a peak of memory in bytes, of a case that is about nothing else."""


class Task(Generic[S]):
    """Contenders that do the same, each as a function that takes the setting of a case and gives what is run."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, Kind, Maker[S], Same | None, Callable[[S], float]]] = []

    def add(
        self, name: str, kind: Kind, same: Same | None = None, units: Callable[[S], float] = lambda _: 1
    ) -> Callable[[Maker[S]], Maker[S]]:
        """Add the function that follows, as a contender of this name."""

        def added(make: Maker[S]) -> Maker[S]:
            self.rows.append((name, kind, make, same, units))
            return make

        return added

    def peer(
        self, package: str, same: Same | None = None, units: Callable[[S], float] = lambda _: 1
    ) -> Callable[[Maker[S]], Maker[S]]:
        """Add a peer, by the name of its package (and a word after a comma), or what one would write by hand."""
        return self.add(package, "peer", same, units)

    def contenders(self, setting: S) -> Iterator[Contender]:
        """All whose packages are installed."""
        for name, kind, make, same, units in self.rows:
            package = name.partition(",")[0]
            if kind != "peer" or package == BY_HAND or version(package):
                yield Contender(name, kind, make(setting), same, units(setting))


def version(package: str) -> str | None:
    """The version of a package, None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
