"""Receipts: what was requested, revoked and erased, what still serves, and with which guarantee."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any

from pydantic import Field

from lightning_s3t.core.documents import STRICT, json_schema, read_json
from lightning_s3t.core.events import RequestKind
from lightning_s3t.core.guarantees import Certificate, Guarantee, Isolation
from lightning_s3t.errors import StoreError

FORMAT = 4

_Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class Receipt:
    """The answer to a request, for the person who made it: no ids, no digests of snapshots, no place in the partition.

    Attributes:
        kind: The kind of request: "forget", "rectify", "restrict" or "release".
        request: The request's number, from 1.
        request_id: The caller's name for the request; None without a name.
        time: When it was carried out (UTC, ISO 8601).
        subjects: Number of subjects in the request.
        already_forgotten: Number of them that had been forgotten before.
        already_restricted: Number of them that had been restricted before.
        unknown: Number of them that the store had never seen; None without a registry.
        revoked_units: Number of units that may never serve again.
        set_aside_units: Number of units that are kept but do not serve until the restriction ends.
        returned_units: Number of units that had been set aside and serve again.
        erased_files: Number of removed files.
        erased_bytes: Their size.
        missing_files: Number of registered files that were missing: something else had moved or removed them.
        left_files: Number of files that were left alone because they may not be the store's any more: a file was
            changed, or belongs to the store that this one is a copy of. `s3t store verify` names them.
        method: The unlearning method.
        guarantee: The guarantee of everything that still serves, units and closed-form head: "exact" is bitwise equal
            to a training without the subjects; "certified" is within the bounds of the certificate; for "empirical"
            nothing is proven, and only measurements can tell.
        isolation: How units were isolated from each other during training; the guarantee depends on it. "forkserver"
            and "fork" use a process for each unit; with "none" they shared one, and state that is not compared between
            units (globals, class attributes) is not covered.
        versions: Versions of the packages involved.
        position: The position of the newest event in the store's chain that belongs to the request.
        chain: That event's digest. With it, later changes to the store's history can be detected.
        certificate: With the guarantee "certified", its numbers, and what they say under which assumptions.

    Example:
        >>> receipt = Receipt("forget", 1, None, "2026-01-01T00:00:00+00:00", 1, 0, 0, 0, 1, 0, 0, 2, 1, 100, 0, 0,
        ...     "s3t", "exact", "forkserver", {}, 2, "ab" * 32)
        >>> Receipt.from_json(receipt.to_json()) == receipt
        True
    """

    __pydantic_config__ = STRICT

    kind: Annotated[
        RequestKind,
        Field(
            description="What was asked for. forget: erasure. rectify: everything that the old data reached is "
            "removed, and the next fit trains on the corrected data. restrict: everything that the data reached is "
            "set aside. release: the end of a restriction."
        ),
    ]
    request: Annotated[int, Field(ge=1, description="The request's number.")]
    request_id: Annotated[
        str | None, Field(description="The name that the caller gave the request; null without a name.")
    ]
    time: Annotated[str, Field(description="When it was carried out (UTC).", json_schema_extra={"format": "date-time"})]
    subjects: Annotated[_Count, Field(description="How many subjects were in the request.")]
    already_forgotten: Annotated[_Count, Field(description="How many of them had been forgotten before.")]
    already_restricted: Annotated[_Count, Field(description="How many of them had been restricted before.")]
    unknown: Annotated[
        _Count | None,
        Field(description="How many of them the store had never seen; null if it keeps no registry."),
    ]
    revoked_units: Annotated[_Count, Field(description="How many units may never serve again.")]
    set_aside_units: Annotated[
        _Count, Field(description="How many units are kept but do not serve until the restriction ends.")
    ]
    returned_units: Annotated[_Count, Field(description="How many units that had been set aside serve again.")]
    subtracted_rows: Annotated[
        _Count,
        Field(
            description="How many rows were subtracted from the sums of a closed-form head on the pretrained network."
        ),
    ]
    erased_files: Annotated[_Count, Field(description="How many files were removed.")]
    erased_bytes: Annotated[_Count, Field(description="Their size.")]
    missing_files: Annotated[
        _Count, Field(description="How many registered files were missing: something else had moved or removed them.")
    ]
    left_files: Annotated[
        _Count,
        Field(
            description="How many registered files were left alone because they may not be the store's any more: the "
            "file was changed, or it belongs to the store that this one is a copy of."
        ),
    ]
    method: Annotated[str, Field(description="The unlearning method.")]
    guarantee: Annotated[
        Guarantee,
        Field(
            description="What is promised of everything that still serves: units, and the closed-form head. exact: "
            "bitwise what a training without the subjects gives. certified: within the bounds of the certificate. "
            "empirical: nothing is proven; only measurements can tell."
        ),
    ]
    isolation: Annotated[
        Isolation,
        Field(
            description="How units were kept apart while they were trained; the guarantee depends on it. none: they "
            "shared a process, and globals and class attributes of the script are not covered."
        ),
    ]
    versions: Annotated[dict[str, str], Field(description="Versions of the packages involved.")]
    position: Annotated[
        int,
        Field(ge=1, description="The position of the newest event in the store's chain that belongs to the request."),
    ]
    chain: Annotated[
        str,
        Field(pattern="^[0-9a-f]{64}$", description="That event's SHA-256, which binds all events before it."),
    ]

    certificate: Annotated[
        Certificate | None,
        Field(description="The numbers of a certified guarantee, and what they say; absent or null for another."),
    ] = field(default=None, kw_only=True)

    def to_json(self) -> str:
        """Return the receipt as a JSON document (schema: docs/receipt.schema.json)."""
        document = {"format": FORMAT, **asdict(self.receipt)}
        if self.certificate is None:
            del document["certificate"]
        return json.dumps(document, indent=2, sort_keys=True)

    @property
    def promise(self) -> str:
        """The guarantee with its numbers, in words."""
        return str(self.certificate) if self.certificate is not None else self.guarantee

    @property
    def receipt(self) -> Receipt:
        """The receipt for the person who made the request."""
        return self

    @classmethod
    def from_json(cls, text: str) -> Receipt:
        """Read the output of `to_json`; a signature is ignored.

        Args:
            text: A JSON document.

        Raises:
            StoreError: It is not a receipt, or its format is different.
        """
        try:
            data: Any = json.loads(text, object_pairs_hook=_each_name_once)
        except (ValueError, RecursionError) as error:
            raise StoreError(
                f"The receipt is not a JSON document: {error}. Expected what `s3t forget --json` prints."
            ) from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            found = data.get("format") if isinstance(data, dict) else type(data).__name__
            raise StoreError(f"The document has format {found!r}. Expected a receipt of format {FORMAT}.")
        data = {name: value for name, value in data.items() if name not in ("format", "signature")}
        try:
            return read_json(cls, json.dumps(data))
        except ValueError as error:
            names = ", ".join(field.name for field in fields(cls) if field.name not in data)
            lacks = f" It lacks {names}." if names else ""
            raise StoreError(f"The document is not a valid receipt: {error}.{lacks}") from error


@dataclass(frozen=True)
class RequestRecord(Receipt):
    """The store keeper's record of a request: the receipt, and the units that it reached.

    The units reveal which slice the data was in, so `receipt` and `to_json` leave them out.

    Attributes:
        revoked: The units that may never serve again; a unit that had been set aside may have the same name as one that
            was trained since, so a name may appear twice.
        serving: For each shard that the request reached, the unit that served after it was carried out; None if none
            was left. Shards that it did not reach are not included; empty for a method without units.
        exports: The exported copies that it reached: their files are erased. A holder of another copy can recognise it
            by the name, which is in the file and in the JSON file next to it, and has to erase it.
        set_aside: The units that are kept but no longer serve.
        returned: The units that had been set aside and serve again.
    """

    __pydantic_config__ = STRICT

    revoked: tuple[str, ...]
    serving: dict[str, str | None]
    exports: tuple[str, ...] = ()
    set_aside: tuple[str, ...] = ()
    returned: tuple[str, ...] = ()

    @property
    def receipt(self) -> Receipt:
        """The receipt for the person who made the request."""
        return Receipt(**{field.name: getattr(self, field.name) for field in fields(Receipt)})


@dataclass(frozen=True)
class _Signature:
    __pydantic_config__ = STRICT

    algorithm: Annotated[str, Field(pattern="^Ed25519$")]
    public_key: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    value: Annotated[str, Field(pattern="^[0-9a-f]{128}$")]


def receipt_schema() -> dict[str, Any]:
    """Return the JSON schema of a receipt's document; docs/receipt.schema.json is a copy."""
    schema = json_schema(Receipt)
    signature = json_schema(_Signature)
    signature["description"] = (
        "Ed25519 signature of the document without this member, as JSON with sorted keys and no spaces, in UTF-8 "
        "with ASCII escapes."
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Receipt of a request",
        "type": "object",
        "properties": {
            "format": {"const": FORMAT, "description": "The version of this schema."},
            **schema["properties"],
            "signature": {name: value for name, value in signature.items() if name != "title"},
        },
        "required": ["format", *schema["required"]],
        "additionalProperties": False,
        "$defs": schema["$defs"],
    }


def _each_name_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # of duplicate members, some readers use the first and some the last: a signature would be valid for only one of
    # them
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name appears twice")
    return found
