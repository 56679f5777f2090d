"""Functions that list, read and write files, whether they are on this machine or in an object store.

A local file is a `Path`, a file in an object store a `RemoteFile`; a folder is a `Path` or a URL.
"""

import contextlib
import glob
import os
import secrets
import shutil
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from jaxlm.errors import UserError
from jaxlm.storage import read_bytes, reason
from jaxlm.text.remote import RemoteFile, file_system, is_remote, list_remote, remote_errors, remote_version

File = Path | RemoteFile
Folder = Path | str  # a str is a URL


# Reading


def open_file(file: File) -> BinaryIO:
    """Opens a file for reading bytes. Raises OSError for a local file, UserError for a remote one."""
    if isinstance(file, Path):
        return open(file, "rb")
    system, path = file_system(file.url)
    with remote_errors(file.url, "read"):
        return system.open(path, "rb")


def read_file(file: File) -> bytes | None:
    """Returns the content of a file, or None if it does not exist. Raises UserError if it cannot be read."""
    if isinstance(file, RemoteFile):
        system, path = file_system(file.url)
        with remote_errors(file.url, "read"):
            return system.cat_file(path) if system.exists(path) else None
    return read_bytes(file) if file.exists() else None


def file_version(file: File) -> list[Any]:
    """Returns values that change when a file does: its size, and its modification time or a checksum.

    The file is not read. Raises UserError if it does not exist or is not accessible.
    """
    if isinstance(file, RemoteFile):
        return remote_version(file)
    try:
        status = file.stat()
    except OSError as error:
        raise UserError(f"cannot read {file}: {reason(error)}") from error
    return [status.st_size, status.st_mtime_ns]


def list_files(path: str) -> tuple[str, list[File]]:
    """Returns the kind of a path ("file", "folder" or "glob") and its files, sorted by name.

    The files of a folder are all files below it, except hidden ones and those in hidden folders. For a path that does
    not exist, returns ("file", []).
    """
    if is_remote(path):
        kind, remote_files = list_remote(path)
        return kind, [*remote_files]
    root = Path(path).expanduser()
    if root.is_file():
        return "file", [root]
    if root.is_dir():
        return "folder", [*sorted(_files_below(root), key=lambda file: file.relative_to(root).as_posix())]
    if glob.has_magic(path):
        return "glob", [Path(name) for name in sorted(glob.glob(str(root), recursive=True)) if os.path.isfile(name)]
    return "file", []


def _files_below(root: Path) -> Iterator[Path]:
    visited = set()  # symbolic links may form a cycle
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [] if real in visited else [name for name in folders if not name.startswith(".")]
        if real not in visited:
            files = (Path(folder, name) for name in names if not name.startswith("."))
            yield from (file for file in files if file.is_file())
        visited.add(real)


# Writing


def file_in(folder: Folder, name: str) -> File:
    """Returns the file `name` in a folder."""
    return folder / name if isinstance(folder, Path) else RemoteFile(f"{folder.rstrip('/')}/{name}")


def write_file(file: File, pieces: Iterable[bytes | memoryview]) -> tuple[int, int]:
    """Writes the concatenated pieces to a file, and returns its size in bytes and its CRC-32.

    The file appears under its name only when it is complete. Missing folders are created. Raises UserError.
    """
    size = crc = 0
    with remote_errors(str(file), "write"), contextlib.ExitStack() as stack:
        if isinstance(file, Path):
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_name(f".{file.name}.{secrets.token_hex(4)}")  # several workers may write the same file
            stream: Any = stack.enter_context(open(partial, "xb"))
        else:
            system, path = file_system(file.url)
            with contextlib.suppress(NotImplementedError):  # object stores have no folders
                system.makedirs(path.rpartition("/")[0], exist_ok=True)
            stream = stack.enter_context(system.open(path, "wb"))
        try:
            for piece in pieces:
                stream.write(piece)
                size += len(piece)
                crc = zlib.crc32(piece, crc)
            if isinstance(file, Path):
                stream.flush()
                os.fsync(stream.fileno())
                partial.rename(file)
        except BaseException:
            if isinstance(file, Path):
                partial.unlink(missing_ok=True)
            raise
    return size, crc


def remove_folder(folder: Folder) -> None:
    """Removes a folder and everything in it; does nothing if it does not exist."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
        return
    system, path = file_system(folder)
    with remote_errors(folder, "remove"):
        if system.exists(path):
            system.rm(path, recursive=True)
