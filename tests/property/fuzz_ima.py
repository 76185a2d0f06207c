"""Coverage-guided fuzzing of measurement lists, both forms. Not part of the test run:

    pip install atheris        (needs CPython 3.11 or newer, Linux or macOS)
    python -m tests.property.fuzz_ima CORPUS_FOLDER -max_len=65536 -max_total_time=600

CORPUS_FOLDER is filled with seeds when it is empty. Crashes are written to the current folder; give one as the
argument to see it again.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.ima_log import ImaList


def seed(folder: Path) -> None:
    """Well-formed lists, in both forms."""
    log = ImaList().file("/usr/bin/bash", b"bash").legacy("/old", b"old").buffer(".ima", b"key").violation("/x")
    (folder / "ascii").write_bytes(log.ascii())
    (folder / "binary").write_bytes(log.binary())


def holds_for(data: bytes) -> None:
    """Only EvidenceError comes out of the parsers; what they take can be judged."""
    from keypeer.wire.runtime import RuntimePolicy
    from kms.domain.attestation import ImaPosition, RuntimeState
    from kms.errors import EvidenceError
    from kms.evidence.ima.appraise import advance, judge, verdict
    from kms.evidence.ima.entry import parse_ascii, parse_binary
    from kms.evidence.ima.policy import CompiledRuntime
    from kms.evidence.model import Findings

    policy = CompiledRuntime("any", RuntimePolicy(excludes=("/var/*/x", "/tmp/**")))  # noqa: S108 - a pattern
    for parse in (parse_ascii, parse_binary):
        try:
            entries = parse(data)
        except EvidenceError:
            continue
        advance(Findings("any"), ImaPosition(), entries, "sha256", {10: bytes(32)})
        state = judge(policy, RuntimeState(), entries, first=True, host="any", bank="sha256", pcrs={})
        assert all(text.isprintable() for reason in verdict(policy, state, "any") for text in reason)


def main() -> None:
    import atheris

    with atheris.instrument_imports(include=["kms"]):
        import kms.evidence.ima.appraise  # noqa: F401 - so that it is instrumented
    for folder in (Path(each) for each in sys.argv[1:] if not each.startswith("-")):
        if folder.is_dir() and not any(folder.iterdir()):
            seed(folder)
    atheris.Setup(sys.argv, holds_for)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
