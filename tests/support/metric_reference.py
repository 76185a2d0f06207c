"""`python -m tests.support.metric_reference` writes deploy/grafana/metrics.md from kms/web/metric_table.py."""

from __future__ import annotations

from pathlib import Path

from kms.web.metric_table import ALL, Described

FILE = Path(__file__).parents[2] / "deploy" / "grafana" / "metrics.md"
_HEAD = """\
# Metrics

Made from `kms/web/metric_table.py` by `python -m tests.support.metric_reference`. "Counted": by all web workers of a
node together, since the service started. "Looked up": asked when Prometheus reads, of the store and the HSM.

| metric | kind | what it says | labels | |
|---|---|---|---|---|
"""


def text() -> str:
    """The file's text."""
    return _HEAD + "".join(map(_row, sorted(ALL, key=lambda each: each.name)))


def _row(each: Described) -> str:
    labels = "; ".join(f"`{name}`: {meaning}" for name, meaning in each.labels.items())
    return f"| `{each.name}` | {each.kind} | {each.help} | {labels} | {each.source} |\n"


if __name__ == "__main__":
    FILE.write_text(text())
