"""Tables for a terminal."""

from collections.abc import Sequence


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table; the first column is aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in cells
    ]


def ruled(lines: Sequence[str]) -> list[str]:
    """Return the lines with a rule below the first, the head."""
    return [lines[0], "-" * len(lines[0]), *lines[1:]]
