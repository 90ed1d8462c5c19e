"""Atomic replacement of files: a partial file is never visible, and files left by killed writers are removed.

A new file is written next to its target, under a name that ends in a number, and then renamed.  Meanwhile the
writer holds a lock (flock) on it, which the system releases when the process ends in any way, so that an
unlocked file is a leftover.  Process ids would be less reliable: they are reused, and have no meaning on
another machine.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

if sys.platform != "win32":  # on Windows leftovers of killed writers are not removed
    import fcntl

_NUMBERS = 16  # of possible names next to a target that are checked for leftovers


def path_of(name: str, value: Any) -> Path:
    """The path in the argument ``name``, with '~' expanded; TypeError or ValueError if it is not a path."""
    if not isinstance(value, (str, bytes, os.PathLike)):
        raise TypeError(f"{name} must be a path, not {value!r}")
    path = os.fsdecode(value)
    if "\0" in path:
        raise ValueError(f"{name}={value!r} contains a null character, which a path cannot have")
    return Path(os.path.expanduser(path))


def check_regular(path: Path) -> None:
    """Raise OSError unless the path is a regular file: not a folder, pipe or device."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(mode):
        raise OSError(f"{path} is a pipe, socket or device: pass the path of a regular file")


def writable(path: Path) -> Path:
    """The target of all links, whether it exists or not; OSError if no file can be written there."""
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target.parent} is not an existing folder")
    with contextlib.suppress(FileNotFoundError):
        check_regular(path)
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{target.name} cannot be written: the folder {target.parent} is not writable")
    return target


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file to write to, which replaces ``path`` (the target of all links) when the block ends.

    It gets the permissions of the file that it replaces and, if permitted, its owner.  If the block fails,
    the old file is unchanged.
    """
    target = writable(path)
    remove_leftovers(target)
    try:
        before = target.stat()
    except FileNotFoundError:
        before = None
    try:
        # Until it has the permissions of the old file, nobody else may read the new one.
        beside, file = _new_file(target, 0o666 if before is None else 0o600)
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if before is not None:
                _take_after(beside, before)
            if sys.platform == "win32":
                file.close()  # Windows does not rename open files
            os.replace(beside, target)
        except BaseException:
            # After an interrupt that follows the renaming, the name may belong to another writer.
            if file.closed or _is_at(file, beside):
                beside.unlink(missing_ok=True)
            raise
        finally:
            with contextlib.suppress(OSError):  # flushing fails if the disk is full
                file.close()
        _sync_folder(target.parent)
    except OSError as error:
        if error.errno is not None:
            error.filename = os.fspath(target)  # the user does not know the temporary file
        raise


def remove_leftovers(target: Path) -> None:
    """Delete temporary files left by killed writers of this file."""
    for number in range(_NUMBERS):
        path = _beside(target, number)
        # A file that cannot be opened does not exist, or belongs to somebody else.
        with contextlib.suppress(OSError), open(path, "r+b") as file:
            if lock(file) and _is_at(file, path):
                path.unlink()


def _beside(target: Path, number: int) -> Path:
    # Truncated, because the name may have the maximum length: 60 characters are at most 240 bytes.
    return target.with_name(f".{target.name[:60]}.hpf_gpu-{number}")


def _new_file(target: Path, mode: int) -> tuple[Path, BinaryIO]:
    """A new file next to the target, locked if the file system has locks."""
    number = 0
    while True:
        path = _beside(target, number)
        try:
            file = open(path, "xb", opener=lambda name, flags: os.open(name, flags, mode))  # noqa: SIM115
        except FileExistsError:
            number += 1
            continue
        # Before it was locked, another writer may have removed it as a leftover.
        if lock(file) is not False and _is_at(file, path):
            return path, file
        file.close()


def lock(file: BinaryIO) -> bool | None:
    """Lock a file until it is closed: False if another process has locked it, None if there are no locks."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether an open file still has this name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _take_after(path: Path, before: os.stat_result) -> None:
    """Copy owner, group and permissions of the old file; group permissions only if the group is the same."""
    mode = stat.S_IMODE(before.st_mode)
    if hasattr(os, "chown"):
        with contextlib.suppress(OSError):
            os.chown(path, before.st_uid, -1)
        with contextlib.suppress(OSError):
            os.chown(path, -1, before.st_gid)
        if path.stat().st_gid != before.st_gid:
            mode &= ~stat.S_IRWXG | (mode & stat.S_IRWXO) << 3
    path.chmod(mode)


def _sync_folder(folder: Path) -> None:
    """Write the new name to disk, if the system supports it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
