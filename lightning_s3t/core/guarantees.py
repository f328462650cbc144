"""Guarantees: what a method promises about an artifact after a request, and how its training was isolated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from lightning_s3t.core.documents import STRICT

Guarantee = Literal["exact", "certified", "empirical"]
"""Bitwise equal to a training without the data; within (epsilon, delta) of it; or only measured."""

Response = Literal["revoke", "subtract", "replace"]
"""What a request does: remove the units that it reaches at once; subtract the rows from a closed-form head at once,
where there are no units; or have the next fit replace the unit."""

Isolation = Literal["forkserver", "fork", "none"]
"""How units were kept apart: a fresh process each, a fork of the script each, or one process for all."""

CERTIFIED_HEAD = (
    "For any set of heads, the linear head that serves is in it with at most e^epsilon times the probability, plus "
    "delta, with which a first fit without the subjects would publish one in it, and the other way round. Both are "
    "Gaussian noise, secret and drawn afresh for each head, around points within a fixed distance of the minimum of "
    "the remaining rows' loss. This is for whoever sees one head; for k heads, epsilon and delta are k times as large. "
    "It covers the head alone: not the pretrained network, not a head that served before the request, and not the "
    "store's files. It takes the noise for exactly Gaussian, which floating point numbers only approximate."
)
"""What the certificate of a certified head says, and under which assumptions."""


@dataclass(frozen=True)
class Certificate:
    """The numbers of a "certified" guarantee.

    Any set of outcomes is at most e^epsilon times as likely, plus delta, as after a fit without the data, and the other
    way round (Guo et al., arXiv 1911.03030, definition 1).

    Attributes:
        epsilon: The bound on the logarithm of the ratio of probabilities.
        delta: The probability by which the bound may be missed.
        statement: What is certified, for whom, and under which assumptions.
    """

    __pydantic_config__ = STRICT

    epsilon: Annotated[float, Field(gt=0, description="Bound on the logarithm of the ratio of probabilities.")]
    delta: Annotated[float, Field(gt=0, lt=1, description="Probability by which that bound may be missed.")]
    statement: Annotated[str, Field(description="What is certified, for whom, and under which assumptions.")]

    def __str__(self) -> str:
        return f"certified (epsilon {self.epsilon:g}, delta {self.delta:g})"
