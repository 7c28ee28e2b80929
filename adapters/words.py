"""What the words of a prompt say about it, without the model: two bags of its last turn's tokens.

A small base knows the questions it was trained on by heart and tells new ones apart badly; the
words themselves do not have that weakness. The first bag sums learned vectors (Joulin et al. 2017,
arXiv 1607.01759), near for words of near meaning. The second keeps every token apart: signs hashed
from its number, times a learned weight, so that cosines are those of weighted bags of tokens up to
noise of 1/sqrt(512) (feature hashing, Weinberger et al. 2009, arXiv 0902.2206). Knows tokens only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, dropwhile, takewhile
from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import embedding_bag
from transformers import PreTrainedTokenizerBase

from adapters.config import AdapterError
from adapters.tensor_file import TensorFileError, read_tensor_file

SIGNS: Final = 512


class WordsError(AdapterError, ValueError):
    """A table of words cannot be used; the message says why."""


@dataclass(frozen=True, eq=False)
class Words:
    """Learned numbers of every token, on the CPU.

    ``vectors``: (V, W). ``weights``: (V,), what the token counts among others. ``control``: tokens
    that are no words; the last turn lies between the last two runs of them.
    """

    vectors: Tensor
    weights: Tensor
    control: frozenset[int]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the table as it is stored, in hexadecimal."""
        table = (self.vectors.half(), self.weights.half())
        return hashlib.sha256(b"".join(part.numpy().tobytes() for part in table)).hexdigest()

    @property
    def width(self) -> int:
        """Numbers in the two bags of a prompt together."""
        return self.vectors.shape[1] + SIGNS

    def bags(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """The sums (B, W) and (B, 512) over the tokens of each prompt's last turn."""
        turns = [self.last_turn(prompt) for prompt in prompts]
        used = sorted({token for turn in turns for token in turn})
        signs = torch.zeros(len(used), SIGNS)
        for row, token in enumerate(used):
            signs[row] = torch.from_numpy(token_signs(token)) * self.weights[token]
        places = {token: row for row, token in enumerate(used)}
        known = [[places[token] for token in turn] for turn in turns]
        return sum_bags(self.vectors, turns), sum_bags(signs, known)

    def last_turn(self, prompt: Sequence[int]) -> list[int]:
        """The tokens of what was said last: all of a prompt that has no control tokens."""
        backwards = dropwhile(self.control.__contains__, reversed(prompt))
        return list(takewhile(lambda token: token not in self.control, backwards))[::-1]


def sum_bags(table: Tensor, bags: Sequence[Sequence[int]]) -> Tensor:
    """(B, W) sums of the rows of ``table`` (N, W) whose numbers are in each of B bags."""
    flat = torch.tensor([row for bag in bags for row in bag], dtype=torch.long, device=table.device)
    starts = torch.tensor([0, *accumulate(map(len, bags[:-1]))], device=table.device)
    return embedding_bag(flat, table, starts, mode="sum")


@lru_cache(maxsize=65536)
def token_signs(token: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """(512,) of +-1/sqrt(512), the same for a token number everywhere and forever."""
    digest = hashlib.blake2b(token.to_bytes(4, "little"), digest_size=SIGNS // 8).digest()
    bits = np.unpackbits(np.frombuffer(digest, dtype=np.uint8)).astype(np.float32)
    return (2 * bits - 1) / np.float32(SIGNS) ** np.float32(0.5)


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The numbers of the tokens that text can never become."""
    return frozenset(id for id, token in tokenizer.added_tokens_decoder.items() if token.special)


def save_words(path: Path, words: Words) -> None:
    """Write the table in 16 bit."""
    table = {"vectors": words.vectors, "weights": words.weights}
    save_file({name: tensor.detach().half().contiguous() for name, tensor in table.items()}, path)


def load_words(path: Path, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> Words:
    """Read a table for a model of ``vocabulary`` tokens.

    Raises:
        WordsError: unreadable, broken, or made for another vocabulary; values not finite.
    """
    try:
        file = read_tensor_file(path.read_bytes())
        entry = file.entries.get("vectors", {"shape": ()})["shape"]
        width = entry[1] if len(entry) == 2 else 0
        file.check({"vectors": (vocabulary, width), "weights": (vocabulary,)}, ("F16",))
        tensors = file.tensors()
    except OSError as error:
        raise WordsError(f"cannot be read: {error}") from error
    except TensorFileError as error:
        raise WordsError(f"no usable table of words: {error}") from error
    return Words(tensors["vectors"], tensors["weights"], control_tokens(tokenizer))
