"""Metrics for Prometheus: of the store, and of all processes of the prediction server combined.

Each process of the prediction server counts in its own file (prometheus-client's multiprocess mode), which stays after
the process has died; the control server adds the files up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector

from lightning_s3t.store import Store


class StoreCollector:
    """The state of a store, as metrics.

    Args:
        store: The opened store.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def collect(self) -> Iterator[Any]:
        """Return the metrics as they are now."""
        found = self._store.status()
        values = {
            "requests": ("Requests that were carried out.", found.requests),
            "forgotten_subjects": ("Subjects that are forgotten.", self._store.count_forgotten()),
            "restricted_subjects": ("Subjects that are restricted.", found.restricted),
            "waiting_subjects": ("Subjects that wait for the next fit to forget them.", found.waiting),
            "scheduled_subjects": ("Subjects of scheduled requests.", sum(n for _, n in self._store.pending())),
            "shards": ("Shards.", found.shards),
            "shards_serving": ("Shards that serve.", len(found.serving)),
            "floor_rows": ("Rows of the closed-form head that answers; 0 without one.", found.floor_rows or 0),
            "capacity_requests": ("Expected requests until nothing is left.", found.capacity),
            "capacity_full_requests": ("The same with every unit alive.", found.full_capacity),
        }
        for name, (what, value) in values.items():
            yield GaugeMetricFamily(f"s3t_store_{name}", what, value=value if math.isfinite(value) else math.inf)


def render(store: Store, multiprocess: str | None) -> tuple[bytes, str]:
    """Return the metrics in Prometheus' text format, and its media type.

    Args:
        store: The opened store.
        multiprocess: The folder with the counts of the prediction server's processes; None without one.
    """
    registry = CollectorRegistry()
    registry.register(StoreCollector(store))  # type: ignore[arg-type]
    if multiprocess is not None:
        MultiProcessCollector(registry, path=multiprocess)  # type: ignore[no-untyped-call]
    return generate_latest(registry), CONTENT_TYPE_LATEST
