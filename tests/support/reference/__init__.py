"""deploy/reference: tables that are made from the code."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "deploy" / "reference"
COMMAND = "python -m tests.support.reference"


def row(*cells: str) -> str:
    """A line of a table."""
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |\n"


def head(*cells: str) -> str:
    """A table's first two lines."""
    return row(*cells) + "|" + "---|" * len(cells) + "\n"
