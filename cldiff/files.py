"""Files that are there whole or not at all, that know when they are damaged, and locks."""

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls write(temporary path), makes the file durable, and gives it its name: it is there whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)  # its name is durable too
        os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save_tensors(path: Path, state: object) -> None:
    """What torch.save takes, behind its SHA-256: torch does not notice a flipped bit."""
    import torch

    content = io.BytesIO()
    torch.save(state, content)
    content = content.getbuffer()
    write_atomically(path, lambda temporary: temporary.write_bytes(hashlib.sha256(content).digest() + content))


def load_tensors(path: Path, device: object = "cpu") -> object:
    """What save_tensors wrote; executes no code. Raises ValueError if the file is damaged."""
    import torch

    content = path.read_bytes()
    if hashlib.sha256(content[32:]).digest() != content[:32]:
        raise ValueError(f"{path} is damaged")
    return torch.load(io.BytesIO(content[32:]), map_location=device, weights_only=True)


def claim(folder: Path, wait: bool = True) -> FileLock:
    """The lock of a run, to be held while it is trained, measured and saved; it ends with its process. Raises Timeout
    if another process holds it and wait is False."""
    path = folder.parent / "locks" / f"{folder.name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=-1 if wait else 0)
    lock.acquire()
    return lock
