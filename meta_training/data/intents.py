"""Labelled utterances from tables and JSON: one small reader for each public form.

Knows the originals' columns and keys; knows nothing about repeats, splits' precedence or writing,
which come after (``convert.py``). Every reader takes the folder of a checkout.
"""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from meta_training.data.rows import Row, utterance
from meta_training.data.text import clean, decode

SPLITS = {"train": "train", "dev": "val", "test": "test"}
HINT3_DOMAINS = ("curekart", "powerplay11", "sofmattress")
NATCS_PARTS = (
    ("development", "insurance", "val"),
    ("test-banking", "banking", "test"),
    ("test-finance", "finance", "test"),
)
SEBIS_FILES = (
    ("AskUbuntuCorpus.json", "ask_ubuntu"),
    ("WebApplicationsCorpus.json", "web_applications"),
    ("ChatbotCorpus.json", "munich_transport"),
)
SENTIMENT_FILES = (
    ("amazon_cells_labelled.txt", "amazon_products"),
    ("imdb_labelled.txt", "imdb_movies"),
    ("yelp_labelled.txt", "yelp_restaurants"),
)
# The published order; the files hold only the numbers.
EMOTIONS = (
    "admiration",
    "amusement",
    "anger",
    "annoyance",
    "approval",
    "caring",
    "confusion",
    "curiosity",
    "desire",
    "disappointment",
    "disapproval",
    "disgust",
    "embarrassment",
    "excitement",
    "fear",
    "gratitude",
    "grief",
    "joy",
    "love",
    "nervousness",
    "optimism",
    "pride",
    "realization",
    "relief",
    "remorse",
    "sadness",
    "surprise",
    "neutral",
)
MULTIDOGO_SEVERAL = "<div>"
MULTIDOGO_MIN_TEXTS = 5


def read_json(path: Path) -> Any:
    """Return the contents of a JSON file."""
    return json.loads(decode(path.read_bytes()))


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON-lines file."""
    for line in decode(path.read_bytes()).split("\n"):
        if line.strip():
            yield json.loads(line)


def read_table(path: Path, delimiter: str = ",") -> Iterator[dict[str, str]]:
    """Yield the rows of a table with a header; in tab-separated files quotes are plain text."""
    quoting: Literal[0, 3] = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    # Not splitlines(): it also breaks at characters that occur inside a field.
    lines = io.StringIO(decode(path.read_bytes()), newline="")
    yield from csv.DictReader(lines, delimiter=delimiter, quoting=quoting)


def clinc(root: Path) -> Iterator[Row]:
    """CLINC150: ``{"train": [[text, intent], ...], "oos_train": ...}`` and the domains' intents."""
    domains = {
        intent: domain
        for domain, intents in read_json(root / "data/domains.json").items()
        for intent in intents
    }
    for part, pairs in read_json(root / "data/data_full.json").items():
        for text, intent in pairs:
            yield utterance(text, intent, domains.get(intent, "oos"), part.removeprefix("oos_"))


def multidogo(root: Path) -> Iterator[Row]:
    """MultiDoGO: tab-separated customer sentences, without values, doubles and rare intents."""
    rows = []
    folder = root / "data/paper_splits/splits_annotated_at_sentence_level"
    for path in sorted(folder.glob("*/*.tsv")):
        for record in read_table(path, "\t"):
            intent = record["intent"].strip()
            if intent != "contentonly" and MULTIDOGO_SEVERAL not in intent:
                text = record["utterance"]
                rows.append(utterance(text, intent, path.parent.name, SPLITS[path.stem]))
    texts: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in rows:
        texts[row["domain"], row["intent"]].add(row["text"])
    for row in rows:
        if len(texts[row["domain"], row["intent"]]) >= MULTIDOGO_MIN_TEXTS:
            yield row


def natcs(root: Path) -> Iterator[Row]:
    """NatCS (DSTC11): JSON lines ``{"utterance", "utterance_id", "intent"}``."""
    for folder, domain, split in NATCS_PARTS:
        for record in read_json_lines(root / "dstc11" / folder / "test-utterances.jsonl"):
            yield utterance(record["utterance"], record["intent"], domain, split)


def hint3(root: Path) -> Iterator[Row]:
    """HINT3: ``sentence,label``; its label for questions no bot answers becomes ``oos``."""
    for domain in HINT3_DOMAINS:
        for split in ("train", "test"):
            path = root / "dataset/v2" / split / f"{domain}_{split}.csv"
            for record in read_table(path):
                label = record["label"]
                intent = "oos" if label == "NO_NODES_DETECTED" else label
                yield utterance(record["sentence"], intent, domain, split)


def bitext(root: Path) -> Iterator[Row]:
    """Bitext: ``flags,utterance,category,intent``."""
    for folder, split in SPLITS.items():
        for path in sorted((root / "data" / folder).glob("*.csv")):
            for record in read_table(path):
                domain = record["category"].strip().lower().replace(" ", "_")
                yield utterance(record["utterance"], record["intent"], domain, split)


def snips(root: Path) -> Iterator[Row]:
    """Snips: ``{intent: [{"data": [{"text", "entity"?}, ...]}, ...]}``, an utterance in pieces."""
    for folder in sorted((root / "2017-06-custom-intent-engines").iterdir()):
        intent = folder.name
        for name, split in ((f"train_{intent}_full", "train"), (f"validate_{intent}", "test")):
            for record in read_json(folder / f"{name}.json")[intent]:
                text = "".join(piece["text"] for piece in record["data"])
                yield utterance(text, intent, "voice_assistant", split)


def sebis(root: Path) -> Iterator[Row]:
    """NLU-Evaluation-Corpora: ``{"sentences": [{"text", "intent", "training"}, ...]}``."""
    for name, domain in SEBIS_FILES:
        for record in read_json(root / name)["sentences"]:
            split = "train" if record["training"] else "test"
            yield utterance(record["text"], record["intent"], domain, split)


def goemotions(root: Path) -> Iterator[Row]:
    """GoEmotions: text, comma-separated emotion numbers, id; only texts with one emotion."""
    for name, split in SPLITS.items():
        for line in decode((root / f"data/original/{name}.tsv").read_bytes()).split("\n"):
            text, _, rest = line.partition("\t")
            labels = rest.split("\t")[0].strip()
            if labels and "," not in labels:
                yield utterance(text, EMOTIONS[int(labels)], "emotion", split)


def sentiment(root: Path) -> Iterator[Row]:
    """Sentiment Labelled Sentences: text, tab, 1 or 0."""
    for name, domain in SENTIMENT_FILES:
        path = min(root.rglob(name))
        for line in decode(path.read_bytes()).split("\n"):
            text, _, label = line.rstrip().rpartition("\t")
            if label in ("0", "1"):
                intent = "positive" if label == "1" else "negative"
                yield utterance(clean(text), intent, domain, "train")
