"""What a prompt's last turn means, by a sentence encoder (Reimers and Gurevych 2019, 1908.10084).

A table of words knows those of its training, and a base sums a prompt up for going on with it. An
encoder that was made for comparing sentences knows far more ways to say the same thing. It is no
part of an artifact: whoever serves one brings it (`encoder_folder`). Knows texts and tokens.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adapters.chat import last_turn
from adapters.state import fingerprint

LONGEST: Final = 128  # tokens of a turn that are read at most; what comes after is left out
AT_ONCE: Final = 32  # turns of a forward pass
KEPT: Final = 8192  # turns whose vectors are kept
# Beside its weights, an encoder is what it computes with them and which tokens it makes of texts.
COMPUTED_BY: Final = (
    "model_type",
    "hidden_act",
    "num_attention_heads",
    "layer_norm_eps",
    "position_embedding_type",
)
SAID: Final = (
    "Where is my parcel?",
    "WHERE'S IT",
    "naïve café – 5 €",
    "日本語 привет 🙂",
    "x" * 50,
)


class Encoder:
    """A frozen encoder of turns, which keeps the vectors of the last ``KEPT``. Thread-safe."""

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: PreTrainedTokenizerBase,
        *,
        first_token: bool = False,
        longest: int = LONGEST,
    ) -> None:
        """Encode prompts of ``prompts``, a base's tokenizer, by ``model`` and its ``tokenizer``.

        Args:
            first_token: a turn's vector is that of its first token, instead of the mean of all.
            longest: tokens of a turn that are read.
        """
        self.name = name
        self.width = int(model.config.hidden_size)
        self.model = model
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._first_token = first_token
        self._longest = longest
        self.digest = self._told_apart_by()
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def vectors(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """(B, E) unit vectors of what was said last in each prompt, in float32 on the CPU."""
        texts = [last_turn(self._prompts, prompt) for prompt in prompts]
        keys = {text: _digest(text) for text in texts}
        with self._lock:
            found = {text: self._kept[key] for text, key in keys.items() if key in self._kept}
        new = sorted(keys.keys() - found.keys(), key=len)
        for start in range(0, len(new), AT_ONCE):
            part = new[start : start + AT_ONCE]
            found.update(zip(part, self._encode(part), strict=True))
        with self._lock:
            for text, key in keys.items():
                self._kept[key] = found[text]
                self._kept.move_to_end(key)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return torch.stack([found[text] for text in texts])

    @torch.no_grad()
    def _encode(self, texts: Sequence[str]) -> list[Tensor]:
        said = [text or "." for text in texts]  # some tokenizers have no token for nothing
        tokens = self._tokenizer(
            said, padding=True, truncation=True, max_length=self._longest, return_tensors="pt"
        ).to(self.model.device)
        states = self.model(**tokens).last_hidden_state.float()  # (B, T, E)
        counts = tokens["attention_mask"].unsqueeze(-1)
        pooled = states[:, 0] if self._first_token else (states * counts).sum(1) / counts.sum(1)
        # Clones: a view that is kept keeps all rows of its pass.
        return [vector.clone() for vector in normalize(pooled, dim=-1).cpu()]

    def _told_apart_by(self) -> str:
        """SHA-256 of what its vectors depend on: weights, arithmetic, tokens and pooling."""
        computed = [getattr(self.model.config, name, None) for name in COMPUTED_BY]
        tokens = [self._tokenizer(text)["input_ids"] for text in SAID]
        whole = [fingerprint(self.model), computed, tokens, self._first_token, self._longest]
        return hashlib.sha256(json.dumps(whole).encode()).hexdigest()


def _digest(text: str) -> bytes:
    """What a turn is kept by: nobody's words stay in memory for a vector's sake."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
