"""Files in object stores (`gs://`, `s3://`, and any other file system that fsspec supports)."""

import contextlib
import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jaxlm.errors import UserError
from jaxlm.storage import reason

_EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3"}  # scheme -> extra of the jaxlm package
# File systems use different names for what changes with a file's content. The most reliable come first.
_VERSION_KEYS = ("ETag", "etag", "md5Hash", "crc32c", "mtime", "LastModified", "last_modified", "updated", "created")


@dataclass(frozen=True)
class RemoteFile:
    """A file in an object store, named by its URL."""

    url: str

    @property
    def name(self) -> str:
        """The last component of the URL, as `Path.name`."""
        return self.url.rpartition("/")[2]

    def __str__(self) -> str:
        return self.url


def is_remote(path: str | os.PathLike) -> bool:
    """Returns whether a path is a URL, such as gs://bucket/folder."""
    return isinstance(path, str) and re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", path) is not None


def file_system(url: str) -> tuple[Any, str]:
    """Returns the fsspec file system of a URL, and the path within it.

    Raises UserError if the scheme is unknown, its package is not installed, or the file system cannot be reached.
    """
    import fsspec

    scheme = url.partition("://")[0]
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        extra = _EXTRAS.get(scheme.lower())
        remedy = f"run pip install 'jaxlm[{extra}]'" if extra else str(error)
        raise UserError(f"{url}: the package that reads {scheme}:// is not installed; {remedy}") from error
    except ValueError as error:
        raise UserError(
            f"{url}: fsspec does not support {scheme}://; use gs://, s3://, file:// or another scheme that it supports"
        ) from error
    except Exception as error:  # each file system raises its own exceptions, for example for missing credentials
        raise UserError(f"cannot reach {url}: {reason(error)}") from error


@contextlib.contextmanager
def remote_errors(url: str, action: str) -> Iterator[None]:
    """Turns any exception of a file system into a UserError, "cannot {action} {url}: ..."."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # each file system raises its own exceptions
        raise UserError(f"cannot {action} {url}: {reason(error)}") from error


def remote_version(file: RemoteFile) -> list[Any]:
    """Returns the size of a file, and a checksum or modification time, without reading it. Raises UserError."""
    system, path = file_system(file.url)
    with remote_errors(file.url, "read"):
        info = system.info(path)
    return [info["size"], str(next((info[key] for key in _VERSION_KEYS if info.get(key)), ""))]


def list_remote(url: str) -> tuple[str, list[RemoteFile]]:
    """Returns what `files.list_files` returns, for a URL."""
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
