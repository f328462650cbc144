"""Guarantees: what a method promises of an artifact after a request, and how its training was kept apart."""

from __future__ import annotations

from typing import Literal

Guarantee = Literal["exact", "certified", "empirical"]
"""Bitwise what a training without the data gives; within (epsilon, delta) of it; or only as measured."""

Response = Literal["revoke", "replace"]
"""What a request does to a unit that it reaches: takes it out at once, or has the next fit put another in its place."""

Isolation = Literal["forkserver", "fork", "none"]
"""How units were kept apart: a fresh process each, a fork of the script each, or one process for all."""
