"""Writes tables as text or Markdown, for the commands that print them."""

from collections.abc import Collection, Sequence

FORMATS = ("text", "markdown")


def render(rows: Sequence[Sequence[str]], form: str, rules: Collection[int] = ()) -> str:
    """A table whose first column is on the left and whose others are on the right; no line feed at the end.

    Args:
        rows: cells, the head first; all of the same length.
        form: of `FORMATS`.
        rules: indices of rows (the head is 0) that a line stands above, in text. Below the head there always
            is one.
    """
    if form == "markdown":
        align = ["---", *["---:"] * (len(rows[0]) - 1)]
        return "\n".join("| " + " | ".join(map(_cell, row)) + " |" for row in [rows[0], align, *rows[1:]])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for i, row in enumerate(rows):
        if i == 1 or i in rules:
            lines.append("-" * (sum(widths) + 2 * (len(widths) - 1)))
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]))
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", r"\|")
