"""Tables for a terminal: cells in aligned columns, plain text that a file or a pipe takes as well."""

from __future__ import annotations

from collections.abc import Collection, Sequence

__all__ = ["aligned"]


def aligned(rows: Sequence[Sequence[str]], right: Collection[int] = (), indent: str = "") -> list[str]:
    """One line for each row, columns two spaces apart; those whose index is in ``right`` end together.

    Example:
        >>> aligned([("name", "mIoU"), ("voc-r101", "80.5")], right={1}, indent="  ")
        ['  name      mIoU', '  voc-r101  80.5']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = enumerate(zip(row, widths, strict=True))
        text = "  ".join(cell.rjust(width) if i in right else cell.ljust(width) for i, (cell, width) in cells)
        lines.append(f"{indent}{text}".rstrip())
    return lines
