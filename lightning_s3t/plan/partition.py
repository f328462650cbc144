"""The partition: which shard and slice a subject belongs to."""

from __future__ import annotations

import hashlib
import operator
from dataclasses import dataclass

from lightning_s3t.errors import ConfigurationError, DataError


def canonical_subject(subject: object) -> str:
    """Returns the one spelling of a subject's id, so that 17 and "17" ask for the same person.

    Args:
        subject: A non-empty string, or any integer (NumPy's and tensors without dimensions too).

    Returns:
        The id as text.

    Raises:
        DataError: The id is of another kind; floats and bytes have no one spelling.

    Example:
        >>> canonical_subject(17), canonical_subject("user-17")
        ('17', 'user-17')
    """
    text = _spell(subject)
    if text is None:
        raise DataError(
            f"A subject's id is {_shown(subject)} ({type(subject).__name__}). Expected a non-empty string or an "
            "integer: convert the ids before you pass them."
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"A subject's id is {subject!r}, which has no UTF-8 form ({error.reason}). Expected text that can be "
            "encoded: os.fsencode(id).hex() gives a file name that could not be decoded one spelling."
        ) from error
    return text


def _spell(subject: object) -> str | None:
    if isinstance(subject, str):
        # a member of an enumeration is equal to its value, but prints its name
        return str.__str__(subject) or None
    # truth values and arrays with dimensions can be indices too, and are no ids
    dtype = getattr(subject, "dtype", None)
    if isinstance(subject, bool) or str(dtype).endswith("bool") or getattr(subject, "ndim", 0) != 0:
        return None
    try:
        return int.__repr__(operator.index(subject))  # type: ignore[arg-type]
    except (TypeError, ValueError):  # Python spells no integer of more than 4300 digits
        return None


def _shown(subject: object) -> str:
    try:
        return repr(subject)
    except ValueError:
        return "a number of too many digits"


@dataclass(frozen=True, order=True)
class Place:
    """Where a subject's rows are.

    Attributes:
        shard: Counted from 0.
        slice: Counted from 0, within the shard.
    """

    shard: int
    slice: int


@dataclass(frozen=True)
class Partition:
    """Puts every subject in a slice by a keyed hash of its id.

    A place depends on the id and the seed alone, so nobody's place depends on anybody else's presence. That is what
    lets a rebuild after a deletion be, bit for bit, a first training without the subject; shuffled splits of equal
    size cannot have it.

    Args:
        shards: Number of shards, m.
        slices: Number of slices of a shard, L.
        seed: The key of the hash.
        bands: How many of a shard's slices each band of risk has, from the lowest on (`RiskBands`); empty for no bands.

    Raises:
        ConfigurationError: A number is out of range, or the bands do not fill the slices.

    Example:
        >>> partition = Partition(shards=5, slices=4, seed=0)
        >>> partition.place("user-17") == partition.place("user-17")
        True
    """

    shards: int
    slices: int
    seed: int = 0
    bands: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "bands", tuple(self.bands))
        for name, value, least in (
            ("shards", self.shards, 1),
            ("slices", self.slices, 1),
            ("seed", self.seed, 0),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigurationError(
                    f"Expected argument `{name}` to be an integer of at least {least} but got {value!r}."
                )

        if self.bands and (sum(self.bands) != self.slices or min(self.bands) < 1):
            raise ConfigurationError(
                f"The bands of risk have {self.bands} slices. Expected at least one slice each, {self.slices} in all."
            )

    def place(self, subject: str, band: int = 0) -> Place:
        """Returns a subject's place.

        Args:
            subject: The canonical id.
            band: The subject's band of risk, from 0.
        """
        first, slices = sum(self.bands[:band]), self.bands[band] if self.bands else self.slices
        key = hashlib.blake2b(str(self.seed).encode(), digest_size=32, person=b"s3t-partition").digest()
        digest = hashlib.blake2b(subject.encode(errors="surrogatepass"), digest_size=16, key=key).digest()
        # 128 bits: the bias of the modulo is below 2**-100
        number = int.from_bytes(digest, "big") % (self.shards * slices)
        shard, slice_ = divmod(number, slices)
        return Place(shard, first + slice_)
