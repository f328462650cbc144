"""Amnesiac unlearning: the training steps whose batches contained a forgotten row are subtracted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_s3t.errors import ConfigurationError, UnsupportedError
from lightning_s3t.methods.checks import check_positive, check_share
from lightning_s3t.methods.editing import EditingMethod, EditSession
from lightning_s3t.methods.registry import register_method

_SIZES, _ROWS, _VALUES, _PLACES = "sizes", "rows", "values", "places"


@register_method
@dataclass(frozen=True)
class Amnesiac(EditingMethod):
    """Amnesiac unlearning (Graves et al., "Amnesiac Machine Learning", arXiv 2010.10981, its main method).

    The training records, for every optimizer step, the change of each parameter and the rows of its batches. A request
    subtracts the changes of the steps that contained a forgotten row, each once over all requests. With `keep` below 1
    it is the layer-wise partial form (arXiv 2403.07611): only the largest entries of each parameter tensor's change are
    kept and subtracted. That paper's code is not public; that the share is taken of each tensor and step is this
    implementation's reading.

    Nothing is guaranteed about the result: later steps started from weights that earlier ones had changed, momentum
    carries a batch into later steps, and running statistics are not restored. Rows that are spread over many batches
    affect most of the training: 10 % of the rows at random, in batches of 64, affect nearly every step. So a request
    that reaches more than `max_share` of the steps is refused. The paper repairs the model afterwards by training on
    the retained rows; this is left out, since those steps would have to be recorded too.

    **The records are personal data**: a step's change is its batch's gradient, and reveals more about its rows than the
    model does. The records are in the model's own snapshot, are not exported, and are erased with it by the request:
    the erased file that the receipt counts contained both. The remaining records go into the new model's snapshot,
    without the subtracted steps.

    Needs only the records, of every step: 4 bytes for each parameter and step, or 12 for each that is kept.

    Args:
        keep: Share of each parameter tensor's change that is kept; 1 for all of it.
        max_share: Share of the steps at which a request is refused.
        max_bytes: The largest size of a training's records.

    Raises:
        ConfigurationError: An argument is out of range.
    """

    name = "amnesiac"
    needs = ("training steps",)

    keep: float = 1.0
    max_share: float = 0.2
    max_bytes: float = 2**30

    def __post_init__(self) -> None:
        check_share("keep", self.keep)
        check_share("max_share", self.max_share)
        check_positive("max_bytes", self.max_bytes)

    def recorder(self) -> StepRecorder:
        """Return a recorder of training steps."""
        return StepRecorder(self.keep, self.max_bytes)

    def edit(self, session: EditSession) -> Mapping[str, Any]:
        """Subtract steps, and drop their records.

        Args:
            session: The model, with the records of its training.

        Returns:
            Number of subtracted steps, and the total number.

        Raises:
            ConfigurationError: They are too many.
        """
        records = session.records
        sizes = records[_SIZES].tolist()
        gone = torch.zeros(session.trained_rows, dtype=torch.bool)
        gone[list(session.places)] = True
        affected = torch.tensor([bool(gone[rows].any()) for rows in records[_ROWS].split(sizes)], dtype=torch.bool)
        count, steps = int(affected.sum()), len(sizes)
        if count > self.max_share * steps:
            raise ConfigurationError(
                f"{count} of the {steps} steps contained a row to be forgotten, and `max_share` is {self.max_share}. "
                "Subtracting so many steps resets the model. Leave these rows out of the data: the fit then trains "
                "from scratch."
            )
        with torch.no_grad():
            for name, parameter in session.parameters.items():
                change = _sum_of(records, name, affected, parameter)
                parameter.sub_(change.to(parameter))
        kept = ~affected
        renumbered = torch.cumsum(~gone, 0) - 1  # the new numbers of the retained rows
        rows = [part for part, keep in zip(records[_ROWS].split(sizes), kept.tolist(), strict=True) if keep]
        records[_SIZES] = records[_SIZES][kept]
        records[_ROWS] = renumbered[torch.cat([*rows, torch.zeros(0, dtype=torch.long)])]
        for name in [name for name in records if name.startswith((_VALUES, _PLACES))]:
            records[name] = records[name][kept].clone()
        return {"steps_taken_back": count, "steps": steps}


class StepRecorder:
    """Keeps by how much each optimizer step changes parameters, and which rows it saw.

    Args:
        keep: Share of each parameter tensor's change that is kept.
        max_bytes: The largest size of the records.
    """

    def __init__(self, keep: float, max_bytes: float) -> None:
        self._keep = keep
        self._max_bytes = max_bytes
        self._bytes = 0
        self._parameters: Mapping[str, nn.Parameter] = {}
        self._before: dict[str, Tensor] = {}
        self._rows: list[list[int]] = []
        self._changes: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def start(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Begin, just before the first step.

        Args:
            parameters: The parameters that are trained, by name.
        """
        self._parameters = parameters
        self._before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self._changes = {name: [] for name in parameters}

    def step(self, rows: Sequence[int]) -> None:
        """Record the change of a step.

        Args:
            rows: The indices of its batches' rows among the training rows.

        Raises:
            UnsupportedError: The records have become too large.
        """
        self._rows.append(sorted(set(rows)))
        for name, parameter in self._parameters.items():
            now = parameter.detach().clone()
            change = (now - self._before[name]).flatten().cpu()
            self._before[name] = now
            if self._keep == 1:
                places = torch.zeros(0, dtype=torch.long)
            else:
                places = change.abs().topk(max(1, round(self._keep * len(change)))).indices.sort().values
                change = change[places]
            self._changes[name].append((change, places))
            self._bytes += change.nbytes + places.nbytes
        if self._bytes > self._max_bytes:
            raise UnsupportedError(
                f"The records of the first {len(self._rows)} steps take up {self._bytes} bytes, more than "
                f"`max_bytes`, {self._max_bytes}. Keep a smaller share (`keep`), train fewer parameters (with an "
                "adapter), or use another method."
            )

    def records(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the records, by name.

        Args:
            weights: The parameters as they will serve.

        Raises:
            UnsupportedError: The parameters changed after the last step.
        """
        moved = [name for name, last in self._before.items() if not torch.equal(last.cpu(), weights[name].cpu())]
        if moved:
            raise UnsupportedError(
                f"{', '.join(moved[:5])} changed after the last step (weight averaging, for example), so the model is "
                "not the sum of its steps, and no step can be subtracted. Remove the cause, or use another method."
            )
        found = {
            _SIZES: torch.tensor([len(rows) for rows in self._rows], dtype=torch.long),
            _ROWS: torch.tensor([row for rows in self._rows for row in rows], dtype=torch.long),
        }
        for name, changes in self._changes.items():
            found[f"{_VALUES}.{name}"] = torch.stack([values for values, _ in changes])
            if self._keep < 1:
                found[f"{_PLACES}.{name}"] = torch.stack([places for _, places in changes])
        return found


def _sum_of(records: Mapping[str, Tensor], name: str, affected: Tensor, parameter: Tensor) -> Tensor:
    """Return the sum of a parameter's changes in some steps, in float64."""
    values = records[f"{_VALUES}.{name}"][affected].double()
    places = records.get(f"{_PLACES}.{name}")
    if places is None:
        return values.sum(0).reshape(parameter.shape)
    total = torch.zeros(parameter.numel(), dtype=torch.float64)
    return total.index_add_(0, places[affected].flatten(), values.flatten()).reshape(parameter.shape)
