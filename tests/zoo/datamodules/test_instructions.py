"""Instructions with answers, as Alpaca has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from lightning_s3t.errors import ConfigurationError, DataError
from lightning_s3t.zoo.datamodules import InstructionData, OwnedRows
from tests.zoo.datamodules.local import write_lines, write_tokenizer

PLAIN = {"instruction": "Say hello.", "input": "", "output": "Hello"}
WITH_INPUT = {"instruction": "Add.", "input": "1 1", "output": "2"}
PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nSay hello.\n\n### Response:\n"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def rows_of(data: InstructionData, part: Any = "train") -> OwnedRows:
    rows = data.rows(part)
    assert rows is not None
    return rows


def test_the_prompt_is_read_and_the_answer_is_learnt(tmp_path: Path, tokenizer: str) -> None:
    row = rows_of(InstructionData(tokenizer, write_lines(tmp_path / "rows.jsonl", [PLAIN])))[0]
    prompt = [byte + 3 for byte in PROMPT.encode()]
    answer = [byte + 3 for byte in b"Hello"] + [1]
    assert row["input_ids"] == prompt + answer
    assert row["labels"] == [-100] * len(prompt) + answer
    assert row["attention_mask"] == [1] * len(row["input_ids"])


def test_an_input_is_put_between(tmp_path: Path, tokenizer: str) -> None:
    row = rows_of(InstructionData(tokenizer, write_lines(tmp_path / "rows.jsonl", [WITH_INPUT])))[0]
    text = AutoTokenizer.from_pretrained(tokenizer).decode(row["input_ids"], skip_special_tokens=True)
    assert "paired with an input" in text
    assert text.endswith("### Instruction:\nAdd.\n\n### Input:\n1 1\n\n### Response:\n2")


@pytest.mark.parametrize(
    ("prompt", "output", "kept"), [("p" * 99, "abc", 4), ("p" * 99, "a" * 99, 8), ("", "a" * 99, 8)]
)
def test_of_a_long_record_the_end_of_the_prompt_and_the_start_of_the_answer_are_kept(
    tmp_path: Path, tokenizer: str, prompt: str, output: str, kept: int
) -> None:
    record = {"instruction": prompt, "output": output}
    row = rows_of(InstructionData(tokenizer, write_lines(tmp_path / "rows.jsonl", [record]), max_length=16))[0]
    assert len(row["input_ids"]) == len(row["labels"]) == 16
    learnt = [label for label in row["labels"] if label != -100]
    assert learnt == ([byte + 3 for byte in output.encode()] + [1])[:kept]
    assert row["input_ids"][15 - kept] == ord("\n") + 3


def test_alpacas_one_file_is_cut_for_validation_and_owners_keep_their_numbers(tmp_path: Path, tokenizer: str) -> None:
    file = tmp_path / "alpaca.json"
    file.write_text(json.dumps([PLAIN, WITH_INPUT, PLAIN]))
    data = InstructionData(tokenizer, file, validation_rows=1)
    assert rows_of(data).owners == ["1", "2"]
    assert rows_of(data, "val").owners == ["0"]
    assert rows_of(data, "test").owners == ["0"]
    assert InstructionData(tokenizer, file).val_dataloader() == []


def test_owners_come_from_a_field(tmp_path: Path, tokenizer: str) -> None:
    file = write_lines(tmp_path / "rows.jsonl", [{**PLAIN, "who": "ann"}, {**PLAIN, "who": 7}])
    assert rows_of(InstructionData(tokenizer, file, subject="who")).owners == ["ann", "7"]
    with pytest.raises(DataError, match=r"Record 0 of .* has no 'whom'"):
        InstructionData(tokenizer, file, subject="whom").rows("train")


def test_batches_are_filled_up_with_what_is_not_learnt(tmp_path: Path, tokenizer: str) -> None:
    file = write_lines(tmp_path / "rows.jsonl", [PLAIN, {**PLAIN, "output": "Hello there"}])
    data = InstructionData(tokenizer, file, validation=file)
    batch = next(iter(data.val_dataloader()))
    assert batch["labels"][0, -6:].tolist() == [-100] * 6
    assert batch["attention_mask"][0, -6:].tolist() == [0] * 6
    assert next(iter(data.test_dataloader()))["input_ids"].tolist() == batch["input_ids"].tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_length": 1}, "`max_length` to be 2 or more"),
        ({"validation": "rows.json", "validation_rows": 1}, "Expected one of them"),
    ],
)
def test_what_cannot_be_is_refused(tokenizer: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        InstructionData(tokenizer, "rows.json", **arguments)


def test_a_record_without_an_output_is_named(tmp_path: Path, tokenizer: str) -> None:
    with pytest.raises(DataError, match=r"Record 0 of .* has no 'output'"):
        InstructionData(tokenizer, write_lines(tmp_path / "rows.jsonl", [{"instruction": "x"}])).rows("train")
