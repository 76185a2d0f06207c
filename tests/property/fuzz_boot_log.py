"""Coverage-guided fuzzing of the boot log, from the synthesised logs on. Not part of the test run:

    pip install atheris        (needs CPython 3.11 or newer, Linux or macOS)
    python -m tests.property.fuzz_boot_log CORPUS_FOLDER -max_len=65536 -max_total_time=600

CORPUS_FOLDER is filled with seeds when it is empty. Crashes are written to the current folder; give one as the
argument to see it again.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.boot_log import boot_log


def seed(folder: Path) -> None:
    """Well-formed logs of every kind, small ones: one bank each."""
    for name, options in {
        "grub": {},
        "uki": {"uki": True},
        "off": {"secure_boot": False},
        "locality": {"startup_locality": 3},
    }.items():
        for bank in ("sha256", "sha384"):
            (folder / f"{name}-{bank}").write_bytes(boot_log(banks=[bank], **options).bytes())  # type: ignore[arg-type]  # boot_log's own keywords


def main() -> None:
    import atheris

    with atheris.instrument_imports(include=["kms"]):
        from tests.property.boot_log_target import holds_for
    folders = [Path(each) for each in sys.argv[1:] if not each.startswith("-") and Path(each).is_dir()]
    for folder in folders:
        if not any(folder.iterdir()):
            seed(folder)
    atheris.Setup(sys.argv, holds_for)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
