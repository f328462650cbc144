"""The results of a comparison: for each method its guarantee, its accuracy, and its cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from lightning_s3t.core.documents import STRICT
from lightning_s3t.core.guarantees import Guarantee, Response

_Count = Annotated[int, Field(ge=0)]
_Seconds = Annotated[float, Field(ge=0)]
_Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval: over rows with one seed, over seeds with several.

    Attributes:
        value: The value; the mean over seeds.
        lower: The lower end.
        upper: The upper end.
    """

    __pydantic_config__ = STRICT

    value: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Moment:
    """The serving model after some of the requests.

    Attributes:
        requests: Number of requests carried out.
        test: Accuracy on test rows; None where nothing serves.
        retained: Accuracy on rows that stay to the end.
        forgotten: Accuracy on the rows of subjects who have asked so far; None before the first.
        test_gap: Accuracy on test rows minus that of a model that was retrained after the same requests.
        retained_gap: The same on rows that stay.
        forgotten_gap: The same on forgotten rows.
        attack_auc: How well a loss threshold distinguishes forgotten rows from test rows (AUC). Before the first
            request, for the rows of all subjects who will ask.
        job_seconds: Duration of the fit that carried out the requests since the previous moment; None without one.
    """

    __pydantic_config__ = STRICT

    requests: _Count
    test: _Share | None
    retained: _Share | None
    forgotten: _Share | None
    test_gap: Estimate | None
    retained_gap: Estimate | None
    forgotten_gap: Estimate | None
    attack_auc: Estimate | None
    job_seconds: _Seconds | None


@dataclass(frozen=True)
class MethodResult:
    """The result of a method.

    Attributes:
        label: Its label in this comparison.
        method: The method's name.
        arguments: The method, with its arguments.
        guarantee: The guarantee of the serving model after a request.
        response: "revoke" or "subtract" where a request is carried out at once, "replace" where a fit carries it out.
        needs: The data that a request needs in addition to the store.
        moments: The serving model, by the number of requests.
        fit_seconds: Duration of the first fit.
        fit_cpu_seconds: CPU time of the processes that trained in it; None where units share the script's process.
        fit_cost: The same as a multiple of the reference's, which trains one model.
        request_seconds: Duration of a request (median): until other units serve, or until it was recorded.
        lasted: Number of requests after which nothing serves; None if a unit serves to the end.
        relearn_steps: Steps of training on all forgotten rows, after all requests, until the model knows them as
            well as the reference did before the first; None where nothing serves.
        relearned: Share of the seeds that reached the goal; for the others, the steps that were tried count.
        refit_seconds: Of methods that revoke: how long a fit after all requests took.
        refit_test: And the accuracy on test rows after it.
        memory_bytes: Peak memory of a process that trains or edits; None where units share the script's process.
        device_memory_bytes: The same on the GPU; None without one.
        storage_bytes: Size of the store after the first fit.
        u_lira: Of a thorough comparison: AUC of the likelihood ratio attack on unlearning.
        rmia: Of a thorough comparison: AUC of robust membership inference, with retrained models as references.
        refused: Why the method did not get to the end; None where it did.
    """

    __pydantic_config__ = STRICT

    label: str
    method: str
    arguments: str
    guarantee: Guarantee
    response: Response
    needs: tuple[str, ...]
    moments: tuple[Moment, ...]
    fit_seconds: _Seconds | None
    fit_cpu_seconds: _Seconds | None
    fit_cost: Annotated[float, Field(ge=0)] | None
    request_seconds: _Seconds | None
    lasted: _Count | None
    relearn_steps: Annotated[float, Field(ge=0)] | None
    relearned: _Share | None
    refit_seconds: _Seconds | None
    refit_test: _Share | None
    memory_bytes: _Count | None
    device_memory_bytes: _Count | None
    storage_bytes: _Count | None
    u_lira: Estimate | None = None
    rmia: Estimate | None = None
    refused: str | None = None

    def after(self, requests: int) -> Moment | None:
        """Return the serving model after some requests; None if it was not measured.

        Args:
            requests: Number of requests.
        """
        return next((moment for moment in self.moments if moment.requests == requests), None)


@dataclass(frozen=True)
class Setting:
    """The common setting of all methods of a comparison.

    Attributes:
        measured_after: After how many requests it was measured.
        seeds: The seeds of the trainings.
        thorough: Whether there are attacks by shadow models.
        subjects: Number of subjects who own the training rows.
        rows: Number of training rows.
        forgotten_rows: Number of rows of subjects who have asked.
        retained_rows: Number of retained rows that were measured.
        test_rows: Number of test rows.
        device: The device it was run on.
        cores: Number of CPU cores.
        versions: Of the packages that took part.
    """

    __pydantic_config__ = STRICT

    measured_after: tuple[int, ...]
    seeds: tuple[int, ...]
    thorough: bool
    subjects: _Count
    rows: _Count
    forgotten_rows: _Count
    retained_rows: _Count
    test_rows: _Count
    device: str
    cores: _Count
    versions: dict[str, str]


def overtaken(methods: Sequence[MethodResult], label: str) -> dict[str, int]:
    """Return the numbers of requests after which others stay ahead of a method; see `Comparison.overtaken`.

    Args:
        methods: All methods.
        label: The method.
    """
    (own,) = (one for one in methods if one.label == label)
    found = {}
    for other in methods:
        since = None
        for moment in reversed(own.moments):
            if _accuracy(other.after(moment.requests)) <= _accuracy(moment):
                break
            since = moment.requests
        if since is not None:
            found[other.label] = since
    return found


def _accuracy(moment: Moment | None) -> float:
    """Return the accuracy on test rows, below every accuracy where nothing serves."""
    return -1.0 if moment is None or moment.test is None else moment.test
