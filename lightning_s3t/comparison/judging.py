"""From runs to results: gaps, attacks and intervals."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev

import torch
from scipy.stats import t as student
from torch import Tensor

from lightning_s3t.comparison.asking import Answers
from lightning_s3t.comparison.results import Estimate, MethodResult, Moment
from lightning_s3t.comparison.run import PARTS, Run, answers_of
from lightning_s3t.methods import UnlearningMethod
from lightning_s3t.metrics.functional import (
    accuracy_gap,
    membership_inference,
    robust_membership_inference,
    unlearning_likelihood_ratio_attack,
)

_LEAST_MODELS = 4  # of each kind that the likelihood ratio attack on unlearning takes


@dataclass(frozen=True)
class Runs:
    """A method's runs, one for each seed.

    Attributes:
        label: The method's label.
        method: The method.
        found: The runs, by seed.
        answers: The answers to rows, by seed.
    """

    label: str
    method: UnlearningMethod
    found: Sequence[Run]
    answers: Sequence[Mapping[str, Tensor]]

    def after(self, part: str, requests: int) -> list[Answers]:
        """Return the answers of the seeds that serve after some requests.

        Args:
            part: "test", "retained" or "forgotten".
            requests: Number of requests.
        """
        found = (answers_of(answers, part, requests) for answers in self.answers)
        return [answers for answers in found if answers is not None]


def judge(runs: Runs, reference: Runs, asked_at: Tensor, measured_after: Sequence[int], thorough: bool) -> MethodResult:
    """Return the result of a method.

    Args:
        runs: Its runs.
        reference: Those of a training from scratch, with the same seeds.
        asked_at: For each forgotten row, the request that it belongs to.
        measured_after: After how many requests it was measured.
        thorough: Whether to attack with shadow models.
    """
    judged = _Judged(runs, reference, asked_at, measured_after)
    first, last = runs.found[0], measured_after[-1]
    lasted = [run.lasted for run in runs.found if run.lasted is not None]
    relearnt = [(run.relearn_steps, run.relearned) for run in runs.found if run.relearn_steps is not None]
    fit, reference_fit = (_mean(run.fit_cpu_seconds for run in one.found) for one in (runs, reference))
    requests = [seconds for run in runs.found for seconds in run.request_seconds]
    return MethodResult(
        label=runs.label,
        method=runs.method.name,
        arguments=repr(runs.method),
        guarantee=runs.method.guarantee,
        response=runs.method.response,
        needs=runs.method.needs,
        moments=tuple(map(judged.moment, measured_after)),
        fit_seconds=_mean(run.fit_seconds for run in runs.found),
        fit_cpu_seconds=fit,
        fit_cost=fit / reference_fit if fit is not None and reference_fit else None,
        request_seconds=median(requests) if requests else None,
        lasted=min(lasted, default=None),
        relearn_steps=fmean(steps for steps, _ in relearnt) if relearnt else None,
        relearned=fmean(bool(reached) for _, reached in relearnt) if relearnt else None,
        refit_seconds=_mean(run.refit_seconds for run in runs.found),
        refit_test=_mean(run.refit_test for run in runs.found),
        memory_bytes=max((run.memory_bytes for run in runs.found if run.memory_bytes), default=None),
        device_memory_bytes=max(
            (run.device_memory_bytes for run in runs.found if run.device_memory_bytes), default=None
        ),
        storage_bytes=first.storage_bytes,
        u_lira=judged.u_lira(last) if thorough else None,
        rmia=judged.rmia(last) if thorough else None,
        refused=next((run.refused for run in runs.found if run.refused is not None), None),
    )


class _Judged:
    """The runs of a method and those of the reference."""

    def __init__(self, runs: Runs, reference: Runs, asked_at: Tensor, measured_after: Sequence[int]) -> None:
        self._runs = runs
        self._reference = reference
        self._asked_at = asked_at
        self._all = measured_after[-1]

    def moment(self, requests: int) -> Moment:
        asked = self._asked_at <= requests
        accuracies, gaps = {}, {}
        for part in PARTS:
            rows = asked if part == "forgotten" else torch.tensor(True)
            found, reference = (
                [one.of(rows) if part == "forgotten" else one for one in runs.after(part, requests)]
                for runs in (self._runs, self._reference)
            )
            there = bool(found) and (part != "forgotten" or bool(asked.any()))
            accuracies[part] = fmean(one.accuracy for one in found) if there else None
            gaps[part] = _over_seeds([_gap(one, reference) for one in found]) if there and reference else None
        jobs = [run.jobs[str(requests)] for run in self._runs.found if str(requests) in run.jobs]
        return Moment(
            requests,
            accuracies["test"],
            accuracies["retained"],
            accuracies["forgotten"],
            gaps["test"],
            gaps["retained"],
            gaps["forgotten"],
            self._loss_attack(requests),
            fmean(jobs) if jobs else None,
        )

    def _loss_attack(self, requests: int) -> Estimate | None:
        members = self._asked_at <= (requests or self._all)
        pairs = zip(self._runs.after("forgotten", requests), self._runs.after("test", requests), strict=True)
        return _over_seeds([_auc(forgotten.of(members).scores, test.scores) for forgotten, test in pairs])

    def u_lira(self, requests: int) -> Estimate | None:
        unlearned, retrained = (
            [one.scores for one in runs.after("forgotten", requests)] for runs in (self._runs, self._reference)
        )
        if min(len(unlearned), len(retrained)) < _LEAST_MODELS or self._runs.label == self._reference.label:
            return None
        found = unlearning_likelihood_ratio_attack(torch.stack(unlearned, 1), torch.stack(retrained, 1), max_fpr=0.5)
        return _estimate(found, "auc")

    def rmia(self, requests: int) -> Estimate | None:
        estimates = []
        for number, answers in enumerate(self._runs.answers):
            others = [one for at, one in enumerate(self._reference.answers) if at != number]
            parts = [_probabilities([answers, *others], part, requests) for part in ("forgotten", "test")]
            forgotten, test = parts
            if forgotten is None or test is None or forgotten.shape[1] < 2:
                continue
            attacked, population = torch.cat([forgotten, test[::2]]), test[1::2]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of rates, which are not looked at
                found = robust_membership_inference(
                    attacked[:, 0],
                    attacked[:, 1:],
                    torch.arange(len(attacked)) < len(forgotten),
                    population[:, 0],
                    population[:, 1:],
                )
            estimates.append(_estimate(found, "auc"))
        return _over_seeds(estimates)


def _probabilities(runs: Sequence[Mapping[str, Tensor]], part: str, requests: int) -> Tensor | None:
    """Return the true class's probability by several models, `[rows, models]`; None if the first does not serve."""
    found = [answers_of(answers, part, requests) for answers in runs]
    if found[0] is None:
        return None
    return torch.stack([one.scores.double().sigmoid() for one in found if one is not None], 1)


def _gap(found: Answers, reference: Sequence[Answers]) -> Estimate:
    right = torch.ones(len(found.correct), dtype=torch.long)  # a row that is right is of class 1, which is expected
    correct = torch.stack([one.correct.long() for one in reference])
    return _estimate(accuracy_gap(found.correct.long(), correct, right), "gap")


def _auc(members: Tensor, non_members: Tensor) -> Estimate:
    scores = torch.cat([members, non_members]).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of rates, which are not looked at
        found = membership_inference(scores, torch.arange(len(scores)) < len(members))
    return _estimate(found, "auc")


def _estimate(found: Mapping[str, Tensor], name: str) -> Estimate:
    return Estimate(*(float(found[f"{name}{end}"]) for end in ("", "_lower", "_upper")))


def _over_seeds(estimates: Sequence[Estimate]) -> Estimate | None:
    """Return the mean over seeds, with Student's interval; with a single seed, return its own estimate."""
    if len(estimates) < 2:
        return estimates[0] if estimates else None
    values = [estimate.value for estimate in estimates]
    reach = float(student.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return Estimate(fmean(values), fmean(values) - reach, fmean(values) + reach)


def _mean(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return fmean(found) if found else None
