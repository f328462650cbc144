"""Units that stand by: what may have to serve one day is in memory already."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_s3t.plan import UnitId
from lightning_s3t.tuning.serving.served import Load
from lightning_s3t.tuning.stages import Snapshot


class Standby:
    """Reads snapshots, and keeps them in the host's memory if it is to.

    Args:
        load: Reads a unit's snapshot.
        keep: Whether to keep all units that may serve, so that nothing is read after a request.

    Example:
        >>> import torch
        >>> standby, unit = Standby(lambda unit: {"w": torch.ones(1)}, keep=True), UnitId(0, (1,))
        >>> standby.renew({unit: "a digest"})
        >>> standby.load(unit) is standby.load(unit)
        True
    """

    def __init__(self, load: Load, keep: bool) -> None:
        self._load = load
        self._keep = keep
        self._kept: dict[UnitId, tuple[str, Snapshot]] = {}

    def renew(self, digests: Mapping[UnitId, str]) -> None:
        """Lets go of what may not serve any more, at once, and reads what is new.

        Args:
            digests: The digests of the snapshots of all units that may serve.
        """
        for unit in [unit for unit, (digest, _) in self._kept.items() if digests.get(unit) != digest]:
            del self._kept[unit]
        if self._keep:
            for unit in digests.keys() - self._kept.keys():
                self._kept[unit] = (digests[unit], self._load(unit))

    def load(self, unit: UnitId) -> Snapshot:
        """Returns a unit's snapshot, from memory if it is there.

        Args:
            unit: The unit, one of those that may serve.
        """
        return self._kept[unit][1] if unit in self._kept else self._load(unit)
