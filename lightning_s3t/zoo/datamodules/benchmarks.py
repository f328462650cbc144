"""The tasks of GLUE and SuperGLUE, through `datasets`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_s3t.errors import ConfigurationError, DataError
from lightning_s3t.zoo.datamodules.rows import Part
from lightning_s3t.zoo.extras import import_extra

SOURCES = {"glue": "nyu-mll/glue", "superglue": "aps/super_glue"}


@dataclass(frozen=True)
class TextRow:
    """A text, or a pair, with its label.

    Attributes:
        text: The text.
        pair: The second text of a pair.
        label: The class's number, or the number of a regression.
        owner: The owner's id.
    """

    text: str
    pair: str | None
    label: int | float
    owner: str


Questions = Callable[[Mapping[str, Any]], list[tuple[str, str | None, int | float]]]


def _columns(first: str, second: str | None = None) -> Questions:
    return lambda row: [(row[first], row[second] if second else None, row["label"])]


def _choices(row: Mapping[str, Any]) -> list[tuple[str, str | None, int | float]]:
    """COPA: each of the two choices is a question of its own."""
    return [(row["premise"], row[f"choice{choice + 1}"], int(row["label"] == choice)) for choice in (0, 1)]


def _word(row: Mapping[str, Any]) -> list[tuple[str, str | None, int | float]]:
    return [(f"{row['word']}: {row['sentence1']}", row["sentence2"], row["label"])]


def _paragraph(row: Mapping[str, Any]) -> list[tuple[str, str | None, int | float]]:
    return [(row["paragraph"], f"Question: {row['question']} Answer: {row['answer']}", row["label"])]


def _pronoun(row: Mapping[str, Any]) -> list[tuple[str, str | None, int | float]]:
    question = f"Question: In the passage above, does the pronoun '{row['span2_text']}' refer to {row['span1_text']}?"
    return [(row["text"], question, row["label"])]


TASKS: dict[str, tuple[Questions, int]] = {
    "glue/cola": (_columns("sentence"), 2),
    "glue/sst2": (_columns("sentence"), 2),
    "glue/mrpc": (_columns("sentence1", "sentence2"), 2),
    "glue/stsb": (_columns("sentence1", "sentence2"), 1),
    "glue/qqp": (_columns("question1", "question2"), 2),
    "glue/mnli": (_columns("premise", "hypothesis"), 3),
    "glue/qnli": (_columns("question", "sentence"), 2),
    "glue/rte": (_columns("sentence1", "sentence2"), 2),
    "superglue/boolq": (_columns("passage", "question"), 2),
    "superglue/cb": (_columns("premise", "hypothesis"), 3),
    "superglue/copa": (_choices, 2),
    "superglue/multirc": (_paragraph, 2),
    "superglue/rte": (_columns("premise", "hypothesis"), 2),
    "superglue/wic": (_word, 2),
    "superglue/wsc": (_pronoun, 2),
}
"""How each task's rows are asked as texts or pairs, and its number of classes (1 for a regression)."""


def load_task(task: str, part: Part, source: str | Path | None = None) -> list[TextRow]:
    """Loads a part of a task. Its test labels are secret, so its validation rows are the test rows too.

    The owner is the number of the row in the task's train rows: where a row asks two questions (COPA), both are its.

    Args:
        task: For example "glue/qnli".
        part: The part.
        source: The repository on the hub; or a local folder that has one folder a task, with the task's files in it.

    Raises:
        ConfigurationError: The task does not exist, or `datasets` is not installed.
        DataError: The rows cannot be loaded, or are those of another task.
    """
    check_task(task)
    questions, _ = TASKS[task]
    benchmark, _, name = task.partition("/")
    split = "train" if part == "train" else "validation_matched" if name == "mnli" else "validation"
    found = []
    for number, row in enumerate(_load(source or SOURCES[benchmark], name, split)):
        try:
            asked = questions(row)
        except KeyError as error:
            raise DataError(f"Rows of {task} have no {error} (they have {', '.join(row)}). Check `source`.") from error
        found += [TextRow(text, pair, label, str(number)) for text, pair, label in asked]
    return found


def check_task(task: str) -> None:
    """Raise an error if the task does not exist.

    Args:
        task: For example "glue/qnli".

    Raises:
        ConfigurationError: Naming those that there are.

    Example:
        >>> check_task("glue/chess")
        Traceback (most recent call last):
        ...
        lightning_s3t.errors.ConfigurationError: Expected argument `task` to be one of glue/cola, ...
    """
    if task not in TASKS:
        raise ConfigurationError(f"Expected argument `task` to be one of {', '.join(TASKS)} but got {task!r}.")


def _load(source: str | Path, name: str, split: str) -> Any:
    datasets = import_extra("datasets", "GLUE and SuperGLUE", "text")
    local = Path(source) / name
    try:
        if Path(source).is_dir():
            return datasets.load_dataset(str(local), split=split)
        return datasets.load_dataset(str(source), name, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"The rows {split} of {name} cannot be loaded from {source} ({error}). Expected a repository on the "
            f"hub, or a folder with files like {name}/{split}.parquet."
        ) from error
