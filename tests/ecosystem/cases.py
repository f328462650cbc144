"""What a case is: a script as other people write it, and what S3T is expected to do with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from torch.utils.data import DataLoader, Dataset

from tests.people import People

SUBJECT = "user-3"
Kind = Literal["D", "without"]
Outcome = Literal["exact", "refused", "behaves", "warned"]


class Samples(Dataset[Any]):
    """Samples in a list, each owned by somebody."""

    def __init__(self, samples: Sequence[Any], owners: Sequence[str]) -> None:
        self.samples = list(samples)
        self.owners = list(owners)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, row: int) -> Any:
        return self.samples[row]


@dataclass(frozen=True)
class Variant:
    """The data of one fit: all of it, or without the subject's rows."""

    kind: Kind

    def people(self) -> People:
        people = People.make()
        return people.without(SUBJECT) if self.kind == "without" else people

    def samples(self, samples: Sequence[Any]) -> Samples:
        """Samples of which each belongs to a user of its own; `user-3` is the one who asks."""
        owners = [f"user-{row}" for row in range(len(samples))]
        if self.kind == "without":
            return Samples([*samples[:3], *samples[4:]], [*owners[:3], *owners[4:]])
        return Samples(samples, owners)


@dataclass
class Script:
    """What a case's script gives to `trainer.fit`.

    Attributes:
        module: The module.
        data: A data module or a train dataloader; None where the module has one.
        test: What the served module is tested with; None to leave that out.
        s3t: Arguments of the callback: the lines that were needed, and sizes.
        trainer: Arguments of the trainer.
        answer: Asks the served module, for cases without a test.
    """

    module: pl.LightningModule
    data: Any
    test: Any = None
    s3t: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    answer: Callable[[Any], Any] | None = None
    serving: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """A case.

    Attributes:
        name: What is tried.
        make: Makes the script, or does all by itself (`outcome` "behaves").
        outcome: "exact": all three guarantees hold. "refused": the fit raises, before there is a store. "behaves": the
            function's own assertions hold. "warned": they hold, and what they hold of is a warning.
        needed: The lines that had to be added to the script; empty for none.
        error: What is raised, by name, and a part of its message.
        reason: Why it is refused, for the table.
    """

    name: str
    make: Callable[..., Any]
    outcome: Outcome
    needed: str = ""
    error: tuple[str, str] = ("", "")
    reason: str = ""


CASES: list[Case] = []


def exact(name: str, needed: str = "") -> Callable[[Callable[[Variant], Script]], Callable[[Variant], Script]]:
    """A script with which all guarantees hold."""

    def note(make: Callable[[Variant], Script]) -> Callable[[Variant], Script]:
        CASES.append(Case(name, make, "exact", needed))
        return make

    return note


def refused(
    name: str, error: str, message: str, reason: str
) -> Callable[[Callable[[Variant], Script]], Callable[[Variant], Script]]:
    """A script that is refused before anything is changed."""

    def note(make: Callable[[Variant], Script]) -> Callable[[Variant], Script]:
        CASES.append(Case(name, make, "refused", "", (error, message), reason))
        return make

    return note


def behaves(
    name: str, needed: str = "", reason: str = "", warned: str = ""
) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """A script whose end is not that of a training; with a reason, one that is refused, or warned of."""

    def note(run: Callable[[Path], None]) -> Callable[[Path], None]:
        CASES.append(Case(name, run, "warned" if warned else "behaves", needed, ("", ""), reason or warned))
        return run

    return note


def loader(data: Dataset[Any], batch_size: int = 8, **arguments: Any) -> DataLoader[Any]:
    """A shuffled dataloader."""
    return DataLoader(data, batch_size, **{"shuffle": True, **arguments})
