"""Scores a model with given adapters on a batch of tasks: right answers, and answers left alone.

Knows a learner (base, hooks, encoder) and tasks; knows nothing about how adapters were made.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from sacrebleu import sentence_chrf
from torch import Tensor
from torch.nn.functional import one_hot

from adapters.chat import user_turn
from adapters.config import Gate
from adapters.gate import (
    choice_likeness,
    choice_scores,
    gate_opens,
    prompt_vectors,
    remember,
)
from adapters.layer import rows_of
from adapters.objective import IGNORE, demonstration_loss, divergence
from adapters.prefix import Prefix, continue_from
from adapters.recall import SHARE, Recall, recall
from adapters.state import Taught, Tensors
from adapters.support import Example, Support, Turns, make_turns
from meta_training.evaluation.cells import Task
from meta_training.learner import Learner, correct_rows, summaries_of
from meta_training.tasks.batches import encode_turn
from meta_training.tasks.episodes import Turn

ANSWER_TOKENS = 24  # of the untaught model's greedy answer, compared as a whole

CHOICES_AT_ONCE = 400  # rows of a forward pass

Scores = list[dict[str, float]]


@dataclass(frozen=True)
class Group:
    """Rows of turns, the session each belongs to, and whether its adapter answers (B,).

    ``untaught``: (B, T, V) logits with adapters off; what is said where a gate stays closed.
    ``vectors``: (B, E) how the gate sees what is asked. ``recalls``: what the memory says to each
    row, where it is asked.
    """

    turns: Turns
    sessions: Tensor
    opened: Tensor
    untaught: Tensor
    vectors: Tensor | None
    recalls: Sequence[Recall | None]


class Judge:
    """A batch of S tasks laid out once, scored under as many adapters as wanted."""

    def __init__(
        self,
        learner: Learner,
        tasks: Sequence[Task],
        histories: Sequence[list[dict[str, str]]] = (),
        recall: bool = False,
        share: float = SHARE,
    ) -> None:
        """Prefill all prompts.

        ``histories`` go before a task's queries (in-context examples); a gate sees the question
        without them, as in serving. With ``recall``, what was taught for prompts like the one
        asked is mixed into every token, by ``share``.
        """
        self._recall = recall
        self._share = share
        self._learner = learner
        self._tasks = tasks
        self._histories = histories or [[] for _ in tasks]
        encoder = learner.encoder
        support = [
            (encode_turn(turn, encoder), s)
            for s, task in enumerate(tasks)
            for turn in task.episode.support
        ]
        query = [
            (encoder.example(self._asked(s, turn.question), turn.answer), s)
            for s, task in enumerate(tasks)
            for turn in task.episode.query
        ]
        self._query_answers = [turn.answer for task in tasks for turn in task.episode.query]
        with torch.no_grad():
            self._memories: list[Taught] = []
            self.support = self._support([e for e, _ in support], [s for _, s in support])
            self._query_prefix = self._prefill([e for e, _ in query])
            self._query_examples = [e for e, _ in query]
            questions = [turn.question for task in tasks for turn in task.episode.query]
            self._query = self._group(questions, query, self._query_prefix)
            self._options = [
                [encoder.completion(choice) for choice in task.episode.choices] for task in tasks
            ]
            self._unrelated = self._unrelated_group()

    @torch.no_grad()
    def score(self, adapters: Tensors | None) -> Scores:
        """One dict of figures per task under stacked ``adapters`` (S first); None is adapter off.

        Where the learner has a gate, the untaught model answers what the gate keeps out.
        ``exact``: share of queries whose greedy answer is the target.

        Label only: ``choice``, share whose best choice is the target, as served; ``choice_model``
        and ``choice_memory``, by the model or by the gate's memory alone; ``confidence``, the
        probability of the best choice, and ``brier``, the squared error of all choices' (Brier
        1950). Free answers but of house replies: ``nats`` per token of the target; ``chrf``, and
        where there are patterns ``obeys``, the share of answers that match theirs as a whole, both
        without recall; where other answers are rejected ``preferred``, the share of queries whose
        target is likelier, by the token.

        ``changed``: share of unrelated questions whose greedy answer changed, ``changed_first`` in
        its first token already; ``kl``: nats per token there. ``opened`` and ``opened_else``: share
        of queries and of unrelated questions that the gate let through. A task without unrelated
        questions lacks what is said of them.
        """
        figures = {"exact": (self.exact(adapters).float(), self._query)}
        if self._tasks[0].episode.choices:
            for name, values in self.choices(adapters).items():
                figures[name] = (values.float(), self._query)
        for name, values in self._free(adapters).items():
            figures[name] = (values, self._query)
        groups = {"opened": self._query}
        if self._unrelated is not None:
            groups["opened_else"] = self._unrelated[0]
            for name, values in self._strayed(adapters, *self._unrelated).items():
                figures[name] = (values, self._unrelated[0])
        if self._learner.gate is not None and adapters is not None:
            for name, group in groups.items():
                figures[name] = (group.opened.float(), group)
        found = {n: (values.cpu(), group.sessions.cpu()) for n, (values, group) in figures.items()}
        return [
            {n: float(values[rows == s].mean()) for n, (values, rows) in found.items() if s in rows}
            for s in range(len(self._tasks))
        ]

    def _strayed(
        self, adapters: Tensors | None, group: Group, reference: Tensor
    ) -> dict[str, Tensor]:
        """(B,) how far the answers to unrelated questions are from the untaught model's."""
        others, targets = self._logits(adapters, group), group.turns.targets
        first = (targets != IGNORE).int().argmax(1, keepdim=True)  # (B, 1)
        wrong = others.argmax(-1).gather(1, first) != targets.gather(1, first)
        return {
            "changed": 1 - correct_rows(others, targets).float(),
            "changed_first": wrong.squeeze(1).float(),
            "kl": divergence(others, reference, targets),
        }

    @torch.no_grad()
    def exact(self, adapters: Tensors | None) -> Tensor:
        """(B,) whether each query's greedy answer is its target."""
        logits = self._logits(adapters, self._query)
        return correct_rows(logits, self._query.turns.targets)

    @torch.no_grad()
    def changed(self, adapters: Tensors | None) -> Tensor:
        """(B,) whether the greedy answer to each unrelated question is another one."""
        if self._unrelated is None:
            return torch.zeros(0, dtype=torch.bool)
        group, _ = self._unrelated
        return ~correct_rows(self._logits(adapters, group), group.turns.targets)

    @torch.no_grad()
    def choices(self, adapters: Tensors | None) -> dict[str, Tensor]:
        """(B,) whether each query's target is its best choice, by each of three scores, on the CPU.

        ``confidence`` and ``brier`` are of the probabilities that are served.
        """
        gate, logprobs = self._learner.gate, self.choice_logprobs(adapters)
        scores = {"choice": logprobs}
        if gate is not None and gate.mix is not None and adapters is not None:
            likeness = self.choice_likeness(gate)
            mixed = choice_scores(gate.mix, likeness, logprobs)
            # Memory alone cannot pick what was not taught, whose NaN would be the greatest.
            memory = likeness.nan_to_num(nan=-torch.inf)
            scores = {"choice": mixed, "choice_model": logprobs, "choice_memory": memory}
        targets = self.choice_targets()
        found = {name: rows.argmax(1) == targets for name, rows in scores.items()}
        shares = scores["choice"].softmax(1)
        errors = shares - one_hot(targets, shares.shape[1])
        return {**found, "confidence": shares.amax(1), "brier": errors.square().sum(1)}

    def _asked(self, session: int, question: str) -> list[dict[str, str]]:
        return self._histories[session] + user_turn(question)

    def _prefill(self, examples: Sequence[Example]) -> Prefix:
        prompts = [example.prompt for example in examples]
        if len(self._tasks) > 1 or not any(self._histories):
            return self._learner.prefill(prompts)
        return self._learner.prefill_alike(prompts)

    def _group(
        self, questions: Sequence[str], pairs: Sequence[tuple[Example, int]], prefix: Prefix
    ) -> Group:
        learner, device = self._learner, prefix.lengths.device
        turns = make_turns([example for example, _ in pairs], prefix, learner.spec.scope, device)
        owners = [s for _, s in pairs]
        sessions = torch.tensor(owners, device=device)
        with learner.hooks.use(None):
            untaught = continue_from(learner.model, turns.prefix, turns.ids)
        gate = learner.gate
        if gate is None:
            return Group(turns, sessions, torch.ones_like(sessions).bool(), untaught, None, [])
        vectors = self._vectors(gate, questions, prefix)
        rows = list(zip((self._memories[s] for s in owners), vectors.split(1), strict=True))
        opened = torch.cat([gate_opens(gate, known, asked) for known, asked in rows])
        opened = opened.to(device)
        recalls = [recall(gate, known, asked, self._share) for known, asked in rows]
        recalls = recalls if self._recall else []
        return Group(turns, sessions, opened, untaught, vectors, recalls)

    def _vectors(self, gate: Gate, questions: Sequence[str], prefix: Prefix) -> Tensor:
        encoder = self._learner.encoder
        prompts = [encoder.prompt(user_turn(question)).prefix for question in questions]
        alone = self._learner.prefill(prompts) if any(self._histories) else prefix
        return prompt_vectors(gate, summaries_of(alone), prompts)

    def _support(self, examples: list[Example], sessions: list[int]) -> Support:
        learner = self._learner
        prefix = learner.prefill([example.prompt for example in examples])
        owners = torch.tensor(sessions)
        if learner.gate is not None:
            prompts = [example.prompt for example in examples]
            completions = [example.wanted for example in examples]
            known = remember(learner.gate, summaries_of(prefix), prompts, completions)
            of_task = [owners == s for s in range(len(self._tasks))]
            self._memories = [known.rows(rows) for rows in of_task]
        anchors = self._prefill(learner.anchor_examples) if learner.anchor_examples else None
        return learner.support(examples, sessions, prefix, anchors)

    def _unrelated_group(self) -> tuple[Group, Tensor] | None:
        """The unrelated questions as they are asked, and what the untaught model says to them."""
        encoder = self._learner.encoder
        asked = [(question, s) for s, task in enumerate(self._tasks) for question in task.unrelated]
        if not asked:
            return None
        questions = [question for question, _ in asked]
        plain = [encoder.example(user_turn(question), "") for question in questions]
        answers = self._learner.greedy(plain, ANSWER_TOKENS)
        alone, after_history = [], []
        for (question, s), example, answer in zip(asked, plain, answers, strict=True):
            alone.append((Example(example.prompt, example.header, answer), s))
            prompt = encoder.prompt(self._asked(s, question))
            after_history.append((Example(prompt.prefix, prompt.header, answer), s))
        prefix = self._learner.prefill([example.prompt for example, _ in alone])
        untaught = self._group(questions, alone, prefix)
        reference = untaught.untaught.log_softmax(-1)
        if not any(self._histories):
            return untaught, reference
        prefix = self._prefill([example for example, _ in after_history])
        return self._group(questions, after_history, prefix), reference

    def _logits(self, adapters: Tensors | None, group: Group) -> Tensor:
        if adapters is None or not bool(group.opened.any()):
            return group.untaught
        rows = group.opened.nonzero().squeeze(1)
        logits = self._taught(adapters, group.turns.select(rows), group.sessions[rows])
        if group.recalls:
            for row, place in zip(logits, rows.tolist(), strict=True):
                _mix(row, group.turns.targets[place].tolist(), group.recalls[place])
        return group.untaught.index_copy(0, rows, logits)

    def _taught(self, adapters: Tensors | None, turns: Turns, sessions: Tensor) -> Tensor:
        rows = None
        if adapters is not None:
            # Without the sessions that have no row here, rows often are groups of equal size.
            here, slots = sessions.unique(return_inverse=True)
            rows = rows_of({name: t[here] for name, t in adapters.items()}, slots)
        with self._learner.hooks.use(rows):
            return continue_from(self._learner.model, turns.prefix, turns.ids)

    def choice_targets(self) -> Tensor:
        """(B,) which of its choices is each query's target."""
        pairs = zip(self._query.sessions.tolist(), self._query_answers, strict=True)
        return torch.tensor([self._tasks[s].episode.choices.index(answer) for s, answer in pairs])

    @torch.no_grad()
    def choice_likeness(self, gate: Gate) -> Tensor:
        """(B, C) what the gate's memory says to each query's choices."""
        assert self._query.vectors is not None
        pairs = zip(self._query.sessions.tolist(), self._query.vectors.split(1), strict=True)
        return torch.cat(
            [choice_likeness(gate, self._memories[s], row, self._options[s]) for s, row in pairs]
        )

    @torch.no_grad()
    def choice_logprobs(self, adapters: Tensors | None) -> Tensor:
        """(B, C) log-probability of each query's choices under the adapters, on the CPU."""
        learner = self._learner
        sessions = self._query.sessions.tolist()
        options = [(row, s, ids) for row, s in enumerate(sessions) for ids in self._options[s]]
        losses: list[float] = []
        for start in range(0, len(options), CHOICES_AT_ONCE):
            part = options[start : start + CHOICES_AT_ONCE]
            asked = [self._query_examples[row] for row, _, _ in part]
            examples = [
                Example(example.prompt, example.header, ids)
                for example, (_, _, ids) in zip(asked, part, strict=True)
            ]
            device = learner.device
            rows = torch.tensor([row for row, _, _ in part], device=device)
            turns = make_turns(
                examples, self._query_prefix.select(rows), learner.spec.scope, device
            )
            # Where the answer is one of the taught ones anyway, there is nothing to keep out.
            owners = torch.tensor([s for _, s, _ in part], device=device)
            logits = self._taught(adapters, turns, owners)
            means = demonstration_loss(logits, turns.targets)
            losses += (means * (turns.targets != IGNORE).sum(1)).tolist()
        return -torch.tensor(losses).view(len(sessions), -1)

    def _free(self, adapters: Tensors | None) -> dict[str, Tensor]:
        """(B,) figures of free answers that need not be right word for word."""
        episode = self._tasks[0].episode
        if episode.choices or episode.family == "house_reply":
            return {}
        targets = self._query.turns.targets
        found = {"nats": demonstration_loss(self._logits(adapters, self._query), targets)}
        turns = [turn for task in self._tasks for turn in task.episode.query]
        if all(turn.rejected for turn in turns):
            found["preferred"] = (self._rival_nats(adapters, turns) > found["nats"]).float()
        if self._recall and self._learner.gate is not None:
            return found  # they would have to be spoken with what is remembered
        answers = self._answers(adapters)
        pairs = list(zip(answers, turns, strict=True))
        scores = [sentence_chrf(text, [turn.answer]).score / 100 for text, turn in pairs]
        found["chrf"] = torch.tensor(scores)
        if all(turn.pattern for turn in turns):
            kept = [re.fullmatch(turn.pattern, text, re.DOTALL) for text, turn in pairs]
            found["obeys"] = torch.tensor([match is not None for match in kept]).float()
        return found

    def _rival_nats(self, adapters: Tensors | None, turns: Sequence[Turn]) -> Tensor:
        """(B,) nats per token of what each query's target is preferred to."""
        encoder = self._learner.encoder
        pairs = [
            (encoder.example(self._asked(s, turn.question), turn.rejected), s)
            for s, turn in zip(self._query.sessions.tolist(), turns, strict=True)
        ]
        group = self._group([turn.question for turn in turns], pairs, self._query_prefix)
        return demonstration_loss(self._logits(adapters, group), group.turns.targets)

    def _answers(self, adapters: Tensors | None) -> list[str]:
        """The greedy answer to each query, without recall."""
        tokenizer = self._learner.encoder.tokenizer
        slots = self._query.sessions.masked_fill(~self._query.opened, len(self._tasks))
        rows = None if adapters is None else rows_of(with_untaught(adapters), slots)
        answers = self._learner.greedy(self._query_examples, 40, rows)
        return [str(tokenizer.decode(list(answer), skip_special_tokens=True)) for answer in answers]


def _mix(logits: Tensor, targets: Sequence[int], recalled: Recall | None) -> None:
    """Mix what is remembered into logits (T, V), in place, where a target is to be said."""
    if recalled is None:
        return
    said: list[int] = []
    for place, target in enumerate(targets):
        if target != IGNORE:
            recalled.mix(logits[place], said)
            said.append(target)


def with_untaught(adapters: Tensors) -> Tensors:
    """Stacked adapters with one more slot at the end that changes nothing."""
    return {n: torch.cat([t, t.new_zeros(1, *t.shape[1:])]) for n, t in adapters.items()}
