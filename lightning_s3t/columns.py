"""Plain text for printing: columns, counted nouns, and text from untrusted sources."""

from __future__ import annotations

from collections.abc import Sequence


def align(rows: Sequence[Sequence[str]], numbers_from: int) -> str:
    """Return rows as aligned columns, with a line under the first row.

    Args:
        rows: The headings and the rows, all of equal length.
        numbers_from: The first column that is aligned to the right.

    Example:
        >>> print(align([("fruit", "count"), ("apple", "2"), ("fig", "10")], numbers_from=1))
        fruit  count
        ------------
        apple      2
        fig       10
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.rjust(width) if column >= numbers_from else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(lines)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the singular or plural.

    Args:
        number: The number.
        noun: The noun in the singular.

    Example:
        >>> counted(1, "subject"), counted(2, "subject")
        ('1 subject', '2 subjects')
    """
    return f"{number} {noun}{'s' if number != 1 else ''}"


def printable(text: str) -> str:
    r"""Return a text without terminal control characters: the maker of a store may have written anything into it.

    Args:
        text: The text. Line breaks and tabs stay.

    Example:
        >>> printable("user-17 \x1b[2J")
        'user-17 \\x1b[2J'
    """
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else letter.encode("unicode_escape").decode()
        for letter in text
    )
