"""Typed JSON documents: a dataclass describes the contents, and pydantic validates them."""

from __future__ import annotations

import functools
import json
from typing import Any, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError

STRICT = ConfigDict(strict=True, extra="forbid")
"""Rejects unknown members, and text where a number is expected."""

_Kind = TypeVar("_Kind")


def read_json(kind: type[_Kind], text: str | bytes) -> _Kind:
    """Read a JSON document.

    Args:
        kind: The dataclass that describes it.
        text: The document.

    Raises:
        ValueError: The text is not such a document. The message is short, and names the invalid members.
    """
    try:
        found: _Kind = _adapter(cast(Any, kind)).validate_json(text)
        return found
    except ValidationError as error:
        raise ValueError(_summary(error)) from error


def json_schema(kind: type[Any]) -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a document.

    Args:
        kind: The dataclass that describes it.
    """
    return _adapter(cast(Any, kind)).json_schema()


def canonical(data: Any) -> str:
    """Return data as canonical JSON text, for digests and signatures.

    Args:
        data: JSON-ready.

    Example:
        >>> canonical({"b": 1, "a": [2]})
        '{"a":[2],"b":1}'
    """
    return json.dumps(data, sort_keys=True, separators=(",", ":"))


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _summary(error: ValidationError) -> str:
    found = [f"{'.'.join(map(str, one['loc'])) or 'the document'}: {one['msg']}" for one in error.errors()]
    return "; ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
