"""Optuna's side of a search: the values of a trial, who is stopped, and the journal of both.

The one place that knows Optuna; knows nothing about how a trial is trained or judged.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalChoiceType,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.storages.journal import JournalFileBackend
from optuna.trial import Trial, TrialState, create_trial

from meta_training.search.plan import (
    Plan,
    Range,
    Search,
    SearchError,
    Settings,
    kind_of,
    value_of,
)

JOURNAL: Final = "journal.log"
NAME: Final = "search"
REDUCTION: Final = 3  # successive halving: one of so many goes on at each rung
FEWEST: Final = 8  # trials that importances are told from
WHY: Final = "why"  # attribute of a trial that failed
FINISHED: Final = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@dataclass(frozen=True)
class Drawn:
    """A trial as the journal has it. ``state``: complete, stopped, failed or running."""

    number: int
    state: str
    settings: Settings
    why: str = ""


class Study:
    """The trials of a search. Number 0 is the recipe's own settings, which no sampler drew."""

    def __init__(self, search: Search, folder: Path) -> None:
        """Open the journal in ``folder``, or begin one.

        Raises:
            SearchError: the journal cannot be read.
        """
        self._search = search
        self._space = {name: _distribution(name, of) for name, of in search.space.items()}
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        path = folder / JOURNAL
        try:
            _drop_half_line(path)
            backend = JournalFileBackend(str(path))
            self._study = optuna.create_study(
                storage=optuna.storages.JournalStorage(backend),
                pruner=_pruner(search.plan),
                study_name=NAME,
                direction="minimize",
                load_if_exists=True,
            )
        except (ValueError, KeyError, TypeError) as error:
            raise SearchError(f"{path} cannot be read: {error}; take another --out") from error

    @property
    def has_reference(self) -> bool:
        """Whether the recipe's own settings were told."""
        return bool(self._study.get_trials(deepcopy=False))

    def tell_reference(self, curve: Mapping[int, float]) -> None:
        """Take in the recipe's own settings, whose score is 1.

        Samplers and stopping rules learn from them where the space has them.

        Args:
            curve: score after so many outer steps.
        """
        params = {name: self._param(name, value_of(self._search.recipe, name))
                  for name in self._space}  # fmt: skip
        if None in params.values():
            self._study.add_trial(create_trial(state=TrialState.FAIL))
            return
        self._study.add_trial(
            create_trial(
                params={name: found[0] for name, found in params.items() if found},
                distributions=self._space,
                value=1.0,
                intermediate_values=dict(curve),
            )
        )

    def next(self) -> Trial:
        """The trial that is under way, or a new one with values drawn for it.

        Values depend on the plan's seed and the trials before, not on how often a search was
        stopped.
        """
        trials = self._study.get_trials(deepcopy=False)
        running = [trial for trial in trials if trial.state is TrialState.RUNNING]
        if running:  # its values are drawn, and no sampler is to count it twice
            self._study.sampler = optuna.samplers.RandomSampler(seed=self._search.plan.seed)
            return Trial(self._study, running[0]._trial_id)
        self._study.sampler = _sampler(self._search.plan, len(trials))
        trial = self._study.ask()
        self.settings(trial)
        return trial

    def settings(self, trial: Trial) -> Settings:
        """The values of a trial."""
        return {name: self._value(name, self._suggest(trial, name)) for name in self._space}

    def report(self, trial: Trial, step: int, score: float) -> None:
        """Take in a judgement on the way; a second one of the same step changes nothing."""
        frozen = self._study.get_trials(deepcopy=False)[trial.number]
        if step not in frozen.intermediate_values:
            trial.report(score, step)

    def tell(self, trial: Trial, score: float | None, why: str = "") -> None:
        """End a trial: with its score, without one as stopped, or as failed for ``why``."""
        if why:
            trial.set_user_attr(WHY, why)
            self._study.tell(trial, state=TrialState.FAIL)
        elif score is None:
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, score)

    def finished(self) -> int:
        """How many trials that a sampler drew have ended."""
        return len(self._study.get_trials(deepcopy=False, states=FINISHED)) - self.has_reference

    def drawn(self) -> Iterator[Drawn]:
        """All trials that a sampler drew, by number."""
        names = {
            TrialState.COMPLETE: "complete",
            TrialState.PRUNED: "stopped",
            TrialState.FAIL: "failed",
        }
        for trial in self._study.get_trials(deepcopy=False)[1:]:
            settings = {name: self._value(name, param) for name, param in trial.params.items()}
            state = names.get(trial.state, "running")
            yield Drawn(trial.number, state, settings, trial.user_attrs.get(WHY, ""))

    def importances(self) -> dict[str, float]:
        """Share of the scores' variance that each field explains, by fANOVA; {} for few trials.

        Hutter et al. 2014, "An efficient approach for assessing hyperparameter importance". Only
        trials that were not stopped count, of which it takes ``FEWEST``.
        """
        done = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if len(done) < FEWEST or len({trial.value for trial in done}) < 2:
            return {}
        fields = [name for name in done[0].params if len({t.params[name] for t in done}) > 1]
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        try:
            return optuna.importance.get_param_importances(
                self._study, evaluator=evaluator, params=fields
            )
        except RuntimeError:  # trees that split nothing, which few trials grow
            return {}

    def _suggest(self, trial: Trial, name: str) -> Any:
        match self._space[name]:
            case IntDistribution(low=low, high=high, step=step, log=log):
                return trial.suggest_int(name, low, high, step=step, log=log)
            case FloatDistribution(low=low, high=high, step=step, log=log):
                return trial.suggest_float(name, low, high, step=step, log=log)
            case CategoricalDistribution(choices=choices):
                return trial.suggest_categorical(name, choices)
            case other:
                raise TypeError(other)

    def _value(self, name: str, param: Any) -> Any:
        """A field's value from what the journal has for it."""
        of = self._search.space[name]
        if isinstance(of, Range):
            return param
        return next(value for value in of if _plain(value) == param)

    def _param(self, name: str, value: Any) -> tuple[Any] | None:
        """What the journal would have for a value; None where the space does not have it."""
        of = self._search.space[name]
        if not isinstance(of, Range):
            return (_plain(value),) if value in of else None
        return None if value is None or not of.reaches(value) else (value,)


def _plain(value: Any) -> CategoricalChoiceType:
    """A choice in a form that Optuna keeps: lists and such as JSON."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return json.dumps(value)


def _distribution(name: str, of: Sequence[Any] | Range) -> BaseDistribution:
    if not isinstance(of, Range):
        return CategoricalDistribution([_plain(value) for value in of])
    if kind_of(name) is int:
        step = 1 if of.step is None else int(of.step)
        return IntDistribution(int(of.low), int(of.high), log=of.log, step=step)
    return FloatDistribution(of.low, of.high, log=of.log, step=of.step)


def _sampler(plan: Plan, number: int) -> optuna.samplers.BaseSampler:
    """A sampler for trial ``number`` alone.

    A seed for each trial: one generator for all would begin anew in every process.
    """
    seed = (plan.seed * 1_000_003 + number) % 2**32
    with warnings.catch_warnings():  # two of them are called experimental
        warnings.simplefilter("ignore", ExperimentalWarning)
        match plan.sampler:
            case "random":
                return optuna.samplers.RandomSampler(seed=seed)
            case "tpe":
                return optuna.samplers.TPESampler(n_startup_trials=plan.startup, seed=seed)
            case "gp":
                return optuna.samplers.GPSampler(n_startup_trials=plan.startup, seed=seed)
            case "qmc":  # a sequence, which has one seed; the journal knows how far it is
                return optuna.samplers.QMCSampler(
                    scramble=True, seed=plan.seed, warn_independent_sampling=False
                )


def _pruner(plan: Plan) -> optuna.pruners.BasePruner:
    match plan.stop:
        case "none":
            return optuna.pruners.NopPruner()
        case "median":
            return optuna.pruners.MedianPruner(n_startup_trials=plan.startup)
        case "halving":
            assert plan.judge_every is not None
            return optuna.pruners.SuccessiveHalvingPruner(
                min_resource=plan.judge_every, reduction_factor=REDUCTION
            )


def _drop_half_line(path: Path) -> None:
    """Cut off what a process that was killed had begun to write."""
    if path.exists():
        with path.open("r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
