"""Byte ranges of files, wherever fsspec reaches them: many at once, and again where a server does not answer."""

from __future__ import annotations

import asyncio
import os
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar

from torchviz_cnn.core.errors import InputError, ShardError, TorchvizWarning, counted, kind_of, one_line
from torchviz_cnn.core.warn import warn
from torchviz_cnn.media.datasets.shards.patterns import name_meant, range_meant

T = TypeVar("T")
FIRST_WAIT = 0.5
"""Seconds before a request is made again; each time twice as many."""
UNTOLD = 1.0
"""Seconds that a request may take, with all waits, until it is told that it is made again."""
_AT_ONCE = 16
"""How many requests of one process wait for their answers together."""
_AGAIN = (408, 429)
"""Answers of HTTP that mean later, of those that mean no."""


class Range(NamedTuple):
    """Bytes of a file, from one place to before another."""

    path: str
    start: int
    stop: int


class Files:
    """Files of one file system of fsspec. It may be copied to another process: each has a connection of its own.

    Args:
        paths: of the files, or their addresses.
        filesystem: one of fsspec's; by default that of the addresses, made with `storage_options`.
        timeout: seconds that a request may take.
        retries: how many times a request is made again that failed.
    """

    def __init__(
        self,
        paths: Sequence[str],
        filesystem: Any = None,
        storage_options: Mapping[str, Any] | None = None,
        timeout: float = 60.0,
        retries: int = 5,
    ) -> None:
        self.timeout, self.retries = timeout, retries
        self._system = filesystem if filesystem is not None else _system_of(paths[0], storage_options or {})
        self._owner = os.getpid()
        self._inherited: list[Any] = []
        if not (hasattr(self._system, "_strip_protocol") and hasattr(self._system, "cat_file")):
            raise InputError(
                f"filesystem is one of fsspec, as fsspec.filesystem('s3') makes it, not {kind_of(filesystem)}"
            )
        strip: Callable[[str], str] = self._system._strip_protocol
        self.paths = [strip(path) for path in paths]

    @property
    def local(self) -> bool:
        """Whether they are files of this system, for which nothing is gained by asking for several at once."""
        protocols = self._system.protocol
        return bool({"file", "local", "memory"} & set([protocols] if isinstance(protocols, str) else protocols))

    def about(self) -> list[dict[str, Any]]:
        """What the file system says of each file, among which `size`. Raises ShardError where one is not there."""
        ask = [partial(self._call, "info", path) for path in self.paths]
        answers = self._answers(ask, self.paths, lambda _, answer: None)
        for path, answer in zip(self.paths, answers, strict=True):
            if answer.get("size") is None:
                raise ShardError(f"{path}: its server does not say how large it is, so that no part can be asked for")
            if answer.get("partial") is False:
                raise ShardError(_NO_RANGES.format(path))
        return answers

    def read(self, ranges: Sequence[Range]) -> list[bytes]:
        """The bytes of each range, at least one. Raises ShardError where they cannot be had."""
        ask = [partial(self._call, "cat_file", one.path, start=one.start, end=one.stop) for one in ranges]

        def wrong(place: int, answer: bytes) -> str | None:
            one = ranges[place]
            if len(answer) > one.stop - one.start:
                raise ShardError(_NO_RANGES.format(one.path))
            short = len(answer) < one.stop - one.start
            return f"{len(answer):,} of {one.stop - one.start:,} bytes came" if short else None

        return self._answers(ask, [one.path for one in ranges], wrong)

    def _answers(
        self, ask: Sequence[Callable[[], Any]], paths: Sequence[str], wrong: Callable[[int, Any], str | None]
    ) -> list[Any]:
        """The answer to each question, which is asked again while it is an error or `wrong`."""
        answers, reasons = dict[int, Any](), dict[int, str]()
        waits = [FIRST_WAIT * 2**attempt for attempt in range(self.retries)]
        began, told = time.monotonic(), False
        for attempt in range(self.retries + 1):
            open_ones = [place for place in range(len(ask)) if place not in answers]
            for place, answer in zip(open_ones, self._together([ask[place] for place in open_ones]), strict=True):
                if isinstance(answer, Exception):
                    reason: str | None = _trouble(paths[place], answer, self.local)
                else:
                    reason = wrong(place, answer)
                if reason is None:
                    answers[place] = answer
                else:
                    reasons[place] = reason
            if len(answers) == len(ask):
                return [answers[place] for place in range(len(ask))]
            if attempt < self.retries:
                if not told and time.monotonic() - began + waits[attempt] > UNTOLD:
                    place, told = next(place for place in range(len(ask)) if place not in answers), True
                    more, seconds = counted(self.retries - attempt, "more time"), sum(waits[attempt:])
                    warn(
                        f"{paths[place]} cannot be read ({reasons[place]}): its server is asked {more}, with waits of "
                        f"{seconds:.3g} s in all",
                        TorchvizWarning,
                    )
                time.sleep(waits[attempt])
        place = next(place for place in range(len(ask)) if place not in answers)
        raise ShardError(
            f"{paths[place]} cannot be read ({reasons[place]}; asked {counted(self.retries + 1, 'time')}); "
            "try again when its server answers: a run that saved its state then goes on from there"
        )

    def _together(self, ask: Sequence[Callable[[], Any]]) -> list[Any]:
        """The answers, or the errors, to questions that are asked at once."""
        system = self._in_this_process()
        if system.async_impl:
            from fsspec.asyn import sync

            answered: list[Any] = sync(system.loop, _gathered, ask, self.timeout)
            return answered
        if self.local or len(ask) == 1:
            return [_tried(one) for one in ask]
        with ThreadPoolExecutor(min(_AT_ONCE, len(ask))) as threads:
            return list(threads.map(_tried, ask))

    def _call(self, name: str, *args: Any, **options: Any) -> Any:
        """What a method of the file system gives; of one that is asynchronous something to await."""
        system = self._in_this_process()
        return getattr(system, f"_{name}" if system.async_impl else name)(*args, **options)

    def _in_this_process(self) -> Any:
        """The file system; in a copy of the process that made it one of its own, as connections cannot be shared."""
        if self._owner != os.getpid():
            self._inherited.append(self._system)  # were it deleted, it would close the connections of its owner
            self._system, self._owner = pickle.loads(pickle.dumps(self._system)), os.getpid()
        return self._system

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_inherited": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _owner=os.getpid())


_NO_RANGES = "the server of {} gives whole files only: shards are read in parts, for which it must support HTTP ranges"


def _system_of(path: str, options: Mapping[str, Any]) -> Any:
    """The file system that an address names."""
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(path, **options)[0]
    except ImportError as error:
        http = path.startswith(("http://", "https://"))
        install = "pip install 'torchviz-cnn[remote]'" if http else "pip install what it names"
        raise InputError(f"{path} cannot be read: {install} ({one_line(error)})") from error
    except ValueError as error:  # as of a protocol that nobody knows
        raise InputError(f"{path} cannot be read: {one_line(error)}") from error


async def _gathered(ask: Sequence[Callable[[], Any]], timeout: float) -> list[Any]:
    """The answers to all questions, with an error in the place of one that fails or takes too long."""
    gate = asyncio.Semaphore(_AT_ONCE)

    async def answered(one: Callable[[], Any]) -> Any:
        async with gate:
            try:
                return await asyncio.wait_for(one(), timeout)
            except TimeoutError:
                return TimeoutError(f"no answer within {timeout:g} s")
            except Exception as error:  # whatever a file system's own code raises; `_trouble` says what it means
                return error

    return await asyncio.gather(*map(answered, ask))


def _tried(one: Callable[[], T]) -> T | Exception:
    try:
        return one()
    except Exception as error:  # whatever a file system's own code raises; `_trouble` says what it means
        return error


def _trouble(path: str, error: Exception, local: bool) -> str:
    """What an error says that may pass. Raises ShardError for one that will not, and MemoryError as it is."""
    if isinstance(error, (MemoryError, NotImplementedError, TypeError)):
        raise error
    cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ is not None else error
    status = getattr(cause, "status", None)
    refused = isinstance(status, int) and 400 <= status < 500 and status not in _AGAIN
    gone = isinstance(cause, (FileNotFoundError, IsADirectoryError, NotADirectoryError))
    if gone or (refused and status in (404, 410)):
        if local and os.path.isdir(path):
            tars = os.path.join(path, "*.tar")
            raise ShardError(f"{path} is a folder, not a tar file: the tar files in it are {tars}") from error
        raise ShardError(f"there is no shard {path}{name_meant(path) if local else range_meant(path)}") from error
    if refused or isinstance(cause, PermissionError):
        raise ShardError(f"the shard {path} may not be read: {_said(cause)}") from error
    return _said(cause)


def _said(error: BaseException) -> str:
    return one_line(error) or type(error).__name__
