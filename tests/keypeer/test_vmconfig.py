"""The VM's configuration digest: blind to libvirt's noise, not to what decides what the VM is."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import re
import subprocess
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keypeer.limits import CONFIG_BYTES_MAX, CONFIG_DEPTH_MAX, CONFIG_ELEMENTS_MAX, CONFIG_LEVELS_MAX
from keypeer.vmconfig import CONFIG_LABEL, canonical_config, config_digest
from keypeer.wire.encoding import WireError

DOMAIN = """\
<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>db-7</name>
  <uuid>6f1a0f5e-93a1-4d5b-8f7c-0d8d5d6a2c11</uuid>
  <metadata><note xmlns='urn:example'>blue</note></metadata>
  <memory unit='KiB'>4194304</memory>
  <currentMemory unit='KiB'>4194304</currentMemory>
  <memoryBacking><hugepages/></memoryBacking>
  <vcpu placement='static'>4</vcpu>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <loader readonly='yes' secure='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.ms.fd</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS_4M.ms.fd'>/var/lib/libvirt/qemu/nvram/db-7_VARS.fd</nvram>
    <kernel>/boot/vmlinuz</kernel>
    <initrd>/boot/initrd.img</initrd>
    <cmdline>root=/dev/vda1 lockdown=confidentiality</cmdline>
    <boot dev='hd'/>
    <boot dev='network'/>
  </os>
  <features><acpi/><apic/><smm state='on'/></features>
  <cpu mode='custom' match='exact' check='partial'>
    <model fallback='forbid'>EPYC-Milan</model>
    <feature policy='require' name='ibpb'/>
    <feature policy='disable' name='svm'/>
    <topology sockets='1' dies='1' cores='4' threads='1'/>
  </cpu>
  <clock offset='utc'/>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none'/>
      <source file='/srv/db-7.qcow2'/>
      <target dev='vda' bus='virtio'/>
      <address type='pci' domain='0x0000' bus='0x03' slot='0x00' function='0x0'/>
    </disk>
    <disk type='file' device='cdrom'>
      <driver name='qemu' type='raw'/>
      <source file='/srv/seed.iso'/>
      <target dev='sda' bus='sata'/>
      <readonly/>
    </disk>
    <controller type='usb' index='0' model='qemu-xhci'/>
    <interface type='network'>
      <mac address='52:54:00:11:22:33'/>
      <source network='outside'/>
      <model type='virtio'/>
    </interface>
    <interface type='bridge'>
      <mac address='52:54:00:44:55:66'/>
      <source bridge='br-inside'/>
      <model type='virtio'/>
    </interface>
    <serial type='pty'><target type='isa-serial' port='0'><model name='isa-serial'/></target></serial>
    <console type='pty'><target type='serial' port='0'/></console>
    <input type='mouse' bus='ps2'/>
    <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
    <graphics type='vnc' port='-1' autoport='yes' listen='127.0.0.1'>
      <listen type='address' address='127.0.0.1'/>
    </graphics>
    <hostdev mode='subsystem' type='pci' managed='yes'>
      <source><address domain='0x0000' bus='0x41' slot='0x00' function='0x0'/></source>
    </hostdev>
    <memballoon model='virtio'/>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
  </devices>
  <launchSecurity type='sev'><policy>0x0003</policy><cbitpos>47</cbitpos></launchSecurity>
</domain>
"""


def digest(text: str) -> bytes:
    return config_digest(text.encode())


def changed(*edits: tuple[str, str]) -> bytes:
    text = DOMAIN
    for old, new in edits:
        assert text.count(old) == 1, f"{old!r} is there {text.count(old)} times"
        text = text.replace(old, new)
    return digest(text)


NOISE = {
    "running: id": ("<domain type='kvm'", "<domain type='kvm' id='17'"),
    "renamed, and its nvram with it": ("<name>db-7</name>", "<name>db-8</name>"),
    "another uuid": ("6f1a0f5e", "6f1a0f5f"),
    "title and description": ("<memory ", "<title>t</title><description>d</description><memory "),
    "metadata": (">blue<", ">red<"),
    "unit of memory": ("<memory unit='KiB'>4194304<", "<memory unit='GiB'>4<"),
    "no unit of memory": ("<memory unit='KiB'>", "<memory>"),
    "ballooned": ("<currentMemory unit='KiB'>4194304<", "<currentMemory unit='KiB'>1048576<"),
    "pinned to CPUs": ("<vcpu placement='static'>", "<vcpu placement='static' cpuset='1-4' current='4'>"),
    "tuned": ("<os>", "<cputune><shares>2048</shares></cputune><resource><partition>/x</partition></resource><os>"),
    "labelled": ("<devices>", "<seclabel type='dynamic' model='apparmor'/><devices>"),
    "CPU check": ("check='partial'", "check='full'"),
    "default CPU match": ("match='exact' ", ""),
    "feature order": (
        "<feature policy='require' name='ibpb'/>\n    <feature policy='disable' name='svm'/>",
        "<feature name='svm' policy='disable'/><feature name='ibpb' policy='require'/>",
    ),
    "topology defaults": ("dies='1' ", "dies='1' clusters='1' "),
    "no clock": ("<clock offset='utc'/>", ""),
    "no event actions": ("<on_crash>destroy</on_crash>", ""),
    "alias": ("<target dev='vda' bus='virtio'/>", "<target dev='vda' bus='virtio'/><alias name='virtio-disk0'/>"),
    "PCI address moved": ("bus='0x03'", "bus='0x07'"),
    "disk cache": (" cache='none'", " cache='writeback' discard='unmap'"),
    "disk throttled": ("<readonly/>", "<readonly/><iotune><read_iops_sec>9</read_iops_sec></iotune>"),
    "empty backing chain": ("<readonly/>", "<readonly/><backingStore/>"),
    "block job runs": ("<readonly/>", "<readonly/><mirror type='file' job='copy'><source file='/m'/></mirror>"),
    "disk label": (
        "<source file='/srv/seed.iso'/>",
        "<source file='/srv/seed.iso' index='2'><seclabel relabel='no'/></source>",
    ),
    "raw by default": ("<driver name='qemu' type='raw'/>", ""),
    "open tray": ("dev='sda' bus='sata'", "dev='sda' bus='sata' tray='open'"),
    "controller": (
        "<controller type='usb'",
        "<controller type='pci' index='0' model='pcie-root'/><controller type='usb'",
    ),
    "MAC": ("52:54:00:11:22:33", "52:54:00:aa:aa:aa"),
    "tap": ("<source bridge='br-inside'/>", "<source bridge='br-inside'/><target dev='vnet3'/>"),
    "network port": ("<source network='outside'/>", "<source network='outside' portid='1-2' bridge='virbr0'/>"),
    "pty": ("<serial type='pty'>", "<serial type='pty'><source path='/dev/pts/3'/>"),
    "tty": ("<console type='pty'>", "<console type='pty' tty='/dev/pts/3'>"),
    "no keyboard": ("<input type='mouse' bus='ps2'/>", "<input type='keyboard' bus='ps2'/>"),
    "VNC port found": ("port='-1'", "port='5901'"),
    "listen once": (" listen='127.0.0.1'", ""),
    "no balloon": ("<memballoon model='virtio'/>", "<audio id='1' type='none'/>"),
    "host device's number in decimal": ("bus='0x41'", "bus='65'"),
    "balloon's statistics": (
        "<memballoon model='virtio'/>",
        "<memballoon model='virtio'><stats period='5'/></memballoon>",
    ),
    "image formats by default": ("type='pflash'", "type='pflash' format='raw'"),
    "vfio": ("<source><address domain", "<driver name='vfio'/><source><address domain"),
    "host's memory-encryption bit": ("<cbitpos>47<", "<cbitpos>51<"),
    "comment": ("<devices>", "<!-- made by hand --><devices>"),
    "instruction": ("<os>", "<?editor x?><os>"),
    "CDATA": (">/boot/vmlinuz<", "><![CDATA[/boot/vmlinuz]]><"),
}

CHANGES = {
    "hypervisor": ("<domain type='kvm'", "<domain type='qemu'"),
    "memory": ("<memory unit='KiB'>4194304<", "<memory unit='KiB'>8388608<"),
    "memory in core dumps": ("<memory unit", "<memory dumpCore='on' unit"),
    "memory backing shared": ("<hugepages/>", "<hugepages/><access mode='shared'/>"),
    "vCPUs": ("<vcpu placement='static'>4<", "<vcpu placement='static'>8<"),
    "architecture": ("arch='x86_64'", "arch='i686'"),
    "machine": ("pc-q35-7.2", "pc-q35-8.0"),
    "firmware": ("OVMF_CODE_4M.ms.fd", "OVMF_CODE_4M.fd"),
    "Secure Boot off": (" secure='yes'", " secure='no'"),
    "firmware writable": ("readonly='yes' ", ""),
    "nvram template": ("OVMF_VARS_4M.ms.fd", "OVMF_VARS_4M.fd"),
    "nvram elsewhere": ("/var/lib/libvirt/qemu/nvram/db-7", "/var/evil/db-7"),
    "nvram by a way out": ("nvram/db-7_VARS.fd", "nvram/db-7_VARS/../../../../../../var/evil.fd"),
    "nvram of another": ("nvram/db-7_VARS.fd", "nvram/evil_VARS.fd"),
    "kernel": ("/boot/vmlinuz", "/var/evil/vmlinuz"),
    "initrd": ("/boot/initrd.img", "/var/evil/initrd.img"),
    "command line": (" lockdown=confidentiality", ""),
    "boot order": ("<boot dev='hd'/>\n    <boot dev='network'/>", "<boot dev='network'/><boot dev='hd'/>"),
    "SMM": ("<smm state='on'/>", ""),
    "CPU mode": ("mode='custom'", "mode='host-passthrough'"),
    "CPU model": ("EPYC-Milan", "EPYC-Rome"),
    "CPU feature": ("<feature policy='require' name='ibpb'/>", ""),
    "CPU feature's policy": ("policy='disable' name='svm'", "policy='require' name='svm'"),
    "crash dumps guest memory": ("<on_crash>destroy<", "<on_crash>coredump-destroy<"),
    "clock": ("<clock offset='utc'/>", "<clock offset='absolute' start='0'/>"),
    "emulator": ("/usr/bin/qemu-system-x86_64", "/var/evil/qemu-system-x86_64"),
    "disk source": ("/srv/db-7.qcow2", "/srv/other.qcow2"),
    "disk format": ("type='qcow2'", "type='raw'"),
    "disk bus": ("dev='vda' bus='virtio'", "dev='vda' bus='scsi'"),
    "disk target": ("dev='vda'", "dev='vdb'"),
    "disk no longer read-only": ("<readonly/>", ""),
    "disk shared": ("<readonly/>", "<readonly/><shareable/>"),
    "disk backing": ("<readonly/>", "<readonly/><backingStore type='file'><source file='/b'/></backingStore>"),
    "disk encryption": ("<readonly/>", "<readonly/><encryption format='luks'/>"),
    "disk boots first": ("<readonly/>", "<readonly/><boot order='1'/>"),
    "disk added": ("<controller ", "<disk type='block'><source dev='/dev/sdz'/><target dev='vdz'/></disk><controller "),
    "network": ("network='outside'", "network='lab'"),
    "bridge": ("br-inside", "br-outside"),
    "networks swapped": (
        "<source network='outside'/>\n      <model type='virtio'/>\n    </interface>\n    <interface type='bridge'>\n"
        "      <mac address='52:54:00:44:55:66'/>\n      <source bridge='br-inside'/>",
        "<source bridge='br-inside'/><model type='virtio'/></interface><interface type='network'>"
        "<source network='outside'/>",
    ),
    "serial port on the network": (
        "<serial type='pty'>",
        "<serial type='tcp'><source mode='connect' host='192.0.2.1' service='9'/>",
    ),
    "console on the network": (
        "<console type='pty'>",
        "<console type='tcp'><source mode='connect' host='192.0.2.1' service='9'/>",
    ),
    "host's keyboard": (
        "<input type='mouse' bus='ps2'/>",
        "<input type='evdev'><source dev='/dev/input/event1'/></input>",
    ),
    "TPM": ("<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>", ""),
    "TPM passed through": ("type='emulator' version='2.0'", "type='passthrough'"),
    "console for everyone": (
        "<listen type='address' address='127.0.0.1'/>",
        "<listen type='address' address='0.0.0.0'/>",
    ),
    "host device": ("bus='0x41'", "bus='0x42'"),
    "host device added": ("<memballoon", "<hostdev mode='subsystem' type='mdev'/><memballoon"),
    "memory encryption's policy": ("0x0003", "0x0001"),
    "no memory encryption": ("<launchSecurity type='sev'>", "<launchSecurity type='s390-pv'>"),
    "shared folder": ("<rng ", "<filesystem type='mount'><source dir='/'/><target dir='x'/></filesystem><rng "),
    "shared memory": ("<rng ", "<shmem name='x'/><rng "),
    "SMBIOS strings (systemd credentials)": (
        "<devices>",
        "<sysinfo type='smbios'><oemStrings><entry>io.systemd.credential:x=y</entry></oemStrings></sysinfo><devices>",
    ),
    "QEMU's own arguments": (
        "<launchSecurity ",
        "<qemu:commandline><qemu:arg value='-monitor'/><qemu:arg value='tcp::1'/></qemu:commandline><launchSecurity ",
    ),
    "a device nobody has seen yet": ("<rng ", "<teleporter model='virtio'><source peer='mars'/></teleporter><rng "),
    "an element nobody has seen yet": ("<devices>", "<backdoor/><devices>"),
    "something unknown in a known device": ("<readonly/>", "<readonly/><tap to='x'/>"),
}


@pytest.mark.parametrize("name", NOISE)
def test_noise_keeps_the_digest(name: str) -> None:
    edits = [NOISE[name]]
    if name.startswith("renamed"):
        edits.append(("nvram/db-7_VARS", "nvram/db-8_VARS"))
    assert changed(*edits) == digest(DOMAIN)


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_changes_the_digest(name: str) -> None:
    assert changed(CHANGES[name]) != digest(DOMAIN)


def test_no_two_changes_share_a_digest() -> None:
    digests = {changed(edit) for edit in CHANGES.values()}
    assert len(digests) == len(CHANGES)


@pytest.mark.parametrize("seed", range(5))
def test_order_and_whitespace_say_nothing(seed: int) -> None:
    shuffle = random.Random(seed)  # noqa: S311 - a shuffle, not a secret
    root = ElementTree.fromstring(re.sub(r">\s+<", "><", DOMAIN))  # noqa: S314 - our own text
    for element in root.iter():
        ordered = [child for child in element if child.tag in {"interface", "boot"}]
        children = list(element)
        shuffle.shuffle(children)
        remaining = iter(ordered)
        element[:] = [next(remaining) if child in ordered else child for child in children]
    assert config_digest(ElementTree.tostring(root)) == digest(DOMAIN)


@pytest.mark.virsh
def test_libvirts_own_text_keeps_the_digest_from_definition_to_run(tmp_path: Path) -> None:
    # libvirt's test driver needs no daemon and no hypervisor. With graphics libvirt adds a video device, so we name it.
    text = DOMAIN.replace("type='kvm'", "type='test'", 1).replace("<rng ", "<video><model type='vga'/></video><rng ")
    (tmp_path / "domain.xml").write_text(text)

    def virsh(*commands: str) -> bytes:
        script = "; ".join((f"define {tmp_path}/domain.xml", *commands))
        done = subprocess.run(["virsh", "-c", "test:///default", script], capture_output=True, check=True, timeout=60)
        return done.stdout[done.stdout.index(b"<domain") : done.stdout.index(b"</domain>") + len(b"</domain>")]

    inactive, active = virsh("dumpxml --inactive db-7"), virsh("start db-7", "dumpxml db-7")
    assert inactive != active
    assert config_digest(inactive) == config_digest(active) == digest(text)


def test_the_order_of_qemu_arguments_counts() -> None:
    def with_arguments(*values: str) -> bytes:
        arguments = "".join(f"<qemu:arg value='{value}'/>" for value in values)
        return changed(("<devices>", f"<qemu:commandline>{arguments}</qemu:commandline><devices>"))

    assert with_arguments("-a", "x", "-b", "y") != with_arguments("-a", "y", "-b", "x")


def test_a_size_rounds_up_as_libvirt_does() -> None:
    texts = ("<domain><memory unit='b'>1025</memory></domain>", "<domain><memory>2</memory></domain>")
    assert digest(texts[0]) == digest(texts[1])


def test_the_canonical_form_is_json_that_is_its_own_canonical_form() -> None:
    canonical = canonical_config(DOMAIN.encode())
    assert json.loads(canonical)["libvirt"][0] == "domain"
    assert canonical_config(canonical) == canonical
    assert config_digest(canonical) == hashlib.sha256(CONFIG_LABEL + canonical).digest()


# The sorting example of RFC 8785 §3.2.3, and the escapes of §3.2.2.2.
CANONICAL = {
    "keys sorted": (b'{"b": 1,\n "a": [true, null, -5]}', b'{"a":[true,null,-5],"b":1}'),
    "UTF-16 order": (
        '{"\u20ac":1,"\r":2,"\ufb33":3,"1":4,"\U0001f600":5,"\u0080":6,"\u00f6":7}'.replace("\r", "\\r").encode(),
        '{"\\r":2,"1":4,"\u0080":6,"\u00f6":7,"\u20ac":1,"\U0001f600":5,"\ufb33":3}'.encode(),
    ),
    "escapes": (
        rb'{"x":"\u20ac$\u000F\u000aA\u0027\u0042\u0022\u005c\\\"\/"}',
        '{"x":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'.encode(),
    ),
    "byte order mark": (b'\xef\xbb\xbf {"a":{}}', b'{"a":{}}'),
    "-0": (b'{"a":-0}', b'{"a":0}'),
}


@pytest.mark.parametrize("name", CANONICAL)
def test_canonical_json(name: str) -> None:
    document, canonical = CANONICAL[name]
    assert canonical_config(document) == canonical


REFUSED = {
    "nothing": (b"", "neither"),
    "a list": (b"[1]", "neither"),
    "not XML": (b"<domain>", "not well-formed"),
    "not a domain": (b"<network/>", "not a libvirt <domain>"),
    "a domain of another namespace": (b"<domain xmlns='urn:x'/>", "not a libvirt <domain>"),
    "two roots": (b"<domain/><domain/>", "not well-formed"),
    "attribute twice": (b"<domain type='a' type='b'/>", "not well-formed"),
    "not UTF-8": (b"<domain>\xff</domain>", "not well-formed"),
    "UTF-16": ("<domain/>".encode("utf-16"), "neither"),
    "document type": (b"<!DOCTYPE domain><domain/>", "document type"),
    "entity bomb": (
        b"<!DOCTYPE d [<!ENTITY a 'aaaaaaaaaa'><!ENTITY b '&a;&a;&a;&a;&a;'>]><domain><name>&b;</name></domain>",
        "document type",
    ),
    "external entity": (b"<!DOCTYPE d [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><domain>&x;</domain>", "document type"),
    "undeclared entity": (b"<domain>&x;</domain>", "not well-formed"),
    "too deep XML": (b"<domain>" + b"<a>" * CONFIG_LEVELS_MAX + b"</a>" * CONFIG_LEVELS_MAX + b"</domain>", "levels"),
    "too many elements": (b"<domain>" + b"<a/>" * CONFIG_ELEMENTS_MAX + b"</domain>", "elements"),
    "too large": (b" " * (CONFIG_BYTES_MAX + 1), "at most"),
    "unknown unit": (b"<domain><memory unit='parsec'>1</memory></domain>", "<memory>"),
    "size that is no number": (b"<domain><memory>\xd9\xa3</memory></domain>", "<memory>"),
    "size of a thousand digits": (b"<domain><memory>" + b"9" * 1000 + b"</memory></domain>", "<memory>"),
    "not JSON": (b"{,}", "is not JSON"),
    "JSON and more": (b"{} {}", "is not JSON"),
    "JSON not UTF-8": (b'{"a":"\xff"}', "is not JSON"),
    "duplicate key": (b'{"a":1,"a":1}', "twice"),
    "duplicate key by escape": (b'{"a":1,"\\u0061":2}', "twice"),
    "float": (b'{"a":1.0}', "1.0"),
    "exponent": (b'{"a":1e2}', "1e2"),
    "NaN": (b'{"a":NaN}', "NaN"),
    "large integer": (b'{"a":9007199254740992}', "2^53|9007199254740991"),
    "integer of a million digits": (b'{"a":' + b"9" * 1_000_000 + b"}", "integer"),
    "half a character": (b'{"a":"\\ud800"}', "surrogate"),
    "too deep JSON": (b'{"a":' + b"[" * 500_000 + b"]" * 500_000 + b"}", "deeper"),
    "JSON one level too deep": (b'{"a":' + b"[" * CONFIG_DEPTH_MAX + b"]" * CONFIG_DEPTH_MAX + b"}", "deeper"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    document, message = REFUSED[name]
    with pytest.raises(WireError, match=message):
        canonical_config(document)


def test_the_canonical_form_of_the_deepest_xml_is_not_too_deep() -> None:
    levels = CONFIG_LEVELS_MAX - 1
    canonical = canonical_config(b"<domain>" + b"<a>" * levels + b"</a>" * levels + b"</domain>")
    assert canonical_config(canonical) == canonical


def test_brackets_in_strings_are_no_depth() -> None:
    assert canonical_config(b'{"a":"' + b"[" * 1000 + b'\\""}')


@given(st.binary(max_size=300) | st.text(alphabet="<>domain/='\" &;!-[]{}:,0", max_size=80).map(str.encode))
def test_any_bytes_give_a_digest_or_one_error(document: bytes) -> None:
    with contextlib.suppress(WireError):
        assert len(config_digest(document)) == 32


def _with(name: str, children: list[ElementTree.Element], text: str) -> ElementTree.Element:
    element = ElementTree.Element(name)
    element.text = text
    element.extend(children)
    return element


NAMES = sorted(set(re.findall(r"<([\w:]+)", DOMAIN)) | {"channel", "video", "vsock", "cid", "size", "listen", "audio"})
ATTRIBUTES = sorted(set(re.findall(r"(\w+)='", DOMAIN)) | {"network", "unit", "auto", "current"})
values = st.sampled_from(["", "0", "1", "yes", "pty", "-1", "0x1", "KiB", "/dev/x"])
elements = st.recursive(
    st.builds(
        ElementTree.Element, st.sampled_from(NAMES), st.dictionaries(st.sampled_from(ATTRIBUTES), values, max_size=3)
    ),
    lambda inner: st.builds(_with, st.sampled_from(NAMES), st.lists(inner, max_size=4), values),
    max_leaves=15,
)


@given(st.lists(elements, max_size=4), st.lists(elements, max_size=4))
def test_any_arrangement_of_known_names_gives_a_stable_digest_or_one_error(
    parts: list[ElementTree.Element], devices: list[ElementTree.Element]
) -> None:
    domain = _with("domain", [*parts, _with("devices", devices, "")], "")
    with contextlib.suppress(WireError):
        canonical = canonical_config(ElementTree.tostring(domain).replace(b"qemu:", b""))
        assert canonical_config(canonical) == canonical


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_canonical_json_keeps_the_value_and_is_stable(value: dict[str, object]) -> None:
    canonical = canonical_config(json.dumps(value, indent=1).encode())
    assert json.loads(canonical) == value
    assert canonical_config(canonical) == canonical


def test_the_largest_documents_take_bounded_time() -> None:
    elements = CONFIG_ELEMENTS_MAX - 1
    text = b"x" * ((CONFIG_BYTES_MAX - 100) // elements - 4)
    began = time.monotonic()
    canonical_config(b"<domain>" + (b"<a/>" + text) * elements + b"</domain>")
    canonical_config(b'{"a":[' + b"0," * ((CONFIG_BYTES_MAX - 20) // 2) + b"0]}")
    assert time.monotonic() - began < 10  # seconds; some 2 on a slow machine
