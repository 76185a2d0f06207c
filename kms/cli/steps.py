"""A list of what a command did, told as it is done."""

from __future__ import annotations

from dataclasses import dataclass, field

from kms.cli.common import say


@dataclass(slots=True)
class Done:
    """What was done, in order."""

    steps: list[str] = field(default_factory=list)

    def add(self, step: str) -> None:
        """Tells a step and remembers it."""
        say(f"init: {step}")
        self.steps.append(step)
