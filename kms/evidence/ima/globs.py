"""Path patterns whose matching is linear in the path, whatever the pattern: no backtracking.

``*`` stands for any characters of one component, and a pattern has at most one of them a component; ``**`` at the end
stands for everything below. Patterns begin at the root, so none matches in the middle of a path.
"""

from __future__ import annotations

from collections.abc import Iterable

from kms.errors import BadRequest


class Globs:
    """Some patterns, ready to match."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._exact: set[bytes] = set()
        self._below: set[bytes] = set()
        self._globs: list[tuple[list[tuple[bytes, bytes] | bytes], bool]] = []
        for pattern in patterns:
            self._add(pattern)

    def _add(self, pattern: str) -> None:
        below = pattern.endswith("/**")
        body = pattern[: -len("/**")] if below else pattern
        components: list[tuple[bytes, bytes] | bytes] = []
        for component in body.split("/")[1:]:
            head, star, tail = component.partition("*")
            if "*" in tail:
                raise BadRequest(
                    "runtime.glob",
                    f"pattern {pattern}: more than one * in a component, or ** elsewhere than at the end",
                    hint="write /a/*/c, /a/b*.so or /a/**",
                )
            components.append((head.encode(), tail.encode()) if star else component.encode())
        if "*" not in body:
            (self._below if below else self._exact).add(body.encode())
        else:
            self._globs.append((components, below))

    def match(self, path: bytes) -> bool:
        """Whether any of the patterns stands for ``path``. A path that climbs (``..``) matches none."""
        if path in self._exact:
            return True
        parts = path.split(b"/")
        if parts[0] or b".." in parts:
            return False
        if self._below:
            prefix = b""
            for part in parts[1:]:
                if prefix in self._below:
                    return True
                prefix = prefix + b"/" + part
        return any(_matches(parts[1:], components, below) for components, below in self._globs)


def _matches(parts: list[bytes], components: list[tuple[bytes, bytes] | bytes], below: bool) -> bool:
    if len(parts) <= len(components) if below else len(parts) != len(components):
        return False
    for part, component in zip(parts, components, strict=False):
        if isinstance(component, bytes):
            if part != component:
                return False
            continue
        head, tail = component
        if len(part) < len(head) + len(tail) or not (part.startswith(head) and part.endswith(tail)):
            return False
    return True
