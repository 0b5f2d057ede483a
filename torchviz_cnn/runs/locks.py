"""A folder that one run has to itself: a lock of the operating system, which a killed process leaves open."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from torchviz_cnn.core.errors import OutputError, TorchvizWarning
from torchviz_cnn.core.warn import warn
from torchviz_cnn.runs import files

LOCK, OWNER = ".lock", ".lock.json"
"""The file that is locked, which stays, and the one that says by whom, which does not."""
WAIT = 10.0
"""Seconds to wait for another run: the workers of one that was killed may live on for five."""
UNTOLD = 2.0
"""Seconds after which it is told that another run is waited for."""
_WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_log = logging.getLogger("torchviz_cnn")


@contextlib.contextmanager
def locked(folder: Path, wait: float | None = None) -> Iterator[None]:
    """Let nobody else have an existing folder for the length of the block, neither another process nor another thread.

    A folder that this thread has already is had twice. Where the file system knows no locks, that is logged. Raises
    OutputError where another has the folder for longer than `wait` seconds (WAIT), and where it cannot be written.
    That another is waited for is told in a warning.
    """
    lock, wait = FileLock(folder / LOCK, is_singleton=True), WAIT if wait is None else wait
    try:
        _acquire(lock, folder, wait)
    except Timeout:
        raise OutputError(f"{folder} is in use by {_owner(folder)}: wait for that run, or use another folder") from None
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise OutputError(f"cannot write {folder / LOCK}: {error.strerror or error}") from error
        _log.info("%s is not locked against other runs: %s", folder, error)
        yield
        return
    try:
        about = {"process": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        files.write(folder / OWNER, lambda file: file.write(json.dumps(about).encode()))
        yield
    finally:
        if lock.lock_counter == 1:
            with contextlib.suppress(OSError):
                (folder / OWNER).unlink()
        lock.release()


def _acquire(lock: FileLock, folder: Path, wait: float) -> None:
    """Get a lock within so many seconds, and tell of a wait that is noticed. Raises Timeout."""
    try:
        lock.acquire(timeout=min(wait, UNTOLD), poll_interval=0.05)
    except Timeout:
        if wait <= UNTOLD:
            raise
        more = f"it is waited for, up to {wait - UNTOLD:.3g} s more"
        warn(f"{folder} is in use by {_owner(folder)}: {more}", TorchvizWarning)
        lock.acquire(timeout=wait - UNTOLD, poll_interval=0.05)


def _owner(folder: Path) -> str:
    """Who has a folder, in words."""
    try:
        about = json.loads((folder / OWNER).read_text(encoding="utf-8"))
        return f"process {int(about['process'])} on {about['host']}, since {about['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it is just written or removed
        return "another process"
