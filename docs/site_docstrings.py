"""What Griffe, which reads the docstrings for the reference, has to know of ours."""

from __future__ import annotations

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"^(\s*)Example:$", re.MULTILINE)


class DoctestExamples(griffe.Extension):
    """Show `Example:` sections as code: Griffe knows them as `Examples:` alone."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for each object that was read.

        Args:
            obj: The object.
            kwargs: What else Griffe gives.
        """
        if obj.docstring is not None:
            obj.docstring.value = _EXAMPLE.sub(r"\1Examples:", obj.docstring.value)
