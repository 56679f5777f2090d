"""Files on this machine and in object stores (`gs://`, `s3://`, any that fsspec knows), behind a few functions.

A local file is a `Path`; one that is named by a URL is a `RemoteFile`, which reads as a Path does.
"""

import contextlib
import glob
import os
import re
import secrets
import shutil
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from jaxlm.errors import UserError
from jaxlm.storage import reason

_PACKAGES = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3"}  # scheme -> extra of jaxlm
# What changes with the content, by what the file systems call it, the surest first.
_VERSIONS = ("ETag", "etag", "md5Hash", "crc32c", "mtime", "LastModified", "last_modified", "updated", "created")


@dataclass(frozen=True)
class RemoteFile:
    """A file of an object store."""

    url: str

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    def __str__(self) -> str:
        return self.url


File = Path | RemoteFile


def is_remote(path: str | os.PathLike) -> bool:
    """Returns whether a path is a URL, such as gs://bucket/folder."""
    return isinstance(path, str) and re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", path) is not None


def open_file(file: File) -> BinaryIO:
    """Opens a file for reading its bytes. Raises OSError for a local file, UserError for others."""
    if isinstance(file, Path):
        return open(file, "rb")
    system, path = file_system(file.url)
    with remote_errors(file.url, "read"):
        return system.open(path, "rb")


def file_version(file: File) -> list[Any]:
    """Returns what tells whether a file has changed without reading it: its size, and a time or a checksum."""
    if isinstance(file, Path):
        try:
            status = file.stat()
        except OSError as error:
            raise UserError(f"cannot read {file}: {reason(error)}") from error
        return [status.st_size, status.st_mtime_ns]
    system, path = file_system(file.url)
    with remote_errors(file.url, "read"):
        info = system.info(path)
    return [info["size"], str(next((info[key] for key in _VERSIONS if info.get(key)), ""))]


def list_files(path: str) -> tuple[str, list[File]]:
    """Returns "file", "folder" or "glob", and the file, all files below the folder, or those that match, by name.

    Hidden files and folders below a folder are left out. What is not there is a "file" without any.
    """
    if is_remote(path):
        return _list_remote(path)
    root = Path(path).expanduser()
    if root.is_file():
        return "file", [root]
    if root.is_dir():
        return "folder", [*sorted(_below(root), key=lambda file: file.relative_to(root).as_posix())]
    if glob.has_magic(path):
        return "glob", [Path(name) for name in sorted(glob.glob(str(root), recursive=True)) if os.path.isfile(name)]
    return "file", []


def _below(root: Path) -> Iterator[Path]:
    entered = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [] if real in entered else [name for name in folders if not name.startswith(".")]
        if real not in entered:
            files = (Path(folder, name) for name in names if not name.startswith("."))
            yield from (file for file in files if file.is_file())
        entered.add(real)


def _list_remote(url: str) -> tuple[str, list[File]]:
    system, root = file_system(url)
    with remote_errors(url, "read"):
        if system.isfile(root):
            return "file", [RemoteFile(url)]
        if system.isdir(root):
            kind, base, paths = "folder", url.rstrip("/"), system.find(root)
        elif glob.has_magic(root):
            kind, base = "glob", re.split("[*?[]", url)[0].rpartition("/")[0]
            paths = [path for path in system.glob(root) if system.isfile(path)]
        else:
            return "file", []
        start = len(file_system(base)[1].rstrip("/")) + 1
        hidden = re.compile(r"(^|/)\.")
        if kind == "folder" or not hidden.search(url[len(base) + 1 :]):
            paths = [path for path in paths if not hidden.search(path[start:])]
        return kind, [RemoteFile(f"{base}/{path[start:]}") for path in sorted(paths)]


def file_system(url: str) -> tuple[Any, str]:
    """Returns fsspec's file system of a URL and the path in it. Raises UserError where it is not known or installed."""
    import fsspec

    scheme = url.partition("://")[0]
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        extra = _PACKAGES.get(scheme.lower())
        how = f"pip install 'jaxlm[{extra}]'" if extra else str(error)
        raise UserError(f"{url}: the package that reads {scheme}:// is not installed: {how}") from error
    except ValueError as error:
        raise UserError(f"{url}: fsspec knows no {scheme}://; gs://, s3:// and file:// are usual") from error
    except Exception as error:  # of a file system's own kind, such as credentials that are not there
        raise UserError(f"{url} cannot be reached: {reason(error)}") from error


@contextlib.contextmanager
def remote_errors(url: str, what: str) -> Iterator[None]:
    """Turns every failure of a file system into a UserError: each has exceptions of its own."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{url}: cannot {what} it: {reason(error)}") from error


# Writing


Folder = Path | str  # the str is a URL


def file_in(folder: Folder, name: str) -> File:
    """Returns the file of that name in a folder."""
    return folder / name if isinstance(folder, Path) else RemoteFile(f"{folder.rstrip('/')}/{name}")


def read_file(file: File) -> bytes | None:
    """Returns the bytes of a file, None where it is not there. Raises UserError where it cannot be read."""
    if isinstance(file, RemoteFile):
        system, path = file_system(file.url)
        with remote_errors(file.url, "read"):
            return system.cat_file(path) if system.exists(path) else None
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"cannot read {file}: {reason(error)}") from error


def write_file(file: File, pieces: Iterable[bytes | memoryview]) -> tuple[int, int]:
    """Writes a file, which is there under its name only when it is whole; returns its size and CRC-32."""
    size = crc = 0
    with remote_errors(str(file), "write"), contextlib.ExitStack() as stack:
        if isinstance(file, Path):
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
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
    """Removes a folder and what is in it, if it is there."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
        return
    system, path = file_system(folder)
    with remote_errors(folder, "remove"):
        if system.exists(path):
            system.rm(path, recursive=True)
