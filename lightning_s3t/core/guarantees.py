"""Guarantees: what a method promises about an artifact after a request, and how its training was isolated."""

from __future__ import annotations

from typing import Literal

Guarantee = Literal["exact", "certified", "empirical"]
"""Bitwise equal to a training without the data; within (epsilon, delta) of it; or only measured."""

Response = Literal["revoke", "replace"]
"""What a request does to a unit that it reaches: remove it at once, or have the next fit replace it."""

Isolation = Literal["forkserver", "fork", "none"]
"""How units were kept apart: a fresh process each, a fork of the script each, or one process for all."""
