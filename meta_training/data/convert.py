"""From checked-out files to the rows of a data file: each source's reader, then the same rules.

Knows which reader belongs to which source and what every data file promises (no repeats, no empty
texts); knows nothing about how the files came here.
"""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import yaml

from meta_training.data import dialogues, intents, markup, styles
from meta_training.data.errors import FormError
from meta_training.data.rows import IDENTITY, Row, distinct
from meta_training.data.sources import Source
from meta_training.data.text import has_words

# A reader takes one folder for each origin of its source, in the order of the table.
Reader = Callable[..., Iterator[Row | None]]

READERS: dict[str, Reader] = {
    "clinc150": intents.clinc,
    "multidogo": intents.multidogo,
    "natcs-intents": intents.natcs,
    "hint3": intents.hint3,
    "bitext-support": intents.bitext,
    "sgd-intents": dialogues.sgd_intents,
    "snips": intents.snips,
    "rasa-nlu": markup.rasa,
    "sebis-nlu": intents.sebis,
    "botframework-en": markup.botframework,
    "goemotions": intents.goemotions,
    "sentiment-sentences": intents.sentiment,
    "xsid-multilingual": markup.xsid,
    "homeassistant-multilingual": markup.home_assistant,
    "dialogues-sgd": dialogues.sgd,
    "dialogues-star": dialogues.star,
    "dialogues-taskmaster4": dialogues.taskmaster4,
    "dialogues-multiwoz": dialogues.multiwoz,
    "dialogues-woz2": dialogues.woz2,
    "dialogues-camrest": dialogues.camrest,
    "dialogues-topicalchat": dialogues.topicalchat,
    "dialogues-crosswoz-zh": dialogues.crosswoz,
    "style-chitchat-en": styles.chitchat_en,
    "style-chitchat-es": styles.chitchat_es,
    "style-personalitychat": styles.personality_chat,
    "faq-dstc9": styles.dstc9,
    "instructions-selfinstruct-human": styles.self_instruct,
}

# What a reader raises when the files are not what it was written for.
_UNREADABLE = (
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    ValueError,
    FileNotFoundError,
    csv.Error,
    yaml.YAMLError,
    zipfile.BadZipFile,
)


def convert(source: Source, roots: Sequence[Path]) -> list[Row]:
    """Return the rows of ``source`` from its checked-out origins, in the documented form.

    Raises:
        FormError: the files are not of the form the source had at the pinned commit.
    """
    try:
        rows = [row for row in READERS[source.name](*roots) if row is not None]
    except _UNREADABLE as error:
        raise FormError(
            f"{source.name}: its files are not of the expected form"
            f" ({type(error).__name__}: {error}); is {', '.join(source.pins)} what was fetched?"
        ) from error
    if source.form == "utterances":
        rows = [row for row in rows if has_words(row["text"])]
    rows = distinct(rows, IDENTITY[source.form])
    if not rows:
        raise FormError(f"{source.name}: no row was found in the files of {', '.join(source.pins)}")
    return rows
