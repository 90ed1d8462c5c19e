"""Files that are replaced as a whole: nobody sees half of one, and killed writers leave nothing that grows.

A new file is written beside its target, under a name that ends in a number, and then renamed.  The writer
holds a lock (flock) on it meanwhile, which ends with the process, however that ends: what is not locked was
left behind.  Process ids would say it less well: they are used again, and mean nothing on another machine.
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

if sys.platform != "win32":  # where what killed writers have left is never removed
    import fcntl

_NUMBERS = 16  # of files beside a target that are looked at for what was left behind


def path_of(name: str, given: Any) -> Path:
    """The path in the argument ``name``, '~' replaced; TypeError or ValueError if it is none."""
    if not isinstance(given, (str, bytes, os.PathLike)):
        raise TypeError(f"{name} must be a path, not {given!r}")
    path = os.fsdecode(given)
    if "\0" in path:
        raise ValueError(f"{name}={given!r} has a zero character in it, which no path can have")
    return Path(os.path.expanduser(path))


def check_regular(path: Path) -> None:
    """Raise OSError unless there is a file, and no folder, pipe or device."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(mode):
        raise OSError(
            f"{path} is a pipe, socket or device: files are read and replaced as a whole, name a regular one"
        )


def writable(path: Path) -> Path:
    """The file behind all links, there or not; OSError if no file can be written there."""
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target.parent} is not an existing folder")
    with contextlib.suppress(FileNotFoundError):
        check_regular(path)
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{target.parent} is a folder that {target.name} cannot be written into")
    return target


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file to write to, which takes the place of ``path``, behind all links, when the block ends.

    It has the permissions of the file that it replaces and, where that is permitted, its owner.  If the
    block fails, all is as it was.
    """
    target = writable(path)
    remove_leftovers(target)
    try:
        before = target.stat()
    except FileNotFoundError:
        before = None
    try:
        # Until it has the permissions of the old one, the new file is for nobody else to read.
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
            # An interrupt may come after the renaming, when the name can be another writer's.
            if file.closed or _is_at(file, beside):
                beside.unlink(missing_ok=True)
            raise
        finally:
            with contextlib.suppress(OSError):  # of what is still to be written when the disk is full
                file.close()
        _sync_folder(target.parent)
    except OSError as error:
        if error.errno is not None:
            error.filename = os.fspath(target)  # nobody knows the file beside it
        raise


def remove_leftovers(target: Path) -> None:
    """Delete what writers of this file left behind when they were killed."""
    for number in range(_NUMBERS):
        path = _beside(target, number)
        # What cannot be opened is not there, as a rule, or not ours.
        with contextlib.suppress(OSError), open(path, "r+b") as file:
            if _lock(file) and _is_at(file, path):
                path.unlink()


def _beside(target: Path, number: int) -> Path:
    # Cut, for a name may be as long as names can be: 60 characters are 240 bytes at most.
    return target.with_name(f".{target.name[:60]}.hpf_gpu-{number}")


def _new_file(target: Path, mode: int) -> tuple[Path, BinaryIO]:
    """A new file beside the target, locked where the file system has locks."""
    number = 0
    while True:
        path = _beside(target, number)
        try:
            file = open(path, "xb", opener=lambda name, flags: os.open(name, flags, mode))  # noqa: SIM115
        except FileExistsError:
            number += 1
            continue
        # Before it was locked, another writer could take it for left behind.
        if _lock(file) is not False and _is_at(file, path):
            return path, file
        file.close()


def _lock(file: BinaryIO) -> bool | None:
    """Lock a file until it is closed: False if another process has it, None where there are no locks."""
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
    """Owner, group and permissions of the file that was there; the group's only if it is the same group."""
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
    """Bring the new name to the disk, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
