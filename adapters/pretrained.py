"""What transformers keeps in a folder: loaded as it lies there, by no code from it.

Knows folders; knows nothing about what is done with what they hold.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from adapters.config import AdapterError, one_line


def from_folder(
    folder: Path, load: Any, what: str, refused: type[AdapterError], **arguments: Any
) -> Any:
    """What ``load``, a ``from_pretrained``, makes of ``folder``; ``what`` that is, for people.

    Raises:
        refused: it makes nothing of it.
    """
    try:
        # Said, not left out: transformers would ask whoever sits at the terminal.
        return load(str(folder), local_files_only=True, trust_remote_code=False, **arguments)
    # Broken folders surface as anything from KeyError to SafetensorError.
    except Exception as error:
        raise refused(
            f"{folder} cannot be loaded as {what}: {type(error).__name__}: {one_line(error, 400)}"
        ) from error


def check_vocabulary(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: int,
    refused: type[AdapterError],
) -> None:
    """Make sure that a model of ``vocabulary`` tokens knows every one that the tokenizer makes.

    Raises:
        refused: it does not.
    """
    if len(tokenizer) > vocabulary:
        raise refused(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens and the model {vocabulary}; they "
            "do not belong together"
        )
