"""Boot facts as a person reads them."""

from __future__ import annotations

from collections.abc import Iterator

from keypeer.wire.boot import BootFacts, Measurement, SecureBoot

_DIGEST_SHOWN = 16  # hex digits; enough to tell two apart
_LISTED = 12  # measurements of one kind that are shown; --json has all


def words(boot: BootFacts) -> Iterator[tuple[str, str]]:
    """Names and values for cli.output.facts. What the log merely claims is in quotes."""
    if boot.secure_boot is not None:
        yield from _secure_boot(boot.secure_boot)
    yield "firmware", boot.crtm_version
    for line in boot.kernel_command_lines:
        yield "kernel command line", line
    yield from _measurements("image", boot.applications)
    yield from _measurements("driver", boot.drivers)
    yield from _measurements("file", boot.files)
    for section in boot.uki_sections:
        yield "UKI section", f"{section.name} {section.digest[:_DIGEST_SHOWN]}…"
    yield "boot log proves", f"{boot.bank} PCRs {', '.join(map(str, boot.proven))}"


def _secure_boot(state: SecureBoot) -> Iterator[tuple[str, str]]:
    weak = [
        text
        for text, bad in (
            ("shim validates no images", not state.shim_enforces),
            ("debug mode", state.debug_mode),
            ("no DMA protection", not state.dma_protection),
        )
        if bad
    ]
    yield "Secure Boot", "; ".join(["on" if state.enabled else "off", *weak])
    for name, database in (("PK", state.pk), ("KEK", state.kek), ("db", state.db), ("dbx", state.dbx)):
        yield f"  {name}", f"{database.entries} entries; {', '.join(filter(None, database.certificates)) or 'hashes'}"
    for authority in state.authorities:
        image = f" “{authority.claimed_image}”" if authority.claimed_image else ""
        yield "  admitted by", f"{authority.name or authority.digest[:_DIGEST_SHOWN]} in {authority.variable}{image}"


def _measurements(noun: str, measurements: tuple[Measurement, ...]) -> Iterator[tuple[str, str]]:
    for each in measurements[:_LISTED]:
        yield noun, f"{each.digest[:_DIGEST_SHOWN]}… “{each.claimed}”"
    if len(measurements) > _LISTED:
        yield noun, f"and {len(measurements) - _LISTED} more"
