"""Numbers in documents, held to published tables.

A page cites `<!-- results: fig1; DPO; final return -->463.7 ± 2.3<!-- end -->`: figure or study; words that
each fill a cell of one row, or the first of the table's head; column. With `; mean` after the column it takes
the number without its interval, by `<!-- results: fig1; table; p against DPO -->` the whole table whose head
begins so. `plot.py all` writes what stands between, and `plot.py all --check` finds what is out of date.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

BEGIN = "<!-- table: begin (written by benchmark/plot.py) -->"
END = "<!-- table: end -->"
CITED = re.compile(r"<!-- results: ((?:(?!-->).)+) -->((?:(?!<!--).)*)<!-- end -->", re.DOTALL)

Table = list[list[str]]  # the head, and rows


def blocks(text: str) -> list[str]:
    """The Markdown tables of a text, as they stand there."""
    return re.findall(r"(?:^\|.*\|$\n?)+", text, re.MULTILINE)


def parse(block: str) -> Table:
    """The cells of a Markdown table."""
    head, _, *rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in block.splitlines()]
    return [head, *rows]


def find_cell(text: str, words: list[str], column: str) -> str:
    """The cell of a column in the row that has these words, each as a whole cell or as the head's first.

    ValueError where there is none, or several that differ.
    """
    found = set()
    for head, *rows in map(parse, blocks(text)):
        if column in head:
            found |= {row[head.index(column)] for row in rows if set(words) <= {*row, head[0]}}
    if len(found) != 1:
        count = f"{len(found)} cells" if found else "no cell"
        raise ValueError(f"{count} for {'; '.join([*words, column])}; name row and column as the table does.")
    return found.pop()


def find_table(text: str, first: str) -> str:
    """The tables whose head begins with this word; ValueError where there is none."""
    found = [block for block in blocks(text) if block.startswith(f"| {first} |")]
    if not found:
        raise ValueError(f"no table begins with {first!r}.")
    return "\n".join(found)


def look_up(address: str, tables: Mapping[str, str]) -> str:
    """What an address in a document stands for; ValueError where it stands for nothing."""
    name, *words = (" ".join(word.split()) for word in address.split(";"))
    if name not in tables or not words:
        raise ValueError(f"{address!r} names no result; begin with one of {', '.join(sorted(tables))}.")
    if words[0] == "table":
        return f"\n{find_table(tables[name], ' '.join(words[1:]))}"
    if words[-1] == "mean":
        *words, column = words[:-1]
        return re.split(r" ±| \(", find_cell(tables[name], words, column))[0]
    *words, column = words
    return find_cell(tables[name], words, column)


def fill(text: str, tables: Mapping[str, str]) -> str:
    """A document with every cited number as the tables have it; ValueError where one cannot be found."""
    if text.count("<!-- results:") != len(CITED.findall(text)):
        raise ValueError("a <!-- results: … --> has no <!-- end -->, or another begins before it.")
    return CITED.sub(
        lambda match: f"<!-- results: {match[1]} -->{look_up(match[1], tables)}<!-- end -->", text
    )


def put_between(text: str, table: str) -> str:
    """The text with the table between its two markers, at its end if it has none; the rest stays.

    ValueError if only one marker is there, or they are in the wrong order.
    """
    if (text.count(BEGIN), text.count(END)) not in ((0, 0), (1, 1)) or text.find(BEGIN) > text.find(END):
        raise ValueError(f"must hold {BEGIN} and after it {END}, once each; restore them.")
    if BEGIN not in text:
        text = f"{text.rstrip()}\n\n{BEGIN}\n{END}\n"
    before, after = text[: text.index(BEGIN)], text[text.index(END) :]
    return f"{before}{BEGIN}\n{table}{after}"
