"""Prepared directories in object stores: uploaded, and copied to this machine to be memory-mapped.

prepared.json is uploaded last and completes the directory. Until then the directory contains a file `uploading`, which
distinguishes an interrupted upload from unrelated files. Object stores have no locks: two machines may upload the same
directory at the same time, but both write the same bytes.
"""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jaxlm.data.origin import UPLOADING
from jaxlm.data.prepared import PREPARED, read_record
from jaxlm.errors import UserError
from jaxlm.runtime.progress import show
from jaxlm.storage import beside, lock, reason
from jaxlm.text.files import File, file_in, list_files, open_file, write_file
from jaxlm.text.remote import file_system, remote_errors

BLOCK_BYTES = 2**22
TRANSFERS = 4  # files that are copied at the same time


def begin_upload(url: str) -> None:
    """Marks the remote folder as being written; keeps its files, since another machine may be writing the same ones."""
    write_file(file_in(url, UPLOADING), [b"This folder is being written by `jaxlm prepare`.\n"])


def end_upload(url: str, names: Sequence[str] = ()) -> None:
    """Removes the mark once prepared.json is written; if `names` are given, removes all other files too."""
    system, root = file_system(url)
    with remote_errors(url, "write to"):
        for file in list_files(url)[1]:
            name = str(file).removeprefix(f"{url.rstrip('/')}/")
            if name == UPLOADING or (names and name not in names):
                with contextlib.suppress(FileNotFoundError):  # another machine removed it
                    system.rm_file(f"{root}/{name}")


def upload(directory: Path, url: str) -> None:
    """Copies a complete prepared directory to a remote folder. Raises UserError."""
    begin_upload(url)
    names = [file.relative_to(directory).as_posix() for file in directory.rglob("*") if file.is_file()]
    names.sort(key=lambda name: name == PREPARED)

    def send(name: str) -> None:
        write_file(file_in(url, name), _blocks(directory / name))

    with ThreadPoolExecutor(TRANSFERS) as pool:
        list(pool.map(send, names[:-1]))
    send(PREPARED)
    end_upload(url, names)


def local_copy(url: str, cache: Path, local: Path, check: Callable[[Path], object]) -> Path:
    """Returns a directory on this machine with the content of the prepared directory at `url`.

    It is `local`, which was prepared on this machine, if that has the same content; otherwise a copy in `cache`, named
    by its fingerprint and downloaded by one process. `check` raises UserError if a copy is damaged. Raises UserError if
    the directory cannot be downloaded or is damaged.
    """
    fingerprint = read_record(url)["fingerprint"]
    copy = cache / fingerprint
    for candidate in (local, copy):
        if (candidate / PREPARED).is_file() and read_record(candidate)["fingerprint"] == fingerprint:
            return candidate
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with lock(
            beside(copy, "lock"),
            waiting=f"waiting for another process that is copying {url}",
            remove=True,
        ):
            if copy.exists():  # copied by another process in the meantime
                return copy
            partial = beside(copy, "partial")
            shutil.rmtree(partial, ignore_errors=True)
            try:
                _download(url, partial)
                check(partial)
                partial.rename(copy)
            except UserError as error:
                raise UserError(f"{url} cannot be used: {str(error).replace(str(partial), url)}") from error
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot write the copy of {url} to {copy}: {reason(error)}") from error
    show(f"token store: copied {url} to {copy}")
    return copy


def _download(url: str, directory: Path) -> None:
    _, files = list_files(url)
    names = [str(file).removeprefix(f"{url.rstrip('/')}/") for file in files]

    def receive(name: str) -> None:
        with remote_errors(url, "read"):
            write_file(directory / name, _blocks(file_in(url, name)))

    with ThreadPoolExecutor(TRANSFERS) as pool:
        list(pool.map(receive, [name for name in names if name != UPLOADING]))


def _blocks(file: File) -> Iterator[bytes]:
    with open_file(file) as stream:
        while block := stream.read(BLOCK_BYTES):
            yield block
