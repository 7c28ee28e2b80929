"""Intents without labels: a turn of a dialogue and the turns that share most of its words.

Labelled intents are few and alike, and a base that only ever told those apart does not tell new
ones apart. Tasks made without labels keep it general (as in UMTRA, Khodadadeh et al. 2019, arXiv
1811.11819, which augments; here the nearest neighbours by TF-IDF are the other wordings). Knows
texts only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from tqdm import tqdm

from meta_training.tasks.sources import Dialogue, Intent

SOURCE = "dialogue"
WORDS = (4, 16)  # fewest and most of a turn
WORDINGS = 8  # of one intent, the turn itself included
LEAST, MOST = 0.35, 0.95  # cosine of a neighbour; above, it is the same sentence
AT_ONCE = 500  # turns compared with all others in one product


def short_turns(dialogues: Sequence[Dialogue]) -> list[str]:
    """Every distinct turn of a length that a question has."""
    least, most = WORDS
    turns = (text for dialogue in dialogues for _, text in dialogue.turns)
    return [text for text in dict.fromkeys(turns) if least <= len(text.split()) <= most]


def neighbour_intents(turns: Sequence[str], count: int, seed: int) -> list[Intent]:
    """At most ``count`` intents of ``WORDINGS`` turns each; no turn is in two of them.

    Turns with fewer neighbours than that make no intent, so there may be less than ``count``.
    """
    if not turns or not count:
        return []
    vectors = TfidfVectorizer(sublinear_tf=True, dtype=np.float32).fit_transform(turns)
    chosen = np.random.default_rng(seed).permutation(len(turns))[:count]
    taken = np.zeros(len(turns), dtype=bool)
    intents = []
    parts = np.split(chosen, range(AT_ONCE, len(chosen), AT_ONCE))
    for part in tqdm(parts, desc="neighbours"):
        likeness = (vectors[part] @ vectors.T).tocsr()
        for row, turn in enumerate(part):
            columns = slice(likeness.indptr[row], likeness.indptr[row + 1])
            indices, cosines = likeness.indices[columns], likeness.data[columns]
            near = (cosines > LEAST) & (cosines < MOST) & ~taken[indices]
            best = indices[near][np.argsort(-cosines[near], kind="stable")[: WORDINGS - 1]]
            if len(best) < WORDINGS - 1 or taken[turn]:
                continue
            group = [turn, *best]
            taken[group] = True
            wordings = tuple(turns[index] for index in group)
            intents.append(Intent(SOURCE, "neighbours", str(turn), wordings))
    return intents
