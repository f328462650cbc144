"""Rows with owners, and what all data modules share."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch

from lightning_s3t.errors import ConfigurationError, DataError
from lightning_s3t.zoo.datamodules import DigitsData, OwnedRows
from lightning_s3t.zoo.datamodules.rows import hold_out


def test_without_owners_each_row_is_its_own() -> None:
    assert OwnedRows("abc").owners == ["0", "1", "2"]


def test_a_row_is_made_when_it_is_asked_for() -> None:
    rows = OwnedRows([1, 2, 3], read=lambda row: row * 10)
    assert [rows[number] for number in range(len(rows))] == [10, 20, 30]


@pytest.mark.parametrize(("owners", "message"), [(["ann"], "1 owners for 2 rows"), (["ann", ""], "Row 1 has no owner")])
def test_every_row_has_one_owner(owners: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        OwnedRows([1, 2], owners)


def test_the_first_rows_are_held_out_so_that_later_ones_move_nothing() -> None:
    assert list(hold_out("abcd", 1, "val")) == [0]
    assert list(hold_out("abcd", 1, "train")) == [1, 2, 3]
    assert list(hold_out("abcdef", 1, "val")) == [0]
    with pytest.raises(DataError, match="Cannot hold out 4 of 4 rows"):
        hold_out("abcd", 4, "train")


def test_the_digits_are_the_same_at_every_load_and_no_row_is_in_two_parts() -> None:
    first, second = DigitsData(seed=3), DigitsData(seed=3)
    seen = set()
    for part, count in (("train", 1197), ("val", 200), ("test", 400)):
        rows, again = first.load(part), second.load(part)  # type: ignore[arg-type]
        assert len(rows) == count
        assert rows.owners == again.owners
        assert all(torch.equal(a[0], b[0]) and a[1] == b[1] for a, b in zip(rows.rows, again.rows, strict=True))
        seen |= {image.numpy().tobytes() for image, _ in rows.rows}
    assert len(seen) == 1797


def test_the_digits_belong_to_as_many_people_as_are_asked_for() -> None:
    assert set(DigitsData(people=5).load("train").owners) == {f"person-{number}" for number in range(5)}


class Means(pl.LightningModule):
    """Answers with each image's mean."""

    def predict_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        return batch[0].mean((1, 2, 3))


def test_a_trainer_predicts_the_test_rows_in_their_order() -> None:
    data = DigitsData(batch_size=150)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    found = torch.cat(trainer.predict(Means(), datamodule=data))
    assert torch.equal(found, torch.stack([image.mean() for image, _ in data.load("test").rows]))


def test_training_is_shuffled_and_evaluation_is_not() -> None:
    data = DigitsData(batch_size=200)
    labels = [label for _, label in data.load("val").rows]
    assert next(iter(data.val_dataloader()))[1].tolist() == labels
    torch.manual_seed(0)
    first = next(iter(data.train_dataloader()))[1].tolist()
    assert first != [label for _, label in data.load("train").rows[:200]]


@pytest.mark.parametrize("arguments", [{"batch_size": 0}, {"workers": -1}, {"people": 0}])
def test_what_cannot_be_is_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match=f"`{next(iter(arguments))}` to be"):
        DigitsData(**arguments)
