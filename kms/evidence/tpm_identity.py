"""Which TPM it is, in its vendor's words: the EK certificate's attributes (TCG EK Credential Profile 2.5 §3.1)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cryptography import x509

from kms import limits
from kms.evidence.der import INTEGER, OID, SEQUENCE, SET, UTF8_STRING, Element, elements, only
from kms.evidence.ek_certificate import Certificate
from kms.tpm.reader import malformed

# tcg-at-tpmManufacturer, -tpmModel, -tpmVersion (§3.1.2) and -tpmSpecification (§3.1.3)
TPM_MANUFACTURER = x509.ObjectIdentifier("2.23.133.2.1")
TPM_MODEL = x509.ObjectIdentifier("2.23.133.2.2")
TPM_VERSION = x509.ObjectIdentifier("2.23.133.2.3")
TPM_SPECIFICATION = bytes.fromhex("6781050210")  # 2.23.133.2.16, the OID's DER value
SUBJECT_DIRECTORY_ATTRIBUTES = x509.ObjectIdentifier("2.5.29.9")
_WHERE = "EK certificate"
_MANUFACTURER = re.compile(r"id:([0-9A-Fa-f]{8})")
_VERSION = re.compile(r"id:((?:[0-9A-Fa-f]{2}){1,8})")
_FAMILY = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}")
_NUMBER_BYTES_MAX = 4  # octets of level and revision

# TCG Vendor ID Registry
_NAMES = {
    "AMD": "AMD",
    "ANT": "Ant Group",
    "ATML": "Atmel",
    "BRCM": "Broadcom",
    "CSCO": "Cisco",
    "FLYS": "Flyslice Technologies",
    "GOOG": "Google",
    "HISI": "Huawei",
    "HPE": "HPE",
    "HPI": "HP",
    "IBM": "IBM",
    "IFX": "Infineon",
    "INTC": "Intel",
    "LEN": "Lenovo",
    "MSFT": "Microsoft",
    "NSG": "NSING",
    "NSM": "National Semiconductor",
    "NTC": "Nuvoton",
    "NTZ": "Nationz",
    "QCOM": "Qualcomm",
    "ROCC": "Rockchip",
    "SEAL": "Wisekey",
    "SECE": "SecEdge",
    "SMSC": "SMSC",
    "SMSN": "Samsung",
    "SNS": "Sinosun",
    "STM": "STMicroelectronics",
    "TXN": "Texas Instruments",
    "WEC": "Winbond",
}


@dataclass(frozen=True, slots=True)
class TpmIdentity:
    """What an EK certificate says about its TPM. ``manufacturer`` is the TCG's id as text (NTC, IFX, STM …), or eight
    hex digits when it is no text; ``version`` the hex digits of the firmware that it was made with. The specification
    is None where the certificate doesn't say."""

    manufacturer: str
    model: str
    version: str
    family: str | None = None
    level: int | None = None
    revision: int | None = None

    @property
    def manufacturer_name(self) -> str:
        """For people; the id itself when the TCG's registry has no name for it."""
        return _NAMES.get(self.manufacturer, self.manufacturer)


def read_identity(certificate: Certificate) -> TpmIdentity | None:
    """The TPM's identity from its EK certificate; None when it carries none. Raises EvidenceError
    ``evidence.malformed`` for one that is incomplete, ambiguous or isn't fit to be shown."""
    names = certificate.extension(x509.SubjectAlternativeName)
    directories = names.get_values_for_type(x509.DirectoryName) if names is not None else []
    # Not all vendors use the subjectAltName alone: a subject of the same attributes counts as well (§3.2.10).
    attributes = [each for name in (*directories, certificate.subject) for each in name]
    texts = {oid: _text(attributes, oid, what) for oid, what in _WHAT.items()}
    if not any(texts.values()):
        return None
    manufacturer = _matched(_MANUFACTURER, texts[TPM_MANUFACTURER], "tpmManufacturer")
    version = _matched(_VERSION, texts[TPM_VERSION], "tpmVersion")
    model = texts[TPM_MODEL]
    if model is None or not 0 < len(model) <= limits.EK_MODEL_CHARS_MAX or not model.isprintable():
        raise malformed(f"{_WHERE}.tpmModel", f"is {model!a}, not 1 to {limits.EK_MODEL_CHARS_MAX} characters to show")
    family, level, revision = _specification(certificate)
    return TpmIdentity(manufacturer_id(bytes.fromhex(manufacturer)), model, version.upper(), family, level, revision)


def manufacturer_id(code: bytes) -> str:
    """TPM_PT_MANUFACTURER's four octets as the text they spell, or their hex digits."""
    text = code.rstrip(b"\x00 ").decode("latin-1")
    return text if text.isascii() and text.isalnum() else code.hex().upper()


def firmware_text(version: int) -> str:
    """TPMS_ATTEST's firmwareVersion as vendors print it: major.minor, the halves of TPM_PT_FIRMWARE_VERSION_1."""
    return f"{version >> 48}.{version >> 32 & 0xFFFF}"


_WHAT = {TPM_MANUFACTURER: "tpmManufacturer", TPM_MODEL: "tpmModel", TPM_VERSION: "tpmVersion"}


def _text(attributes: list[x509.NameAttribute[str | bytes]], oid: x509.ObjectIdentifier, what: str) -> str | None:
    values = {each.value for each in attributes if each.oid == oid}
    if len(values) > 1:
        raise malformed(f"{_WHERE}.{what}", f"has {len(values)} values")
    value = values.pop() if values else None
    if isinstance(value, bytes):
        raise malformed(f"{_WHERE}.{what}", "is no text")
    return value


def _matched(pattern: re.Pattern[str], text: str | None, what: str) -> str:
    match = pattern.fullmatch(text or "")
    if match is None:
        raise malformed(f"{_WHERE}.{what}", f"is {text!a}, not id: and hex digits")
    return match[1]


def _specification(certificate: Certificate) -> tuple[str | None, int | None, int | None]:
    extension = next((e.value for e in certificate.extensions if e.oid == SUBJECT_DIRECTORY_ATTRIBUTES), None)
    if not isinstance(extension, x509.UnrecognizedExtension):
        return None, None, None
    where = f"{_WHERE}.subjectDirectoryAttributes"
    for attribute in elements(only(extension.value, SEQUENCE, where), where):
        fields = elements(attribute.value, where)
        if _tags(fields) != [OID, SET]:
            raise malformed(where, "holds something that is no attribute")
        if fields[0].value == TPM_SPECIFICATION:
            return _tpm_specification(only(fields[1].value, SEQUENCE, where))
    return None, None, None


def _tpm_specification(value: bytes) -> tuple[str, int, int]:
    # TPMSpecification ::= SEQUENCE { family UTF8String, level INTEGER, revision INTEGER }, §3.1.3
    where = f"{_WHERE}.tpmSpecification"
    fields = elements(value, where)
    if _tags(fields) != [UTF8_STRING, INTEGER, INTEGER]:
        raise malformed(where, "isn't family, level and revision")
    family = fields[0].value.decode("latin-1")
    if not _FAMILY.fullmatch(family):
        raise malformed(where, f"is of family {family!a}")
    if any(not 1 <= len(number.value) <= _NUMBER_BYTES_MAX or number.value[0] & 0x80 for number in fields[1:]):
        raise malformed(where, "has a level or revision that is negative or too large")
    level, revision = (int.from_bytes(number.value, "big") for number in fields[1:])
    return family, level, revision


def _tags(fields: list[Element]) -> list[int]:
    return [each.tag for each in fields]
