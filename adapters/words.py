"""What the words of a prompt say about it, without the model: two bags of its last turn's words.

A small base knows the questions it was trained on by heart and tells new ones apart badly; the
words themselves do not have that weakness. The first bag sums learned vectors of words and pieces
of words (Bojanowski et al. 2017, arXiv 1607.04606), near for words of near meaning. The second
keeps them apart: signs hashed from a bucket's number, times a weight, so that cosines are those of
weighted bags up to noise of 1/sqrt(512) (feature hashing, Weinberger et al. 2009, arXiv
0902.2206). Knows tokens and their texts only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import embedding_bag
from transformers import PreTrainedTokenizerBase

from adapters.chat import last_turn
from adapters.config import AdapterError
from adapters.spelling import BUCKETS, buckets_of
from adapters.tensor_file import TensorFileError, in_eight_bits, read_tensor_file

SIGNS: Final = 512


class WordsError(AdapterError, ValueError):
    """A table of words cannot be used; the message says why."""


@dataclass(frozen=True, eq=False)
class Words:
    """Learned numbers of every bucket of ``spelling``, on the CPU, as they are stored.

    ``vectors``: (N, W) in int8, ``factors``: (N,) that make numbers of them. ``weights``: (N,),
    what a bucket counts among others. ``tokenizer`` makes texts of tokens.
    """

    vectors: Tensor
    factors: Tensor
    weights: Tensor
    tokenizer: PreTrainedTokenizerBase

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the table as it is stored, in hexadecimal."""
        table = (self.vectors, self.factors, self.weights)
        return hashlib.sha256(b"".join(part.numpy().tobytes() for part in table)).hexdigest()

    @cached_property
    def table(self) -> Tensor:
        """The vectors in float32, (N, W)."""
        return self.vectors * self.factors.unsqueeze(1)

    @property
    def width(self) -> int:
        """Numbers in the two bags of a prompt together."""
        return self.vectors.shape[1] + SIGNS

    def bags(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """The sums (B, W) and (B, 512) over the buckets of each prompt's last turn."""
        spelled = [buckets_of(last_turn(self.tokenizer, prompt)) for prompt in prompts]
        used = sorted({bucket for buckets in spelled for bucket in buckets})
        apart = np.array([signs_of(bucket) for bucket in used], np.float32).reshape(-1, SIGNS)
        signs = torch.from_numpy(apart) * self.weights[used].unsqueeze(1)
        places = {bucket: row for row, bucket in enumerate(used)}
        known = [[places[bucket] for bucket in buckets] for buckets in spelled]
        return sum_bags(self.table, spelled), sum_bags(signs, known)


def sum_bags(table: Tensor, bags: Sequence[Sequence[int]]) -> Tensor:
    """(B, W) sums of the rows of ``table`` (N, W) whose numbers are in each of B bags."""
    flat = torch.tensor([row for bag in bags for row in bag], dtype=torch.long, device=table.device)
    starts = torch.tensor([0, *accumulate(map(len, bags[:-1]))], device=table.device)
    return embedding_bag(flat, table, starts, mode="sum")


@lru_cache(maxsize=BUCKETS)
def signs_of(bucket: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """(512,) of +-1/sqrt(512), the same for a bucket's number everywhere and forever."""
    digest = hashlib.blake2b(bucket.to_bytes(4, "little"), digest_size=SIGNS // 8).digest()
    bits = np.unpackbits(np.frombuffer(digest, dtype=np.uint8)).astype(np.float32)
    return (2 * bits - 1) / np.float32(SIGNS) ** np.float32(0.5)


def make_words(vectors: Tensor, weights: Tensor, tokenizer: PreTrainedTokenizerBase) -> Words:
    """A table of these vectors (N, W), rounded to what is stored, and weights (N,)."""
    small, factors = in_eight_bits(vectors.detach())
    return Words(small, factors, weights.detach(), tokenizer)


def save_words(path: Path, words: Words) -> None:
    """Write the table."""
    table = {"vectors": words.vectors, "factors": words.factors, "weights": words.weights}
    save_file({name: tensor.contiguous() for name, tensor in table.items()}, path)


def load_words(path: Path, tokenizer: PreTrainedTokenizerBase) -> Words:
    """Read a table for a model with this tokenizer.

    Raises:
        WordsError: unreadable, broken, or of the kind that was made before words had pieces;
            values not finite.
    """
    try:
        file = read_tensor_file(path.read_bytes())
        entry = file.entries.get("vectors", {"shape": (), "dtype": ""})
        if entry["dtype"] == "F16":
            raise WordsError(
                "it has vectors of tokens, as versions before this one made, and this one compares "
                "prompts by words and their pieces: delete `words` and `artifact` in the folder of "
                "its outer loop and run innerloop meta-train again, which makes these anew and "
                "repeats nothing else"
            )
        shape = (BUCKETS, entry["shape"][1] if len(entry["shape"]) == 2 else 0)
        shapes = {"vectors": shape, "factors": shape[:1], "weights": shape[:1]}
        file.check(shapes, ("F32",), {"vectors": "I8"})
        tensors = file.tensors()
    except OSError as error:
        raise WordsError(f"cannot be read: {error}") from error
    except TensorFileError as error:
        raise WordsError(f"no usable table of words: {error}") from error
    return Words(tensors["vectors"], tensors["factors"], tensors["weights"], tokenizer)
