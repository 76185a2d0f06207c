"""A Containerfile read strictly: only what is known here is taken."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

KNOWN = {
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "RUN",
    "STOPSIGNAL",
    "USER",
    "WORKDIR",
}


@dataclass
class Stage:
    """One image of it: its base, its name, and its instructions with their arguments."""

    base: str
    name: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        """The arguments of each ``instruction``."""
        return [arguments for name, arguments in self.instructions if name == instruction]

    def command(self, instruction: str) -> list[str]:
        """An instruction that is there once, in its exec form."""
        (text,) = self.all(instruction)
        argv = json.loads(text[text.index("[") :])
        assert all(isinstance(word, str) for word in argv)
        return list(argv)

    def copied(self) -> list[tuple[list[str], str]]:
        """Sources in the build's context, and where they go; what comes from another stage is left out."""
        words = [shlex.split(each) for each in self.all("COPY")]
        own = [each for each in words if not any(word.startswith("--from=") for word in each)]
        plain = [[word for word in each if not word.startswith("--")] for each in own]
        return [(each[:-1], each[-1]) for each in plain]

    def packages(self) -> set[str]:
        """What apt-get installs."""
        runs = [command for text in self.all("RUN") for command in re.split(r"&&|;", text)]
        installs = [shlex.split(run)[2:] for run in runs if shlex.split(run)[:2] == ["apt-get", "install"]]
        return {word for words in installs for word in words if not word.startswith("-")}


def read(path: Path) -> list[Stage]:
    """Its stages, in order."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    stages: list[Stage] = []
    for line in filter(None, (line.strip() for line in text.splitlines())):
        name, _, arguments = line.partition(" ")
        assert name in KNOWN, f"{path.name}: {name} isn't known here"
        if name == "FROM":
            base, *alias = arguments.split()
            assert not alias or alias[0] == "AS"
            stages.append(Stage(base, alias[1] if alias else ""))
        else:
            stages[-1].instructions.append((name, arguments.strip()))
    return stages
