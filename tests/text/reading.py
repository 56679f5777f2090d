"""What the tests of reading text share."""

from jaxlm.config import default_config
from jaxlm.text.filters import Tally
from jaxlm.text.sources import read_documents


def data_settings(**changes):
    """Returns the default `data` section with changes."""
    data = default_config().data
    data.workers = 1
    for name, value in changes.items():
        data[name] = value
    return data


def read(path, **changes):
    """Returns the documents of a path, and their tally."""
    tally = Tally()
    return list(read_documents(str(path), data_settings(**changes), tally)), tally


def write(path, content):
    """Writes a file of text or bytes with its folders, and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path
