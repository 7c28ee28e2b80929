"""Which answer a prompt wants, by what was taught: a classifier that is fitted in closed form.

Ridge regression from prompts to answers (as R2-D2's last layer, Bertinetto et al. 2019, arXiv
1805.08136). The mean of an answer's prompts, as in Prototypical Networks, counts what all of a
session's questions have in common as much as what tells them apart; this does not. It is the same
for the same prompts and answers, so nobody needs to keep it. Knows vectors and numbers.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import one_hot

RIDGE: Final = 0.3  # added to the squared length of a prompt's vector, which is 1


def fit_answers(keys: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    """The C different ones of ``answers`` (N,), and weights (E, C) for vectors (B, E) of prompts.

    ``keys``: (N, E) the prompts that were taught. ``vectors @ weights`` is about 1 where an answer
    is wanted, and about 0 where another one is, or where nothing like it was taught.
    """
    numbers, places = answers.unique(return_inverse=True)
    wanted = one_hot(places, len(numbers)).to(keys.dtype)  # (N, C)
    alike = keys @ keys.T + RIDGE * torch.eye(len(keys))  # (N, N)
    return numbers, (1 + RIDGE) * keys.T @ torch.linalg.solve(alike, wanted)
