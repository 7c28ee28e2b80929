"""Whether a session's adapter answers a prompt, and which of given answers is nearest to it.

What an adapter learned from five examples should not colour every other answer. A prompt is
compared with the prompts that were taught: where none is near (nearest neighbour by cosine, as in
Matching Networks, Vinyals et al. 2016, arXiv 1606.04080, eq. 1), or no answer is wanted more than
others (``memory``), the adapter stays off and the answer is the base's, bit for bit. So it is where
the nearest prompt is one that was to be left alone. Knows vectors; nothing about models, sessions
or steps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import normalize

from adapters.config import LIKEST, Gate, Mix
from adapters.prefix import pad
from adapters.state import Taught

ROUNDING: Final = 1e-3  # of cosines, by the 16 bits that prompts' vectors may be stored in
OWN: Final = 0.5  # weight of summaries and words beside an encoder's 1; cosines go by its square
LEAD: Final = 0.1  # by which a house's prompt has to be nearer than the session's


def prompt_vectors(gate: Gate, summaries: Tensor, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Unit vectors (B, E) by which prompts are compared, on the CPU.

    ``summaries`` (B, D) is what the base saw at each prompt's last token. Where the gate has words,
    a cosine of two such vectors is the mean of three, of summaries and of the two bags, the bag
    that keeps tokens apart counted twice. Of an encoder's cosine it is a fifth, where there is one.
    """
    parts = [normalize(summaries.float().cpu(), dim=-1)]
    if gate.words is not None:
        meanings, tokens = gate.words.bags(prompts)
        parts += [normalize(meanings, dim=-1), 2**0.5 * normalize(tokens, dim=-1)]
    own = normalize(torch.cat(parts, dim=-1), dim=-1)
    if gate.encoder is None:
        return own
    return normalize(torch.cat([OWN * own, gate.encoder.vectors(prompts)], dim=-1), dim=-1)


def nearest(keys: Tensor, vectors: Tensor) -> Tensor:
    """(B,) cosine between each prompt's vector (B, E) and the nearest of the keys (N, E).

    Without keys it is -1, the least there is.
    """
    if not len(keys):
        return vectors.new_full((len(vectors),), -1.0)
    return (vectors @ keys.T).max(dim=1).values


def answer_scores(taught: Taught, vectors: Tensor) -> Tensor:
    """(B, C) how much each prompt (B, E) wants each of the answers, in the order of ``fitted``."""
    return vectors @ taught.fitted[1]


def gate_similarity(taught: Taught, vectors: Tensor) -> Tensor:
    """(B,) how like what was taught each prompt (B, E) is; 1 for what was taught alone.

    The mean of two: how near the nearest prompt is, which is little for what is about something
    else altogether, and how much the best answer is wanted, which is little for a question between
    answers. The more is taught, the more the second knows of what an answer is *not* for.
    """
    best = answer_scores(taught, vectors).max(dim=1).values
    return (nearest(taught.answered, vectors) + best) / 2


def threshold_of(gate: Gate, taught: Taught) -> float:
    """The likeness from which on a prompt is like what was taught."""
    answers = len(taught.fitted[0])
    return gate.threshold_for(len(taught.answered) / answers if answers else 1)


def gate_opens(gate: Gate, taught: Taught, vectors: Tensor) -> Tensor:
    """(B,) whether the adapter that was taught this answers each prompt; always what was taught,
    and else nothing that is nearer to what was to be left alone."""
    if not len(taught.answered):
        return torch.zeros(len(vectors), dtype=torch.bool)
    near = nearest(taught.answered, vectors)
    least = min(threshold_of(gate, taught) + gate.margin, LIKEST)
    alike = gate_similarity(taught, vectors) >= least
    return (near >= 1 - ROUNDING) | (alike & (near > nearest(taught.left_alone, vectors)))


def house_answers(gate: Gate, own: Taught, house: Taught, vectors: Tensor) -> Tensor:
    """(B,) whether a house answers each prompt, and not the session that builds upon it.

    It does where its gate opens, unless the session's does too and the nearest of the house's
    prompts is not nearer than the session's by ``LEAD``: who corrects one wording means others too.
    Nor does it where the session disliked just that answer.
    """
    near = nearest(house.answered, vectors)
    mine = gate_opens(gate, own, vectors) & (near - nearest(own.answered, vectors) <= LEAD)
    return gate_opens(gate, house, vectors) & ~mine & ~_is_disliked(own, house, vectors)


def _is_disliked(own: Taught, house: Taught, vectors: Tensor) -> Tensor:
    """(B,) whether the house's nearest answer was disliked in the session, at a prompt as near."""
    if not len(house.answered):
        return torch.zeros(len(vectors), dtype=torch.bool)
    near, places = (vectors @ house.answered.T).max(dim=1)
    as_near = vectors @ own.left_alone.T >= near.unsqueeze(1) - ROUNDING  # (B, L)
    disliked = ~own.answers[own.answers < 0] == house.answers[house.answers >= 0][places, None]
    return (as_near & disliked).any(dim=1)


def together(own: Taught, house: Taught) -> Taught:
    """What a session and its house were taught, without the house's word on the session's prompts.

    For picking among choices: the answers' tokens are left out.
    """
    kept = nearest(own.keys, house.keys) < 1 - ROUNDING
    keys, answers = house.keys[kept], house.answers[kept]
    return Taught(torch.cat([own.keys, keys]), torch.cat([own.answers, answers]), own.view)


def answer_number(completion: Sequence[int]) -> int:
    """A number that stands for an answer's tokens, the same everywhere; 63 bits."""
    raw = b"".join(token.to_bytes(4, "little") for token in completion)
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little") >> 1


def left_alone(told: Sequence[tuple[Hashable, bool]]) -> list[bool]:
    """Which of a session's examples only say that their prompt was answered badly.

    Where nothing is taught for that prompt, an adapter has nothing better to say there: it would
    say what it was taught for others, so such a prompt is the base's, which says something else
    (``recall.Disliked``).

    Args:
        told: of each example its prompt, and whether it says what is wanted there.
    """
    taught = {prompt for prompt, wanted in told if wanted}
    return [not wanted and prompt not in taught for prompt, wanted in told]


def remember(
    gate: Gate,
    summaries: Tensor,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    alone: int = 0,
) -> Taught:
    """What the gate keeps of N examples, whose prompts the base summed up in (N, D).

    The prompts of the last ``alone`` of them are to be left alone, and their completions disliked.
    """
    wanted = len(completions) - alone
    numbers = [*map(answer_number, completions)]
    answers = [*numbers[:wanted], *(~number for number in numbers[wanted:])]
    vectors = prompt_vectors(gate, summaries, prompts)
    tokens = pad([completion or (-1,) for completion in completions], -1, vectors.device)
    return Taught(vectors, torch.tensor(answers), gate.view, tokens)


def choice_likeness(
    gate: Gate, taught: Taught, vectors: Tensor, choices: Sequence[Sequence[int]]
) -> Tensor:
    """(B, C) how much more a prompt wants each choice than what opens the gate.

    A choice that was not taught has NaN.
    """
    scores = answer_scores(taught, vectors) - threshold_of(gate, taught)
    places = {number: place for place, number in enumerate(taught.fitted[0].tolist())}
    likeness = torch.full((len(vectors), len(choices)), torch.nan)
    for column, choice in enumerate(choices):
        place = places.get(answer_number(choice))
        if place is not None:
            likeness[:, column] = scores[:, place]
    return likeness


def choice_scores(mix: Mix, likeness: Tensor, logprobs: Tensor) -> Tensor:
    """(B, C) scores of choices by the model (B, C) and the memory of what was taught together.

    A log-linear pool; kNN-LM's is linear (Khandelwal et al. 2020, arXiv 1911.00172). Memory is
    asked where it knows every choice, or one that was taught for prompts like this one; what was
    taught for other prompts says nothing about a choice that was not taught. Where it is not asked,
    the model alone chooses.
    """
    known = ~likeness.isnan()
    near = (likeness > 0).any(1, keepdim=True)  # NaN is not
    asked = near | known.all(1, keepdim=True)
    pooled = mix.model * logprobs + mix.memory * likeness.nan_to_num(nan=0.0)
    return torch.where(asked, pooled, logprobs)
