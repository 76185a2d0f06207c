"""What a VM is, as one digest: the configuration that launch entries carry and policies pin (``vm.config``).

A configuration is libvirt's *inactive* domain XML (``virsh dumpxml --inactive``; keypeer.domainxml says which parts
count), or any JSON object, all of which counts. Both end as canonical JSON in the manner of RFC 8785, so what was
digested can be kept, read and compared.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

from keypeer.domainxml import reduce_domain
from keypeer.limits import CONFIG_BYTES_MAX, CONFIG_DEPTH_MAX
from keypeer.wire.encoding import WireError

CONFIG_LABEL = b"keypeer/vm-config/v1"
INTEGER_MAX = 2**53 - 1  # RFC 8785 §3.2.2.3: what every JSON reader holds exactly

_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_OPENING, _CLOSING = frozenset(b"[{"), frozenset(b"]}")


def config_digest(document: bytes) -> bytes:
    """SHA-256 over the canonical configuration: 32 bytes. Raises WireError for what ``canonical_config`` refuses."""
    return hashlib.sha256(CONFIG_LABEL + canonical_config(document)).digest()


def canonical_config(document: bytes) -> bytes:
    """The canonical JSON of a domain XML or a JSON object; of its own answer (within the same bounds) it is that again.

    Raises WireError for what is neither, is too large or too deep, or could be read in two ways: duplicate keys,
    floating-point numbers, integers beyond 2^53, document types and entities.
    """
    if len(document) > CONFIG_BYTES_MAX:
        raise WireError("vm.config", f"has {len(document)} bytes; at most {CONFIG_BYTES_MAX} are read")
    start = document.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if start == b"<":
        return _encode({"libvirt": reduce_domain(document)})
    if start == b"{":
        return _encode(_read_json(document))
    raise WireError("vm.config", "is neither a libvirt domain (XML) nor a JSON object")


def _encode(value: Any) -> bytes:
    text = json.dumps(_sorted(value), ensure_ascii=False, separators=(",", ":"))
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise WireError("vm.config", "holds half a surrogate pair, which is no character") from None


def _sorted(value: Any) -> Any:
    # RFC 8785 §3.2.3 sorts by UTF-16 code units, which differs from code points beyond the basic plane.
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: key.encode("utf-16-be", "surrogatepass"))
        return {key: _sorted(value[key]) for key in keys}
    return [_sorted(each) for each in value] if isinstance(value, list) else value


def _read_json(document: bytes) -> Any:
    if _depth(document) > CONFIG_DEPTH_MAX:
        raise WireError("vm.config", f"nests deeper than {CONFIG_DEPTH_MAX}")
    try:
        text = document.decode("utf-8-sig")
        return json.loads(
            text, object_pairs_hook=_object, parse_int=_integer, parse_float=_no_float, parse_constant=_no_float
        )
    except WireError:
        raise
    except ValueError as error:
        raise WireError("vm.config", f"is not JSON: {error}") from None


def _depth(document: bytes) -> int:
    # Before parsing: the parser recurses once a level.
    def levels() -> Iterator[int]:
        level = 0
        for byte in _STRINGS.sub(b"", document):
            level += (byte in _OPENING) - (byte in _CLOSING)
            yield level

    return max(levels(), default=0)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise WireError("vm.config", "names a key twice in one object")
    return found


def _integer(digits: str) -> int:
    # Length first: turning a million digits into a number takes minutes.
    if len(digits) > len(str(-INTEGER_MAX)) or abs(int(digits)) > INTEGER_MAX:
        raise WireError("vm.config", f"holds an integer beyond ±{INTEGER_MAX}; write it as a string")
    return int(digits)


def _no_float(number: str) -> Any:
    raise WireError("vm.config", f"holds the number {number[:40]}; write integers, or strings")
