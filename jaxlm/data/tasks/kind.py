"""The interface of a kind of task: what the rows of its files mean."""

from collections.abc import Sequence
from typing import Any, Protocol

from jaxlm.data.examples import Examples
from jaxlm.data.text_encoder import TextEncoder
from jaxlm.text.files import File
from jaxlm.text.labelled import Row


class TaskKind(Protocol):
    """How the rows of a labelled file become examples. `task` is that section of the config."""

    def read(self, path: File, setting: str, config: Any, labelled: bool) -> list[Row]:
        """Returns the rows of a file, which `setting` names; `labelled` ones must have labels. Raises UserError."""
        ...

    def identity(self, row: Row, task: Any) -> str:
        """Returns the text by whose hash a training row is kept for selection."""
        ...

    def labels(self, rows: Sequence[Row], task: Any) -> tuple[str, ...]:
        """Returns the names of the outputs: task.labels, or those in the training rows. Raises UserError."""
        ...

    def encode(self, rows: Sequence[Row], labels: Sequence[str], encoder: TextEncoder, task: Any) -> Examples:
        """Returns the examples of rows. Raises UserError that names the row at fault."""
        ...
