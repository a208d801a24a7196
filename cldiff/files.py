"""Files that are there whole or not at all, that know when they are damaged, and locks."""

import fcntl
import hashlib
import io
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import EINVAL, ENOLCK, ENOSYS, EOPNOTSUPP
from functools import cache
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryFile

from filelock import AcquireReturnProxy, FileLock, SoftFileLock

from .errors import NO_MEMORY, Problem

ANSWER = 60  # seconds that a server may take for each piece of a download
NOT_OFFERED = (EINVAL, ENOLCK, ENOSYS, EOPNOTSUPP)  # how a file system says that it does not have what is asked for


class Damaged(ValueError):
    """A file whose content is not the one that was written."""


def make_folder(folder: Path) -> None:
    """Makes a folder that can be written to. Raises Problem where that cannot be had."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()  # os.access errs both ways where rights are lists, as in NFS 4
    except OSError as error:
        raise Problem(f"{folder} cannot be written to ({error.strerror}): expected a folder of your own") from None


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls write(temporary path), makes the file durable, and gives it its name: it is there whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{token_hex(8)}-{path.name}")  # not a process ID: two machines share it
    try:
        write(temporary)
        with open(temporary, "r+b") as file:
            try:
                os.fsync(file.fileno())
            except OSError as error:
                if error.errno not in NOT_OFFERED:  # else it was not written
                    raise
        os.replace(temporary, path)
        with suppress(OSError):  # its name is durable too, where folders can be asked for that
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def answered() -> Iterator[None]:
    """A server that says nothing ends the downloads of other libraries, which would wait for ever, with an OSError."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(ANSWER)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def file_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def is_whole(path: Path, sha256: str) -> bool:
    """Whether a file has this SHA-256, or is a table that has it but for its line ends, which git may have changed."""
    content = path.read_bytes()
    found = [content, content.replace(b"\r\n", b"\n")] if path.suffix == ".csv" else [content]
    return sha256 in [hashlib.sha256(text).hexdigest() for text in found]


def save_tensors(path: Path, state: object) -> None:
    """What torch.save takes, behind its SHA-256: torch does not notice a flipped bit."""
    import torch

    content = io.BytesIO()
    torch.save(state, content)
    content = content.getbuffer()
    write_atomically(path, lambda temporary: temporary.write_bytes(hashlib.sha256(content).digest() + content))


def load_tensors(path: Path, device: object = "cpu") -> object:
    """What save_tensors wrote; executes no code. Raises Damaged if the file is, Problem if it never was such a file."""
    if path.is_dir():
        raise Problem(f"{path} is a folder: expected a file, move the folder away")
    return tensors(path.read_bytes(), path, device)


def intact(content: bytes) -> bool:
    """Whether it is as save_tensors() writes it."""
    return hashlib.sha256(content[32:]).digest() == content[:32]


def tensors(content: bytes, path: Path, device: object = "cpu") -> object:
    """load_tensors() of what was read from this file."""
    import torch

    if not intact(content):
        raise Damaged(f"{path} is damaged")
    try:
        return torch.load(io.BytesIO(content[32:]), map_location=device, weights_only=True)
    except Exception as error:
        if isinstance(error, MemoryError) or NO_MEMORY.search(str(error)):
            raise Problem(f"out of memory, on reading {path}") from None
        raise foreign(path, error) from None


def foreign(path: Path, error: Exception) -> Problem:
    """For a file that is whole and yet not what belongs there: it is somebody's, and stays."""
    cause = f"{type(error).__name__}: {str(error).partition('. ')[0]}".splitlines()[0]
    return Problem(f"{path} is whole, and not what belongs there ({cause}): move it away, and run again")


def locked(path: Path, wait: float = -1) -> AcquireReturnProxy:
    """A lock that is held, until it is left (`with`), forgotten, or the process ends. Raises Timeout if another process
    holds it for so many seconds (-1: waits for ever)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if _has_locks(path.parent):
        lock = FileLock(path, timeout=wait)
    else:  # its first try only removes what a killed process left: there is time for another one
        lock = SoftFileLock(_stand_in(path), timeout=wait if wait < 0 else max(wait, 0.5))
    return lock.acquire()  # `with` acquires a lock itself once more: an error that Jupyter keeps would go on to hold it


@cache  # said once
def _has_locks(folder: Path) -> bool:
    with TemporaryFile(dir=folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in NOT_OFFERED:
                raise
            print(
                f"{folder}: no locks on this file system ({error.strerror}): files {_stand_in('*.lock')} stand in for "
                "them; one that a process left behind that was killed on another machine is to be deleted",
                file=sys.stderr,
            )
            return False
    return True


def _stand_in(path: Path | str) -> str:
    """Another name: a lock file that is only there holds nobody."""
    return f"{path}ed"


def claim(folder: Path, wait: bool = True) -> AcquireReturnProxy:
    """The lock of a run, to be held while it is trained, measured and saved; it ends with its process. Raises Timeout
    if another process holds it and wait is False, Problem if it is another user's."""
    path = folder.parent / "locks" / f"{folder.name}.lock"
    try:
        return locked(path, -1 if wait else 0)
    except PermissionError as error:
        raise Problem(
            f"{path} cannot be written to ({error.strerror}): expected a folder of results of your own"
        ) from None
