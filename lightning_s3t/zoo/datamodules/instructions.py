"""Instructions with answers, as Alpaca has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.zoo.datamodules.rows import OwnedData, OwnedRows, Part, hold_out
from lightning_s3t.zoo.datamodules.text_files import Record, read_records, value_of
from lightning_s3t.zoo.datamodules.tokens import PadRows, load_tokenizer, padding_of
from lightning_s3t.zoo.models.language_model import IGNORED

REQUEST = "Write a response that appropriately completes the request."
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    + REQUEST
    + "\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    + REQUEST
    + "\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)
"""The prompts of Stanford Alpaca."""


class InstructionData(OwnedData):
    """Records of `instruction`, `input` (which may be empty) and `output`, for CausalLM. Only the output is learnt.

    Args:
        tokenizer: The name of the tokenizer's model on the hub, or a folder.
        train: A JSON or JSONL file to train on.
        validation: The file to validate on.
        test: The file to test on; None for the one to validate on.
        validation_rows: Without such a file, how many of the first train records are held out for it.
        subject: The field of who owns the record; None if each record is its own owner, by its number.
        max_length: The most tokens of a record. If a row is longer, the beginning of the prompt is cut off, but at most
            half of it, and then the end of the output.
        batch_size: Rows per batch.
        workers: Processes that read rows.

    Raises:
        ConfigurationError: An argument is out of range, or the tokenizer is missing.
    """

    def __init__(
        self,
        tokenizer: str,
        train: str | Path,
        validation: str | Path | None = None,
        test: str | Path | None = None,
        validation_rows: int = 0,
        subject: str | None = None,
        max_length: int = 512,
        batch_size: int = 8,
        workers: int = 0,
    ) -> None:
        super().__init__(batch_size, workers)
        if max_length < 2:
            raise ConfigurationError(f"Expected argument `max_length` to be 2 or more but got {max_length}.")
        if validation is not None and validation_rows:
            raise ConfigurationError(
                f"Got a file for validation and validation_rows={validation_rows}. Expected one of them."
            )
        self.train_file = Path(train)
        self.files = {"val": validation, "test": test if test is not None else validation}
        self.validation_rows = validation_rows
        self.subject = subject
        self.max_length = max_length
        self.tokenizer = load_tokenizer(tokenizer)

    def load(self, part: Part) -> OwnedRows | None:
        """Load a part and tokenize it.

        Args:
            part: The part.

        Raises:
            DataError: A file is missing or damaged, or a record does not have the expected fields.
        """
        file = self.train_file if part == "train" else self.files[part]
        if file is not None and part != "train":
            return self._rows(Path(file), None)
        if part != "train" and not self.validation_rows:
            return None
        return self._rows(self.train_file, "train" if part == "train" else "val")

    def collate(self) -> Callable[[list[Any]], Any]:
        """Return the collate function that pads rows of tokens to batches."""
        return PadRows(padding_of(self.tokenizer))

    def encode(self, record: Record, file: Path, number: int) -> dict[str, list[int]]:
        """Return a record's tokens, and its labels: -100 over the prompt.

        Args:
            record: The record.
            file: Its file, for messages.
            number: Its number in the file.
        """
        instruction = str(value_of(record, "instruction", file, number))
        output = str(value_of(record, "output", file, number))
        context = str(record.get("input") or "")
        template = WITH_INPUT if context else WITHOUT_INPUT
        prompt = self._tokens(template.format(instruction=instruction, input=context))
        answer = self._tokens(output)
        if self.tokenizer.bos_token_id is not None:
            prompt = [self.tokenizer.bos_token_id, *prompt]
        if self.tokenizer.eos_token_id is not None:
            answer = [*answer, self.tokenizer.eos_token_id]
        prompt = prompt[-max(self.max_length - len(answer), self.max_length // 2) :]
        answer = answer[: self.max_length - len(prompt)]
        return {
            "input_ids": prompt + answer,
            "attention_mask": [1] * (len(prompt) + len(answer)),
            "labels": [IGNORED] * len(prompt) + answer,
        }

    def _tokens(self, text: str) -> list[int]:
        tokens: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokens

    def _rows(self, file: Path, part: Part | None) -> OwnedRows:
        records = read_records(file)
        numbers = range(len(records)) if part is None else hold_out(records, self.validation_rows, part)
        rows = [self.encode(records[number], file, number) for number in numbers]
        if self.subject is None:
            return OwnedRows(rows, [str(number) for number in numbers])
        return OwnedRows(rows, [str(value_of(records[number], self.subject, file, number)) for number in numbers])
