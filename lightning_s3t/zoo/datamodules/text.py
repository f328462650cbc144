"""Texts and pairs of texts, from local files or from GLUE and SuperGLUE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning_s3t.errors import ConfigurationError, DataError
from lightning_s3t.zoo.datamodules.benchmarks import TASKS, TextRow, check_task, load_task
from lightning_s3t.zoo.datamodules.rows import OwnedData, OwnedRows, Part
from lightning_s3t.zoo.datamodules.text_files import Record, read_records, value_of
from lightning_s3t.zoo.datamodules.tokens import PadRows, load_tokenizer, padding_of


class TextData(OwnedData):
    """Texts with labels, for TextClassifier: a task by its name, or files of your own.

    Args:
        tokenizer: The name of the tokenizer's model on the hub, or a folder.
        task: A task of GLUE or SuperGLUE, for example "glue/qnli" or "superglue/boolq"; needs `datasets`.
        source: The source of the task, if not its usual repository: another one, or a local folder with one folder per
            task.
        train: Instead of a task: a CSV, TSV or JSONL file to train on.
        validation: The file to validate on.
        test: The file to test on.
        text: The column of the text.
        text_pair: The column of the second text of a pair.
        label: The column of the label.
        labels: The names of the classes in order, where the column has names and not numbers from 0. They are an
            argument, since a list collected from all rows would depend on all of them.
        regression: Whether labels are numbers to predict.
        subject: The column of who owns the row; None if each row is its own owner, by its number.
        max_length: The largest number of tokens of a row; the rest is cut off.
        batch_size: Rows per batch.
        workers: Processes that read rows.

    Raises:
        ConfigurationError: Neither or both of task and train are given, or the tokenizer is missing.
    """

    def __init__(
        self,
        tokenizer: str,
        task: str | None = None,
        source: str | None = None,
        train: str | Path | None = None,
        validation: str | Path | None = None,
        test: str | Path | None = None,
        text: str = "text",
        text_pair: str | None = None,
        label: str = "label",
        labels: Sequence[str] | None = None,
        regression: bool = False,
        subject: str | None = None,
        max_length: int = 256,
        batch_size: int = 32,
        workers: int = 0,
    ) -> None:
        super().__init__(batch_size, workers)
        if (task is None) == (train is None):
            raise ConfigurationError(
                f"Expected one of the arguments `task` and `train` but got {'neither' if task is None else 'both'}. "
                "Give the name of a task of GLUE or SuperGLUE, or a file of your own."
            )
        if task is not None:
            check_task(task)
            regression = TASKS[task][1] == 1
        if max_length < 1:
            raise ConfigurationError(f"Expected argument `max_length` to be 1 or more but got {max_length}.")
        self.task = task
        self.source = source
        self.files: dict[Part, Path | None] = {
            "train": Path(train) if train is not None else None,
            "val": Path(validation) if validation is not None else None,
            "test": Path(test) if test is not None else None,
        }
        self.columns = (text, text_pair, label, subject)
        self.labels = list(labels) if labels is not None else None
        self.regression = regression
        self.max_length = max_length
        self.tokenizer = load_tokenizer(tokenizer)

    def load(self, part: Part) -> OwnedRows | None:
        """Load a part and tokenize it.

        Args:
            part: The part.

        Raises:
            DataError: A file is missing or damaged, or a record does not have the expected fields.
        """
        file = self.files[part]
        if self.task is not None:
            rows = load_task(self.task, part, self.source)
        elif file is not None:
            rows = [self._row(record, file, number) for number, record in enumerate(read_records(file))]
        else:
            return None
        pairs = [row.pair for row in rows]
        encoded = self.tokenizer(
            [row.text for row in rows],
            None if pairs[0] is None else pairs,
            truncation=True,
            max_length=self.max_length,
        )
        samples = [
            {**{name: encoded[name][number] for name in encoded}, "labels": row.label}
            for number, row in enumerate(rows)
        ]
        return OwnedRows(samples, [row.owner for row in rows])

    def collate(self) -> Callable[[list[Any]], Any]:
        """Return the collate function that pads rows of tokens to batches."""
        return PadRows(padding_of(self.tokenizer))

    def _row(self, record: Record, file: Path, number: int) -> TextRow:
        text, text_pair, label, subject = self.columns
        return TextRow(
            str(value_of(record, text, file, number)),
            str(value_of(record, text_pair, file, number)) if text_pair else None,
            self._label(value_of(record, label, file, number), file, number),
            str(value_of(record, subject, file, number)) if subject else str(number),
        )

    def _label(self, value: Any, file: Path, number: int) -> int | float:
        if self.labels is not None:
            if str(value) not in self.labels:
                raise DataError(
                    f"Record {number} of {file} has the label {value!r}. Expected one of `labels`: "
                    f"{', '.join(self.labels)}."
                )
            return self.labels.index(str(value))
        try:
            return float(value) if self.regression else int(value)
        except ValueError as error:
            raise DataError(
                f"Record {number} of {file} has the label {value!r}. Expected a number from 0; where labels have "
                "names, give them in order: labels=[...]."
            ) from error
