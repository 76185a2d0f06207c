"""Peers: other services on this machine, measured beside keypeer; peers that can't be installed are left out."""

from __future__ import annotations


def configurations() -> str:
    """How each is configured, as Markdown."""
    from tests.benchmarks.peers import barbican, openbao

    parts = []
    for module, files in (
        (openbao, {"OpenBao's configuration": openbao.CONFIG}),
        (barbican, {"barbican.conf": barbican.CONFIG, "paste.ini": barbican.PASTE, "stunnel.conf": barbican.FRONT}),
    ):
        parts.append((module.__doc__ or "").replace("``", "`"))
        parts += [f"{name}:\n\n```\n{_shown(text)}\n```\n" for name, text in files.items()]
    return "\n".join(parts)


def _shown(template: str) -> str:
    """Doubled braces are single ones in the file that is made of it (str.format)."""
    return template.strip().replace("{{", "{").replace("}}", "}")
