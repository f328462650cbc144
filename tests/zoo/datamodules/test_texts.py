"""Texts from local files, and the tasks of GLUE and SuperGLUE."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from lightning_s3t.errors import ConfigurationError, DataError
from lightning_s3t.zoo.datamodules import OwnedRows, TextData
from lightning_s3t.zoo.datamodules.benchmarks import TASKS, load_task
from tests.zoo.datamodules.local import write_lines, write_tokenizer

HAS_DATASETS = importlib.util.find_spec("datasets") is not None


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def train_rows(data: TextData) -> OwnedRows:
    rows = data.rows("train")
    assert rows is not None
    return rows


def tokens(text: str) -> list[int]:
    return [byte + 3 for byte in text.encode()] + [1]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", 'text,label,who\n"good, really",1,ann\nbad,0,bob\n'),
        ("rows.tsv", "text\tlabel\twho\ngood, really\t1\tann\nbad\t0\tbob\n"),
        (
            "rows.jsonl",
            '{"text": "good, really", "label": 1, "who": "ann"}\n\n{"text": "bad", "label": 0, "who": "bob"}\n',
        ),
        (
            "rows.json",
            '[{"text": "good, really", "label": 1, "who": "ann"}, {"text": "bad", "label": 0, "who": "bob"}]',
        ),
    ],
)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, tokenizer: str, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    rows = train_rows(TextData(tokenizer, train=tmp_path / name, subject="who"))
    assert [row["input_ids"] for row in rows.rows] == [tokens("good, really"), tokens("bad")]
    assert [row["labels"] for row in rows.rows] == [1, 0]
    assert rows.owners == ["ann", "bob"]


def test_a_quotation_mark_in_tsv_quotes_nothing(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "rows.tsv").write_text('text\tlabel\n"so\t1\nit" goes\t0\n')
    rows = train_rows(TextData(tokenizer, train=tmp_path / "rows.tsv"))
    assert [row["input_ids"] for row in rows.rows] == [tokens('"so'), tokens('it" goes')]


def test_pairs_named_labels_and_rows_without_owners(tmp_path: Path, tokenizer: str) -> None:
    file = write_lines(
        tmp_path / "rows.jsonl", [{"a": "x", "b": "y", "label": "no"}, {"a": "z", "b": "", "label": "yes"}]
    )
    rows = train_rows(TextData(tokenizer, train=file, text="a", text_pair="b", labels=["no", "yes"]))
    assert [row["input_ids"] for row in rows.rows] == [tokens("x") + tokens("y"), tokens("z") + tokens("")]
    assert [row["labels"] for row in rows.rows] == [0, 1]
    assert rows.owners == ["0", "1"]


def test_labels_of_a_regression_are_numbers(tmp_path: Path, tokenizer: str) -> None:
    file = write_lines(tmp_path / "rows.jsonl", [{"text": "x", "label": "2.5"}])
    assert train_rows(TextData(tokenizer, train=file, regression=True))[0]["labels"] == 2.5


def test_long_texts_are_cut_and_batches_are_filled_up(tmp_path: Path, tokenizer: str) -> None:
    file = write_lines(tmp_path / "rows.jsonl", [{"text": "x" * 50, "label": 0}, {"text": "y", "label": 1}])
    data = TextData(tokenizer, train=file, validation=file, max_length=5)
    batch = next(iter(data.val_dataloader()))
    assert batch["input_ids"].tolist() == [[123, 123, 123, 123, 1], [124, 1, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 0, 0, 0]]
    assert batch["labels"].tolist() == [0, 1]


def test_parts_without_a_file_are_left_out(tmp_path: Path, tokenizer: str) -> None:
    data = TextData(tokenizer, train=write_lines(tmp_path / "rows.jsonl", [{"text": "x", "label": 0}]))
    assert data.val_dataloader() == []
    with pytest.raises(DataError, match=r"TextData has no test rows. Name them in its argument `test`"):
        data.test_dataloader()


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"text": "x"}], r"Record 0 of .* has no 'label' \(it has text\)"),
        ([{"text": None, "label": 1}], "Record 0 of .* has no 'text'"),
        ([{"text": "x", "label": 0}, {"text": "y", "label": "yes"}], "Record 1 of .* has the label 'yes'. .* labels="),
        ([], "has no records"),
    ],
)
def test_records_that_lack_something_are_named(
    tmp_path: Path, tokenizer: str, records: list[Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        TextData(tokenizer, train=write_lines(tmp_path / "rows.jsonl", records)).rows("train")


def test_a_label_that_is_not_in_the_list_is_named(tmp_path: Path, tokenizer: str) -> None:
    file = write_lines(tmp_path / "rows.jsonl", [{"text": "x", "label": "maybe"}])
    with pytest.raises(DataError, match=r"has the label 'maybe'. Expected one of `labels`: no, yes"):
        TextData(tokenizer, train=file, labels=["no", "yes"]).rows("train")


def test_a_row_whose_owner_is_empty_is_named(tmp_path: Path, tokenizer: str) -> None:
    file = write_lines(tmp_path / "rows.jsonl", [{"text": "x", "label": 0, "who": ""}])
    with pytest.raises(DataError, match="Row 0 has no owner"):
        TextData(tokenizer, train=file, subject="who").rows("train")


def test_files_that_cannot_be_read_are_named(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "broken.jsonl").write_text('{"text": ')
    (tmp_path / "number.json").write_text("17")
    for name, message in (
        ("none.csv", "There is no file .*none.csv"),
        ("rows.xlsx", "rows.xlsx is of no known kind"),
        ("broken.jsonl", "broken.jsonl is damaged"),
        ("number.json", "number.json is damaged: it is not a list of objects"),
    ):
        with pytest.raises(DataError, match=message):
            TextData(tokenizer, train=tmp_path / name).rows("train")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "`task` and `train` but got neither"),
        ({"task": "glue/rte", "train": "rows.csv"}, "but got both"),
        ({"task": "glue/chess"}, "`task` to be one of glue/cola.*got 'glue/chess'"),
        ({"train": "rows.csv", "max_length": 0}, "`max_length` to be 1 or more"),
    ],
)
def test_what_cannot_be_is_refused(tokenizer: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        TextData(tokenizer, **arguments)


def test_a_tokenizer_that_is_nowhere_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"The tokenizer '.*nowhere' was not found"):
        TextData(str(tmp_path / "nowhere"), train="rows.csv")


QUESTIONS: dict[str, tuple[dict[str, Any], list[tuple[str, str | None, float]]]] = {
    "glue/cola": ({"sentence": "s", "label": 1}, [("s", None, 1)]),
    "glue/mnli": ({"premise": "p", "hypothesis": "h", "label": 2}, [("p", "h", 2)]),
    "glue/stsb": ({"sentence1": "a", "sentence2": "b", "label": 3.2}, [("a", "b", 3.2)]),
    "superglue/boolq": ({"passage": "p", "question": "q", "label": 0}, [("p", "q", 0)]),
    "superglue/copa": (
        {"premise": "p", "choice1": "a", "choice2": "b", "label": 1},
        [("p", "a", 0), ("p", "b", 1)],
    ),
    "superglue/multirc": (
        {"paragraph": "p", "question": "q", "answer": "a", "label": 1},
        [("p", "Question: q Answer: a", 1)],
    ),
    "superglue/wic": ({"word": "w", "sentence1": "a", "sentence2": "b", "label": 0}, [("w: a", "b", 0)]),
    "superglue/wsc": (
        {"text": "t", "span1_text": "Ann", "span2_text": "she", "label": 1},
        [("t", "Question: In the passage above, does the pronoun 'she' refer to Ann?", 1)],
    ),
}


@pytest.mark.parametrize("task", QUESTIONS)
def test_a_tasks_rows_are_asked_as_texts_or_pairs(task: str) -> None:
    row, expected = QUESTIONS[task]
    assert TASKS[task][0](row) == expected


@pytest.mark.skipif(HAS_DATASETS, reason="datasets is installed")
def test_without_datasets_a_task_says_how_to_install_it(tokenizer: str) -> None:
    with pytest.raises(ConfigurationError, match=r'need datasets: pip install "lightning-s3t\[text\]"'):
        TextData(tokenizer, task="glue/rte").rows("train")


@pytest.mark.skipif(not HAS_DATASETS, reason="datasets is not installed")
def test_a_task_is_loaded_from_a_local_folder(tmp_path: Path, tokenizer: str) -> None:
    rows: list[Any] = [{"premise": "p", "choice1": "a", "choice2": "b", "label": label} for label in (0, 1)]
    for part in ("train", "validation"):
        write_lines(tmp_path / "copa" / f"{part}.jsonl", rows)
    found = train_rows(TextData(tokenizer, task="superglue/copa", source=str(tmp_path)))
    assert [row["labels"] for row in found.rows] == [1, 0, 0, 1]
    assert found.owners == ["0", "0", "1", "1"]
    with pytest.raises(DataError, match="cannot be loaded from"):
        load_task("superglue/cb", "train", tmp_path)
    (tmp_path / "copa").rename(tmp_path / "wic")
    with pytest.raises(DataError, match="Rows of superglue/wic have no 'word'"):
        load_task("superglue/wic", "train", tmp_path)
