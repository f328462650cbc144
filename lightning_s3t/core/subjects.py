"""Subjects: the canonical form of an id."""

from __future__ import annotations

import operator

from lightning_s3t.errors import DataError

_MARK = "\ufeff"


def canonical_subject(subject: object) -> str:
    """Return the canonical form of a subject's id, so that 17 and "17" are the same person.

    Args:
        subject: A non-empty string, or any integer (NumPy's and tensors without dimensions too).

    Returns:
        The id as text.

    Raises:
        DataError: The id is of another type; floats and bytes do not have a canonical form.

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
    if text.startswith(_MARK):
        raise DataError(
            f"A subject's id is {shorten(ascii(text))}, which begins with the byte order mark of a file. Expected the "
            'id alone: read such files with encoding="utf-8-sig".'
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"A subject's id is {_shown(subject)}, which has no UTF-8 form ({error.reason}). Expected text that can "
            "be encoded: for a file name that could not be decoded, use os.fsencode(id).hex()."
        ) from error
    return text


def shorten(text: str) -> str:
    """Return the start of a text, for messages: an id may have any length.

    Args:
        text: The text.

    Example:
        >>> shorten("user-17"), len(shorten("x" * 10_000))
        ('user-17', 82)
    """
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def _spell(subject: object) -> str | None:
    if isinstance(subject, str):
        # a member of an enumeration is equal to its value, but prints its name
        return str.__str__(subject) or None
    # booleans and arrays with dimensions can be indices too, but are not ids
    dtype = getattr(subject, "dtype", None)
    if isinstance(subject, bool) or str(dtype).endswith("bool") or getattr(subject, "ndim", 0) != 0:
        return None
    try:
        return int.__repr__(operator.index(subject))  # type: ignore[arg-type]
    except (TypeError, ValueError):  # Python does not convert integers of more than 4300 digits to text
        return None


def _shown(subject: object) -> str:
    try:
        return shorten(repr(subject))
    except ValueError:
        return "a number of too many digits"
