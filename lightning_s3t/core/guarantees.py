"""Guarantees: what a method promises about an artifact after a request, and how its training was isolated."""

from __future__ import annotations

from typing import Literal

Guarantee = Literal["exact", "certified", "empirical"]
"""Bitwise equal to a training without the data; within (epsilon, delta) of it; or only measured."""

Response = Literal["revoke", "subtract", "replace"]
"""What a request does: remove the units that it reaches at once; subtract the rows from a closed-form head at once,
where there are no units; or have the next fit replace the unit."""

Isolation = Literal["forkserver", "fork", "none"]
"""How units were kept apart: a fresh process each, a fork of the script each, or one process for all."""
