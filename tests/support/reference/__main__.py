"""`python -m tests.support.reference` writes the tables of deploy/reference."""

from __future__ import annotations

from tests.support.reference.files import FILES

for path, text in FILES.items():
    path.write_text(text())
