"""Plain text, for what is printed: columns, numbers of things, and what others have written."""

from __future__ import annotations

from collections.abc import Sequence


def align(rows: Sequence[Sequence[str]], numbers_from: int) -> str:
    """Returns rows with their cells below each other, and a line under the first.

    Args:
        rows: The headings and the rows, all of one length.
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
    """Returns a number of things, in words that fit it.

    Args:
        number: How many.
        noun: What one of them is called.

    Example:
        >>> counted(1, "subject"), counted(2, "subject")
        ('1 subject', '2 subjects')
    """
    return f"{number} {noun}{'s' if number != 1 else ''}"


def printable(text: str) -> str:
    r"""Returns a text without what would steer a terminal: whoever has made a store can have written anything into it.

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
