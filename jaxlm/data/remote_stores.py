"""A prepared directory in an object store: written there, and copied from there to be memory-mapped.

`prepared.json` is written last and makes it whole. A file `uploading` is there until then, so that what a killed
process has left is told from other files. Object stores have no locks: who prepares the same at once writes the same.
"""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jaxlm.data.locks import locked
from jaxlm.data.origin import UPLOADING
from jaxlm.data.prepared import PREPARED, read_record
from jaxlm.errors import UserError
from jaxlm.text.files import File, file_in, list_files, open_file, write_file
from jaxlm.text.remote import file_system, remote_errors

BLOCK_BYTES = 2**22
TRANSFERS = 4  # files at once


def begin_upload(url: str) -> None:
    """Marks the folder as one that is being written. What is there stays: another may be doing the same."""
    write_file(file_in(url, UPLOADING), [b"This folder is being written by `jaxlm prepare`.\n"])


def end_upload(url: str, names: Sequence[str] = ()) -> None:
    """Takes the mark away, `prepared.json` being there; and all files but `names`, where they are given."""
    system, root = file_system(url)
    with remote_errors(url, "write to"):
        for file in list_files(url)[1]:
            name = str(file).removeprefix(f"{url.rstrip('/')}/")
            if name == UPLOADING or (names and name not in names):
                with contextlib.suppress(FileNotFoundError):  # another's who did the same
                    system.rm_file(f"{root}/{name}")


def upload(directory: Path, url: str) -> None:
    """Copies a whole prepared directory to a folder of an object store. Raises UserError."""
    begin_upload(url)
    names = [file.relative_to(directory).as_posix() for file in directory.rglob("*") if file.is_file()]
    names.sort(key=lambda name: name == PREPARED)

    def send(name: str) -> None:
        write_file(file_in(url, name), _blocks(directory / name))

    with ThreadPoolExecutor(TRANSFERS) as pool:
        list(pool.map(send, names[:-1]))
    send(PREPARED)
    end_upload(url, names)


def local_copy(url: str, cache: Path, made_here: Path, check: Callable[[Path], object]) -> Path:
    """Returns a directory on this machine with the content of the prepared directory at `url`.

    It is `made_here` where that has the same content, else a copy in the folder `cache` by the name of the content,
    fetched once by one process. `check` raises UserError where a copy is damaged.
    """
    fingerprint = read_record(url)["fingerprint"]
    copy = cache / fingerprint
    for known in (made_here, copy):
        if (known / PREPARED).is_file() and read_record(known)["fingerprint"] == fingerprint:
            return known
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with locked(copy):
            if copy.exists():  # fetched by another process in the meantime
                return copy
            partial = copy.with_name(f".{copy.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            try:
                _fetch(url, partial)
                check(partial)
                partial.rename(copy)
            except UserError as error:
                said = str(error).replace(str(partial), url)
                raise UserError(f"{url} cannot be used: {said}") from error
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot write the copy of {url} to {copy}: {error.strerror or error}") from error
    print(f"token store: copied {url} to {copy}")
    return copy


def _fetch(url: str, directory: Path) -> None:
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
