"""Bands of risk: those who are likelier to ask share slices."""

from __future__ import annotations

import csv
import io
import json
import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from lightning_s3t.core.subjects import canonical_subject
from lightning_s3t.errors import ConfigurationError

_EXPECTED = (
    "Expected CSV (a header `subject,risk`, then one line per subject) or a JSON object with one number per subject."
)


@dataclass(frozen=True)
class RiskBands:
    """Keeps slices of their own for subjects who are likely to ask.

    A request then mostly hits the same few slices of a shard, which the sequences can keep late. Within its band's
    slices a subject's place follows from its hash as usual: it depends on the subject's id and risk, on the seed and on
    fixed thresholds, never on other subjects. That holds only as long as the risks and the thresholds were not
    computed from the training data: a threshold at the data's own 90 % quantile moves when a subject leaves. Take them
    from elsewhere, and keep them; a store refuses a subject who has changed bands.

    Args:
        thresholds: Risks at which a higher band begins, ascending.
        slices: Number of a shard's slices for each band, from the lowest band up; one more than thresholds. The highest
            band has the last slices.
        risks: The risk of each subject; subjects without one are in the lowest band.

    Raises:
        ConfigurationError: The bands do not fit the thresholds, these do not ascend, or a risk is not a number.

    Example:
        >>> from lightning_s3t.plan import Partition
        >>> bands = RiskBands(thresholds=(0.1,), slices=(3, 1), risks={"ann": 0.5, "bob": 0.01})
        >>> partition = Partition(shards=2, slices=4, bands=bands.slices)
        >>> partition.place("ann", bands.band("ann")).slice, partition.place("bob", bands.band("bob")).slice < 3
        (3, True)
    """

    thresholds: tuple[float, ...]
    slices: tuple[int, ...]
    risks: Mapping[object, float] = field(repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "thresholds", tuple(self.thresholds))
        object.__setattr__(self, "slices", tuple(self.slices))
        if len(self.slices) != len(self.thresholds) + 1:
            raise ConfigurationError(
                f"There are {len(self.slices)} bands, of {self.slices} slices, and {len(self.thresholds)} thresholds. "
                "Expected one band more than thresholds."
            )
        if not all(math.isfinite(threshold) for threshold in self.thresholds) or any(
            low >= high for low, high in zip(self.thresholds, self.thresholds[1:], strict=False)
        ):
            raise ConfigurationError(
                f"The thresholds are {self.thresholds}. Expected finite numbers in ascending order."
            )
        canonical = {}
        for subject, risk in self.risks.items():
            if not math.isfinite(risk):
                raise ConfigurationError(f"The risk of subject {subject!r} is {risk!r}. Expected a finite number.")
            canonical[canonical_subject(subject)] = float(risk)
        object.__setattr__(self, "risks", canonical)

    @classmethod
    def of(cls, risk: RiskBands | Mapping[str, Any] | None) -> RiskBands | None:
        """Return the bands that an argument specifies.

        Args:
            risk: Bands; a mapping of their arguments, in which `risks` may also be a CSV or a JSON file; or None.

        Raises:
            ConfigurationError: An argument is missing, or the file cannot be read as one of risks.
        """
        if risk is None or isinstance(risk, RiskBands):
            return risk
        names = {field.name for field in fields(cls)}
        if set(risk) != names:
            given = ", ".join(sorted(map(str, risk))) or "nothing"
            raise ConfigurationError(f"Argument `risk` has {given}. Expected {', '.join(sorted(names))}.")
        risks = risk["risks"]
        return cls(risk["thresholds"], risk["slices"], _read(Path(risks)) if isinstance(risks, (str, Path)) else risks)

    def band(self, subject: str) -> int:
        """Returns a subject's band, counted from 0, the lowest.

        Args:
            subject: The canonical id.
        """
        risk = self.risks.get(subject)
        return bisect_right(self.thresholds, risk) if risk is not None else 0


def _read(path: Path) -> dict[object, float]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = json.loads(text) if path.suffix == ".json" else _read_csv(text)
        return {subject: float(risk) for subject, risk in found.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"The risks {path} cannot be read: {error}. {_EXPECTED}") from error


def _read_csv(text: str) -> dict[str, str]:
    header, *rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row] or [[]]
    if [name.strip() for name in header] != ["subject", "risk"]:
        raise ValueError(f"its first line is {','.join(header)!r}")
    return dict(rows)  # a row of another length is a ValueError
