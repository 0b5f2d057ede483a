"""A folder of results that a killed run leaves whole: one manifest and safetensors files, each written atomically."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import OutputError
from torchviz_cnn.core.names import unwrap
from torchviz_cnn.runs import files
from torchviz_cnn.runs.locks import LOCK, OWNER, locked

FORMAT = 1
MANIFEST = "manifest.json"
STATE = "state"
"""The name of the file that has how far a pass over a dataset came."""
ANEW = "delete it, and the same run makes it anew"
"""What to do with a file that is broken."""
_PUT_BACK = "put it back from a copy, or compute the results again in another folder"


@dataclass(frozen=True, eq=False)
class ResultFolder:
    """Results of one run over one model: whose they are in `manifest.json`, the numbers in safetensors files.

    Every file is written under a temporary name and renamed, so a run that is killed at any moment leaves a folder
    that can be read, and gone on with. What is read back is data: JSON and safetensors, nothing is executed.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "results"
    >>> folder = ResultFolder.open(path, "example", {"model": "mine"})
    >>> folder.save("conv1", {"values": torch.ones(2)}).name
    'conv1.safetensors'
    >>> ResultFolder.open(path, "example", {"model": "mine"}).load("conv1")["values"]
    tensor([1., 1.])
    >>> ResultFolder.open(path, "example", {"model": "yours"})  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    OutputError: results holds results of another run: its model is 'mine', this one's is 'yours'; use another folder
    """

    path: Path
    manifest: dict[str, Any]
    """`kind`, `format`, `identity`, `versions` (of python, torch, torchviz_cnn) and `progress`."""

    @classmethod
    @contextlib.contextmanager
    def run(
        cls, path: str | Path, kind: str, identity: Mapping[str, Any], *, resume: bool = True
    ) -> Iterator[ResultFolder]:
        """Open a folder as `open` does, and let no other run have it for the length of the block.

        Raises OutputError as `open`, and where another process or thread has the folder.
        """
        cls._earlier(path, kind, identity, resume)  # what is refused is not touched
        path = checks.path("a folder of results", path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write results to {path}: {error.strerror or error}") from error
        with locked(path):
            yield cls.open(path, kind, identity, resume=resume)

    @classmethod
    def open(cls, path: str | Path, kind: str, identity: Mapping[str, Any], *, resume: bool = True) -> ResultFolder:
        """Make the folder, or go on with the one that is there, if it is of the same kind and identity.

        `identity` says whose results these are: the model's checksum, the data's, the settings. Raises OutputError for
        a folder of something else (with the first field that differs and both its values), for one that is not empty
        and no result folder, and with `resume=False` for any that has results. Nothing is ever overwritten.
        """
        folder = cls._earlier(path, kind, identity, resume)
        if folder is None:
            manifest = {"kind": kind, "format": FORMAT, "identity": _plain(identity), "versions": versions()}
            folder = cls(checks.path("a folder of results", path), {**manifest, "progress": {}})
            folder._write()
        return folder

    @classmethod
    def _earlier(cls, path: str | Path, kind: str, identity: Mapping[str, Any], resume: bool) -> ResultFolder | None:
        """The folder of the same run that is there, if one is. Raises OutputError as `open`."""
        path = checks.path("a folder of results", path)
        if os.path.lexists(path / MANIFEST):
            folder = cls.read(path, kind)
            folder._require(_plain(identity))
            if not resume:
                raise OutputError(f"{path} already holds these results; go on with them (resume) or use another folder")
            return folder
        cls._require_free(path)
        return None

    @classmethod
    def require_own(cls, path: str | Path, kind: str) -> None:
        """Raise OutputError for a folder that no run of this kind may take, whatever else it is of.

        For what is written before the identity of a run is known.
        """
        path = checks.path("a folder of results", path)
        if os.path.lexists(path / MANIFEST):
            cls.read(path, kind)
        else:
            cls._require_free(path)

    @staticmethod
    def _require_free(path: Path) -> None:
        """Raise OutputError for a folder with something in it, and for what is no folder."""
        if os.path.lexists(path) and not os.path.isdir(path):
            raise OutputError(f"cannot write results to {path}: it is a file, not a folder")
        try:
            strange = [name for name in sorted(os.listdir(path)) if not _left_behind(name)] if path.exists() else []
        except (OSError, ValueError) as error:
            raise OutputError(f"cannot write results to {path}: {error}") from error
        if any(name.endswith(".safetensors") for name in strange):
            raise OutputError(_without_manifest(path))
        if strange:
            raise OutputError(
                f"{path} is not empty and holds no {MANIFEST}: it has {strange[0]!r}; use a new or an empty folder"
            )

    @classmethod
    def read(cls, path: str | Path, kind: str) -> ResultFolder:
        """The folder that is there. Raises OutputError where there is none, or it is broken or of another kind."""
        path = checks.path("a folder of results", path)
        file = path / MANIFEST
        try:
            manifest = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            if any(path.glob("*.safetensors")):
                raise OutputError(_without_manifest(path)) from None
            missing = f"it has no {MANIFEST}" if path.exists() else "it does not exist"
            raise OutputError(f"{path} is not a folder of results: {missing}") from None
        except OSError as error:
            raise OutputError(f"cannot read {file}: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise OutputError(f"{file} is broken: {error}; {_PUT_BACK}") from error
        if not isinstance(manifest, dict) or not all(
            isinstance(manifest.get(part), dict) for part in ("identity", "progress")
        ):
            raise OutputError(f"{file} is not a manifest of results: it has no identity and progress")
        if manifest.get("kind") != kind:
            raise OutputError(f"{path} holds results of kind {manifest.get('kind')!r}, not {kind!r}")
        if manifest.get("format") != FORMAT:
            raise OutputError(
                f"{path} is written in format {manifest.get('format')!r}; this version reads format {FORMAT}"
            )
        return cls(path, manifest)

    def update(self, **progress: Any) -> None:
        """Note how far the run is: these fields of the manifest's `progress`, the others stay. Raises as `save`."""
        self.manifest["progress"].update(progress)
        self._still_mine()
        self._write()

    def abandon(self) -> None:
        """Remove the manifest of a run that failed before it had any results, so that another may take the folder."""
        if self.manifest["progress"]:
            return
        with contextlib.suppress(OSError):
            if {name for name in os.listdir(self.path) if not _left_behind(name)} == {MANIFEST}:
                (self.path / MANIFEST).unlink()

    def save(self, name: str, tensors: Mapping[str, Tensor], **metadata: str) -> Path:
        """Write named tensors to `NAME.safetensors`, over what was there: a reader finds the old file or the new.

        A folder that was deleted meanwhile is made anew. Raises OutputError where another run has taken it.
        """
        if not self._still_mine():
            self._write()
        whole = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
        return files.save_tensors(self.file(name), whole, metadata)

    def load(self, name: str) -> dict[str, Tensor]:
        """The tensors of `NAME.safetensors`. Raises OutputError, with the file's name, where there are none."""
        return self.load_with_metadata(name)[0]

    def load_with_metadata(self, name: str, remedy: str = ANEW) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The tensors of `NAME.safetensors` and the texts saved with them.

        Raises OutputError as `load` does, with the remedy for a file that is broken.
        """
        from safetensors import SafetensorError, safe_open

        file = self.file(name)
        if not file.is_file():
            raise OutputError(f"{self.path} has no {file.name}")
        try:
            with safe_open(file, framework="pt") as opened:
                names = list(opened.keys())
                return {key: opened.get_tensor(key) for key in names}, dict(opened.metadata() or {})
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise OutputError(f"{file} is broken: {error}; {remedy}") from error

    def without_result(self, result: str, done: str) -> OutputError:
        """What there is in place of a result, and what the same run makes of it.

        Args:
            result: the name of what a run writes in the end.
            done: how much is done, in words.
        """
        progress, file, kept = self.manifest["progress"], self.file(result).name, self.file(STATE).name
        if not progress.get("finished") and (self.has(STATE) or not progress):
            return OutputError(f"{self.path} is not finished, with {done} done; the same command goes on with it")
        if self.has(STATE):
            return OutputError(f"{self.path} has no {file} any more; the same command makes it anew from {kept}")
        missing = f"no {file} any more" if progress.get("finished") else f"neither {file} nor {kept} any more"
        return OutputError(f"{self.path} has {missing}; the same command computes all of it again")

    def has(self, name: str) -> bool:
        """Whether `NAME.safetensors` is there."""
        return self.file(name).is_file()

    def file(self, name: str) -> Path:
        """Where the tensors of a name are, or would be. Two names that differ give two files."""
        safe = files.safe_name(name)
        if safe != name:
            safe = f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        return self.path / f"{safe}.safetensors"

    def _still_mine(self) -> bool:
        """Whether the folder is there. Raises OutputError where another run has taken it."""
        there = os.path.lexists(self.path / MANIFEST)
        if there:
            ResultFolder.read(self.path, self.manifest["kind"])._require(self.manifest["identity"])
        return there

    def _require(self, identity: dict[str, Any]) -> None:
        different = difference(self.manifest["identity"], identity)
        if different is not None:
            field, saved, asked = different
            raise OutputError(
                f"{self.path} holds results of another run: "
                f"its {field} is {short(saved)}, this one's is {short(asked)}; use another folder"
            )

    def _write(self) -> None:
        text = json.dumps(self.manifest, indent=1, ensure_ascii=False) + "\n"
        files.write(self.path / MANIFEST, lambda file: file.write(text.encode()))

    def __repr__(self) -> str:
        return f"ResultFolder({str(self.path)!r}, {self.manifest['kind']}, {self.manifest['progress']})"


def model_checksum(model: nn.Module) -> str:
    """A sha256 over the names, dtypes, shapes and bytes of a model's parameters and buffers, in hexadecimal.

    The same on every device, and with or without wrappers (`DataParallel`, `torch.compile`).

    >>> model_checksum(nn.ReLU()) == model_checksum(nn.Tanh()) != model_checksum(nn.Linear(1, 1))
    True
    """
    model = unwrap(model)
    digest = hashlib.sha256()
    for name, tensor in sorted([*model.named_parameters(), *model.named_buffers()], key=lambda pair: pair[0]):
        name = ".".join(part for part in name.split(".") if part != "_orig_mod")
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        values = tensor.detach().cpu()
        values = values.to_dense() if values.layout is not torch.strided else values
        digest.update(values.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """The versions of python, torch and torchviz_cnn that run here."""
    try:
        own = metadata.version("torchviz-cnn")
    except metadata.PackageNotFoundError:
        own = "unknown"
    return {"python": platform.python_version(), "torch": str(torch.__version__), "torchviz_cnn": own}


def difference(saved: dict[str, Any], asked: dict[str, Any], above: str = "") -> tuple[str, Any, Any] | None:
    """The first field in which two identities differ, as a dotted name, with both values; None where they do not."""
    for field in dict.fromkeys([*asked, *saved]):
        a, b = saved.get(field), asked.get(field)
        if isinstance(a, dict) and isinstance(b, dict):
            inner = difference(a, b, f"{above}{field}.")
            if inner is not None:
                return inner
        elif a != b:
            return f"{above}{field}", a, b
    return None


def _plain(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity as it is when it is read back."""
    return json.loads(json.dumps(dict(identity)))  # type: ignore[no-any-return]


def _without_manifest(path: Path) -> str:
    """What is wrong with a folder that has results, and nothing that says of what run."""
    return f"{path} has results, and no {MANIFEST} that says of what run they are: {_PUT_BACK}"


def _left_behind(name: str) -> bool:
    """Whether a file is what a killed run may leave before its manifest is there, or the system's own."""
    names = (LOCK, OWNER, ".DS_Store", "shards.safetensors")
    return (name.startswith(".") and name.endswith(".part")) or name in names


def short(value: object) -> str:
    """A value of an identity in a message; None is one that the identity does not have.

    >>> short("relu3"), short(None)
    ("'relu3'", 'not given')
    """
    text = "not given" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:40]}...{text[-12:]}"
