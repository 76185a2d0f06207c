"""XML as a plain tree: bounded, without document types, comments or entities of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from xml.parsers import expat

from keypeer.limits import CONFIG_ELEMENTS_MAX, CONFIG_LEVELS_MAX
from keypeer.wire.encoding import WireError


@dataclass(slots=True)
class Element:
    """An XML element; ``name`` and the names of attributes are ``namespace local`` outside libvirt's own (none)."""

    name: str
    attributes: dict[str, str]
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def named(self, *names: str) -> list[Element]:
        """The children of these names."""
        return [child for child in self.children if child.name in names]

    def drop(self, *names: str) -> None:
        """Removes the children of these names."""
        self.children = [child for child in self.children if child.name not in names]

    def forget(self, *attributes: str) -> None:
        """Removes these attributes."""
        for name in attributes:
            self.attributes.pop(name, None)

    def forget_default(self, **defaults: str) -> None:
        """Removes attributes that say what libvirt would fill in."""
        for name, value in defaults.items():
            if self.attributes.get(name) == value:
                del self.attributes[name]


class _Builder:
    def __init__(self) -> None:
        self.root = Element("", {})
        self._open: list[tuple[Element, list[str]]] = []
        self._count = 0

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._count += 1
        if self._count > CONFIG_ELEMENTS_MAX or len(self._open) >= CONFIG_LEVELS_MAX:
            raise WireError("vm.config", f"has over {CONFIG_ELEMENTS_MAX} elements, or {CONFIG_LEVELS_MAX} levels")
        element = Element(name, attributes)
        if self._open:
            self._open[-1][0].children.append(element)
        else:
            self.root = element
        self._open.append((element, []))

    def text(self, data: str) -> None:
        self._open[-1][1].append(data)

    def end(self, _name: str) -> None:
        element, pieces = self._open.pop()
        element.text = "".join(pieces).strip()

    def doctype(self, *_: Any) -> None:
        raise WireError("vm.config", "declares a document type; domains have none, and entities are not read")


def parse_xml(document: bytes) -> Element:
    """The root of a UTF-8 document. Raises WireError; document types, hence entities, are refused unread."""
    parser = expat.ParserCreate("utf-8", namespace_separator=" ")
    builder = _Builder()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.text
    parser.StartDoctypeDeclHandler = builder.doctype
    try:
        parser.Parse(document, True)
    except expat.ExpatError as error:
        raise WireError("vm.config", f"is not well-formed XML: {error}") from None
    return builder.root
