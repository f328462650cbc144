"""Records from local files: CSV, TSV, JSON and JSONL."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from lightning_s3t.errors import DataError

Record = dict[str, Any]


def read_records(path: Path) -> list[Record]:
    """Reads a file of records, in its order.

    CSV and TSV have a header line; JSONL has an object a line; JSON has a list of objects.

    Args:
        path: The file.

    Raises:
        DataError: It is missing, of another kind, or damaged.
    """
    kind = path.suffix.lower()
    if kind not in (".csv", ".tsv", ".json", ".jsonl"):
        raise DataError(
            f"The file {path} is of no known kind. Expected its name to end in .csv, .tsv, .json or .jsonl."
        )
    if not path.is_file():
        raise DataError(f"There is no file {path}. Expected records to train or to test on: check the path.")
    try:
        records = _read_table(path) if kind in (".csv", ".tsv") else _read_json(path, lines=kind == ".jsonl")
    except (ValueError, csv.Error) as error:
        raise DataError(f"The file {path} is damaged: {error}. Expected {kind[1:].upper()} in UTF-8.") from error
    if not records:
        raise DataError(f"The file {path} has no records. Expected one or more.")
    return records


def value_of(record: Record, column: str, path: Path, number: int) -> Any:
    """Returns a value of a record.

    Args:
        record: The record.
        column: The column.
        path: Its file, for the message.
        number: Its number in the file, from 0.

    Raises:
        DataError: The record does not have this column.
    """
    if record.get(column) is None:
        columns = ", ".join(str(name) for name in record if name is not None)
        raise DataError(
            f"Record {number} of {path} has no {column!r} (it has {columns}). Expected it in every record: check the "
            "columns' names."
        )
    return record[column]


def _read_table(path: Path) -> list[Record]:
    csv.field_size_limit(2**31 - 1)
    with path.open(newline="", encoding="utf-8-sig") as file:
        # TSV files of benchmarks have single quotation marks that quote nothing
        if path.suffix.lower() == ".tsv":
            return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        return list(csv.DictReader(file))


def _read_json(path: Path, lines: bool) -> list[Record]:
    text = path.read_text(encoding="utf-8-sig")
    # not splitlines(), which also splits at other characters that text may contain
    records = [json.loads(line) for line in text.split("\n") if line.strip()] if lines else json.loads(text)
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ValueError("it is not a list of objects")
    return records
