"""The errors of lightning_s3t: one tree, so that `except S3TError` catches all of them.

Every message names the thing, says what was found and what was expected, and ends with what to do. All are raised
before anything is changed, except `LeakageError`, which is raised instead of keeping a trained unit.
"""


class S3TError(Exception):
    """Base class of every error that lightning_s3t raises on purpose."""


class ConfigurationError(S3TError, ValueError):
    """An argument, or a combination of arguments, that cannot work."""


class UnsupportedError(ConfigurationError):
    """A feature of the trainer, the model or the data for which exactness cannot be promised (yet)."""


class LayersError(ConfigurationError):
    """The layer groups or the head were not found in the model, or do not fit the number of slices."""


class AdapterError(ConfigurationError):
    """An adapter configuration that PEFT cannot inject, or that would change pretrained weights."""


class DataError(ConfigurationError):
    """A training data set that cannot be divided into slices: no fixed length, unstable ids, an empty slice."""


class StoreError(S3TError):
    """The store cannot be used: missing, damaged, locked, or not a store."""


class LedgerUnreachableError(StoreError):
    """The ledger cannot be read or written at the moment because of the server, the network, the disk or a lock."""


class DamagedError(StoreError):
    """A unit's snapshot is missing or corrupted."""


class RolledBackError(StoreError):
    """A ledger in a database has lost changes: a standby that was behind took over."""


class MovedError(StoreError):
    """A store was retired: it was copied elsewhere, and the copy has replaced it.

    Attributes:
        target: The folder of the copy.
        token: A token that identifies the copy.
    """

    def __init__(self, store: object, target: str, token: str) -> None:
        self.store, self.target, self.token = store, target, token
        super().__init__(store, target, token)

    def __str__(self) -> str:
        return (
            f"The store {self.store} was retired: it was copied to {self.target}, which has replaced it. Nothing was "
            f"changed. Use {self.target} as the store."
        )


class StoreMismatchError(StoreError):
    """The store was made with other settings than it is now opened with."""


class UnknownSubjectError(StoreError, KeyError):
    """A deletion request names subjects that the store has never seen."""

    def __str__(self) -> str:
        # KeyError shows the repr of its argument, which makes a sentence unreadable
        return str(self.args[0]) if self.args else ""


class RevokedError(StoreError):
    """A requested unit, or one that was about to be written, was revoked by a deletion request."""


class LeakageError(S3TError):
    """State that a unit does not own changed while it was trained, so the unit is not exact."""


class WorkerError(S3TError, RuntimeError):
    """A process that trained units died, or raised an exception that cannot be raised here."""


class NoSurvivorError(S3TError):
    """No shard has a unit left that may serve."""


class EnsembleError(S3TError):
    """The outputs of the shards cannot be combined."""
