"""Files that are replaced as a whole, whatever is at the path and whoever is killed."""

from __future__ import annotations

import errno
import os
import pathlib
import signal
import socket
import stat
import subprocess
import sys
import threading
import time

import pytest

from hpf_gpu.files.whole_file import path_of, remove_leftovers, replacing, writable

posix = pytest.mark.skipif(os.name != "posix", reason="links, pipes, permissions, locks: those of POSIX")


def write(path, text="new"):
    with replacing(path) as file:
        file.write(text.encode())


def names(folder):
    return sorted(os.listdir(folder))


# -- what is at the path -------------------------------------------------------------------------


def test_new_and_old_files(tmp_path):
    for text in ("one", "two"):
        write(tmp_path / "file", text)
        assert (tmp_path / "file").read_text() == text
        assert names(tmp_path) == ["file"]


@posix
def test_links_are_followed_and_stay(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("old")
    (tmp_path / "second").symlink_to("elsewhere/file")
    (tmp_path / "first").symlink_to(tmp_path / "second")
    write(tmp_path / "first")
    assert (tmp_path / "elsewhere" / "file").read_text() == "new"
    assert (tmp_path / "first").is_symlink()
    assert (tmp_path / "second").is_symlink()
    assert names(tmp_path) == ["elsewhere", "first", "second"]
    assert names(tmp_path / "elsewhere") == ["file"]


@posix
def test_links_to_nothing_make_what_they_name(tmp_path):
    (tmp_path / "link").symlink_to("file")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"
    (tmp_path / "far").symlink_to("nowhere/file")
    with pytest.raises(FileNotFoundError, match="nowhere is not an existing folder"):
        write(tmp_path / "far")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop") as caught:
        write(tmp_path / "loop")
    assert caught.value.errno == errno.ELOOP


@posix
@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "socket"])
def test_what_is_no_file_is_left_alone(kind, tmp_path, monkeypatch):
    path = tmp_path / "path"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/null")
    else:
        monkeypatch.chdir(tmp_path)  # names of sockets are short
        with socket.socket(socket.AF_UNIX) as one:
            one.bind("path")
    before = path.stat()
    message = "Is a directory: .*path" if kind == "folder" else "path is a pipe, socket or device"
    with pytest.raises(OSError, match=message):
        write(path)
    with pytest.raises(OSError, match=message):
        writable(path)
    assert path.stat().st_mode == before.st_mode
    assert path.stat().st_ino == before.st_ino
    assert names(tmp_path) == ["path"]


def test_folders_that_are_missing_or_files(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "nowhere" / "x", tmp_path / "file" / "x"):
        with pytest.raises(FileNotFoundError, match="is not an existing folder"):
            write(path)


@posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_folders_that_are_read_only(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match=r"cannot be written: the folder .* is not writable"):
        writable(tmp_path / "file")
    tmp_path.chmod(0o700)


# -- permissions -----------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o664, 0o755])
def test_permissions_stay(mode, tmp_path):
    path, seen = tmp_path / "file", []
    path.touch()
    path.chmod(mode)
    with replacing(path) as file:
        seen.append(stat.S_IMODE(os.fstat(file.fileno()).st_mode))
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert seen == [0o600]  # nobody else reads what is half written


@posix
def test_permissions_of_new_files(tmp_path):
    mask = os.umask(0o027)
    try:
        write(tmp_path / "file")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


@posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_owners_stay(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.touch()
    os.chown(path, 12345, 54321)
    path.chmod(0o640)
    write(path)
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 54321)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640

    def refuse(*_given):
        raise PermissionError

    monkeypatch.setattr(os, "chown", refuse)
    write(path)
    # What the old group could read is not for the new one.
    assert path.stat().st_gid != 54321
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


# -- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize("letter", ["x", "\N{GRINNING FACE}"])
def test_the_longest_names(letter, tmp_path):
    size = 255 // len(letter.encode())
    try:
        (tmp_path / (letter * size)).touch()
    except OSError as error:
        pytest.skip(f"this file system has no such names: {error}")
    write(tmp_path / (letter * size))
    assert (tmp_path / (letter * size)).read_text() == "new"
    assert names(tmp_path) == [letter * size]
    with pytest.raises(OSError, match="name too long") as caught:
        write(tmp_path / (letter * (size + 1)))
    assert caught.value.errno == errno.ENAMETOOLONG
    assert names(tmp_path) == [letter * size]


def test_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert path_of("path", "~/file") == tmp_path / "file"
    assert path_of("path", pathlib.PurePath("~/file")) == tmp_path / "file"
    assert path_of("path", b"file") == pathlib.Path("file")
    assert path_of("path", "~nobody-has-this-name/file") == pathlib.Path("~nobody-has-this-name/file")
    for wrong in (5, None, True, ["file"], object):
        with pytest.raises(TypeError, match="checkpoint must be a path, not "):
            path_of("checkpoint", wrong)
    for wrong in ("a\0b", b"a\0b"):
        with pytest.raises(ValueError, match=r"path=.* contains a null character"):
            path_of("path", wrong)


@posix
@pytest.mark.skipif(sys.platform == "darwin", reason="names are Unicode on this system")
def test_names_that_are_no_unicode(tmp_path):
    path = path_of("path", os.fsencode(tmp_path) + b"/\xff\xfe")
    write(path)
    assert os.listdir(os.fsencode(tmp_path)) == [b"\xff\xfe"]


# -- failures ----------------------------------------------------------------------------------


class Killed(BaseException):
    pass


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("error", [Killed(), OSError(errno.ENOSPC, "No space left on device")], ids=repr)
def test_a_failure_leaves_all_as_it_was(function, error, tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(*_given):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail)
        with pytest.raises(type(error)) as caught:
            write(path)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]
    if isinstance(error, OSError):
        assert caught.value.filename == str(path)
    with pytest.raises(ZeroDivisionError), replacing(path):
        raise ZeroDivisionError
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no device that is always full")
def test_a_full_disk(tmp_path, monkeypatch):
    """What is buffered fails once more when the file is closed."""
    original = os.open
    monkeypatch.setattr(os, "open", lambda name, *given: original("/dev/full", os.O_WRONLY))
    monkeypatch.setattr("hpf_gpu.files.whole_file._is_at", lambda *_given: True)
    with pytest.raises(OSError, match=r"No space left on device: .*file'"):
        write(tmp_path / "file")


@posix
def test_the_new_name_is_on_the_disk(tmp_path, monkeypatch):
    done, sync, rename = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(stat.S_ISDIR(os.fstat(fd).st_mode)), sync(fd)))
    monkeypatch.setattr(os, "replace", lambda *given: (done.append("renamed"), rename(*given)))
    write(tmp_path / "file")
    assert done == [False, "renamed", True]


# -- writers that are killed, and others -----------------------------------------------------------

WRITER = """
import sys, time
from pathlib import Path
from hpf_gpu.files.whole_file import replacing
with replacing(Path({path!r})) as file:
    file.write(b"x" * 100_000)
    file.flush()
    print("writing", flush=True)
    sys.stdin.readline()
"""


def writer(path):
    """A process that has written half of a file, and ends it when it is told."""
    code = WRITER.format(path=str(path))
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "writing\n"
    return process


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.communicate()


def finish(process):
    process.communicate("\n")
    assert process.returncode == 0


@posix
def test_killed_writers_leave_nothing_that_grows(tmp_path):
    path = tmp_path / "file"
    for _ in range(4):
        kill(writer(path))
        assert len(names(tmp_path)) == 1
    (tmp_path / ".file.hpf_gpu-x").touch()  # of somebody else
    (tmp_path / ".other.hpf_gpu-0").touch()
    write(path)
    assert names(tmp_path) == [".file.hpf_gpu-x", ".other.hpf_gpu-0", "file"]


@posix
def test_live_writers_lose_nothing(tmp_path):
    """Several at once, some of them killed: each write is whole, and the last one stays."""
    path = tmp_path / "file"
    writers = [writer(path) for _ in range(4)]
    assert len(names(tmp_path)) == 4
    for killed in writers[1:3]:
        kill(killed)
    assert len(names(tmp_path)) == 4
    remove_leftovers(path)
    assert names(tmp_path) == [".file.hpf_gpu-0", ".file.hpf_gpu-3"]
    write(path)
    assert path.read_text() == "new"
    for left in (writers[3], writers[0]):
        write(path)
        finish(left)
        assert path.read_text() == "x" * 100_000
    assert names(tmp_path) == ["file"]


@posix
def test_many_writers_at_once(tmp_path):
    """Threads: a lock belongs to an open file, not to a process."""
    path, wrong, end = tmp_path / "file", [], time.monotonic() + 1.0

    def again_and_again(letter):
        try:
            while time.monotonic() < end:
                write(path, letter * 10_000)
                text = path.read_text()
                assert len(text) == 10_000
                assert len(set(text)) == 1
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=again_and_again, args=[letter]) for letter in "abcdef"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert names(tmp_path) == ["file"]


@posix
def test_a_child_does_not_keep_what_its_parent_leaves(tmp_path):
    """Forked in the middle of a write, it shares the lock; what others write is not held up."""
    path = tmp_path / "file"
    with replacing(path) as file:
        file.write(b"old")
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
    try:
        write(path)
        assert path.read_text() == "new"
        assert names(tmp_path) == ["file"]
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@posix
def test_where_there_are_no_locks(tmp_path, monkeypatch):
    """Writes are whole as ever; what was left behind stays, for nobody knows that it was."""

    def none(*_given):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", none)
    (tmp_path / ".file.hpf_gpu-0").touch()
    write(tmp_path / "file")
    assert names(tmp_path) == [".file.hpf_gpu-0", "file"]
