"""Results as tables: captioned, numbers to the right with the digits they deserve, the verdict in bold."""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

__all__ = ["show"]


def show(
    rows: Sequence[Mapping[str, object]],
    caption: str,
    *,
    formats: Mapping[str, str] | None = None,
    bold: Collection[int] = (),
) -> Styler:
    """A table for the last line of a cell: one mapping a row, from the head of a column to its value.

    Numbers stand to the right, as ``formats`` has them (``{"mIoU": "{:.1f}"}``; three significant digits otherwise),
    and so do texts that begin with a sign or a digit, as intervals do. A value that is missing or ``None`` leaves its
    place empty. Rows whose places are in ``bold`` are set in bold.

    Raises:
        ValueError: there are no rows, ``formats`` names no column, or ``bold`` names no row.
    """
    import pandas as pd  # half a second that chapters without a table save

    if not rows:
        raise ValueError(f"the table {caption!r} has no rows")
    heads = list(dict.fromkeys(head for row in rows for head in row))
    if unknown := set(formats or ()) - set(heads):
        raise ValueError(f"formats name {sorted(unknown)}, the columns are {heads}")
    if outside := [place for place in bold if not 0 <= place < len(rows)]:
        raise ValueError(f"bold names rows {outside}, and there are {len(rows)}")
    chosen = formats or {}
    text = pd.DataFrame(
        [
            {head: _text(row.get(head), chosen.get(head)) for head in heads}
            for row in rows
        ]
    )
    right = [head for head in heads if all(_is_number(cell) for cell in text[head])]
    style = (
        text.style.format(_html)
        .hide(axis="index")
        .set_caption(caption)
        .set_uuid(_name(caption))
    )
    style = style.set_table_attributes('class="results"')
    style = style.set_properties(subset=right, **{"text-align": "right"})
    style = style.set_table_styles(
        {head: [{"selector": "th", "props": "text-align: right"}] for head in right}
    )
    where = pd.IndexSlice[list(bold), :]
    return (
        style.set_properties(subset=where, **{"font-weight": "bold"}) if bold else style
    )


def _text(value: Any, form: str | None) -> str:
    if value is None:
        return ""
    if isinstance(value, bool | str):
        return str(value)
    text = form.format(value) if form else _three_digits(value)
    text = text.removesuffix(".")  # of "{:#.3g}", which keeps zeros at the end
    return f"−{text[1:]}" if text.startswith("-") else text


def _html(cell: str) -> str:
    """The cell for the page, where the style sheet keeps an interval on one line if the screen is wide."""
    interval = r'<span class="interval">\g<0></span>'
    return re.sub(r"\[[+−][^\]]*\]", interval, html.escape(cell))


def _three_digits(value: Any) -> str:
    """A number as it stands in a table unless a format says otherwise: 0.100 below 0.125, but 1e-07 and 12 images."""
    if not isinstance(value, float):
        return str(value)
    keeps_zeros = 1e-3 <= abs(value) < 1000 and value != round(value)
    return f"{value:#.3g}" if keeps_zeros else f"{value:.3g}"


def _name(caption: str) -> str:
    """Of the table's elements: another for each table of a page, the same in every build."""
    return hashlib.sha1(caption.encode()).hexdigest()[:8]


def _is_number(cell: str) -> bool:
    return not cell or cell[0] in "+−-±" or cell[0].isdigit()
