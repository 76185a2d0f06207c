"""libvirt's inactive domain XML, reduced to what decides what the VM is (https://libvirt.org/formatdomain.html).

libvirt's text of one VM differs at almost every phase: generated aliases, addresses and paths, defaults, order. Only
what the right column names is left out. **Whatever isn't named here counts whole**, so that an element of a libvirt yet
to come, or of another namespace (``qemu:commandline``), changes the digest instead of slipping past it.

| element | counts | left out |
|---|---|---|
| domain | type | id, name, uuid, hwuuid, genid, title, description, metadata, seclabel |
| memory, vcpu | size in KiB, dumpCore; count, online count | currentMemory, cpuset, placement, vcpus |
| tuning of the host | – | cputune, numatune, blkiotune, memtune, resource, iothreads, pm, perf |
| os | type, machine, firmware, loader, nvram template, kernel, initrd, cmdline, boot order | automatic nvram path |
| cpu | mode, model, vendor, features, topology, numa | check, fallback; migratable=on, match=exact |
| launchSecurity | type, policy and the rest | cbitpos, reducedPhysBits: the host CPU's |
| features, memoryBacking, sysinfo | whole | – |
| events, clock | on_crash that dumps memory; clock | other on_*; clock in UTC, its adjustment |
| every device | whole, and what is passed through (source address) | alias, its own address, seclabel |
| disk | whole, with format, source, backing chain, encryption | other driver attributes, iotune, mirror, tray |
| interface | type, network or bridge, model, filter, *in order* | MAC, tap name, bandwidth, portid |
| graphics, video | type, listen address; model | automatic ports, passwd; video memory |
| serial, console, channel | type, backend | pty and automatic socket paths |
| controller; virtual keyboard, mouse | – | bus plumbing that libvirt adds |
| memballoon, watchdog, audio | any but libvirt's default | virtio; itco/reset; none |

A MAC or a tap name says which copy of a machine it is, not what it is; the order of interfaces stays because the guest
numbers them, and a firewall with its sides swapped is another machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keypeer.strictxml import Element, parse_xml
from keypeer.wire.encoding import WireError

_LEFT_OUT = (
    *("name", "uuid", "hwuuid", "genid", "title", "description", "metadata", "seclabel"),
    *("currentMemory", "vcpus", "on_poweroff", "on_reboot", "on_lockfailure"),
    *("cputune", "numatune", "blkiotune", "memtune", "resource", "perf", "pm"),
    *("iothreads", "iothreadids", "defaultiothread", "throttlegroups"),
)
_AUTOMATIC_NVRAM = "/var/lib/libvirt/qemu/nvram"
_AUTOMATIC_CHANNELS = ("/var/lib/libvirt/qemu/channel/", "/run/libvirt/qemu/channel/")
# virScaleInteger: kB and the like are decimal, k and KiB binary, in any case.
_UNITS = {"b": 1, "bytes": 1} | {
    letter + suffix: base**power
    for power, letter in enumerate("kmgtpe", start=1)
    for suffix, base in (("", 1024), ("ib", 1024), ("b", 1000))
}


def reduce_domain(document: bytes) -> list[Any]:
    """``[name, attributes, text, children]`` of what counts of a ``domain``, in one order. Raises WireError."""
    domain = parse_xml(document)
    if domain.name != "domain":
        raise WireError("vm.config", "is not a libvirt <domain>")
    name = "".join(each.text for each in domain.named("name"))
    domain.forget("id")
    domain.drop(*_LEFT_OUT)
    domain.children = [child for child in domain.children if _reduce_part(child, name)]
    return _tree(domain)


def _tree(element: Element) -> list[Any]:
    children = [_tree(child) for child in element.children]
    # libvirt's schema interleaves: order says nothing. Another namespace's may: a command line's certainly does.
    if " " not in element.name:
        children.sort(key=repr)
    return [element.name, dict(sorted(element.attributes.items())), element.text, children]


def _reduce_part(part: Element, domain_name: str) -> bool:
    """Reduces a child of ``domain`` in place; False leaves it out."""
    match part.name:
        case "memory" | "maxMemory":
            _to_kib(part)
        case "vcpu":
            part.forget("cpuset", "placement")
            part.forget_default(current=part.text)
        case "os":
            _reduce_os(part, domain_name)
        case "cpu":
            _reduce_cpu(part)
        case "launchSecurity":
            part.drop("cbitpos", "reducedPhysBits")
        case "on_crash":
            return part.text.startswith("coredump")
        case "clock":
            part.forget("adjustment", "basis")
            part.forget_default(offset="utc")
            return bool(part.attributes or part.children)
        case "devices":
            _reduce_devices(part)
    return True


def _to_kib(size: Element) -> None:
    scale = _UNITS.get(size.attributes.pop("unit", "KiB").lower())
    if scale is None or not (size.text.isascii() and size.text.isdigit() and len(size.text) <= 20):
        raise WireError("vm.config", f"<{size.name}> is not a size that libvirt knows")
    size.text = str(-(-int(size.text) * scale // 1024))  # libvirt rounds up to KiB


def _reduce_os(os: Element, domain_name: str) -> None:
    for order, boot in enumerate(os.named("boot", "initarg")):
        boot.attributes["order"] = str(order)
    for image in os.named("loader", "nvram"):
        image.forget_default(format="raw", templateFormat="raw")
    for nvram in os.named("nvram"):
        folder, _, file = nvram.text.rpartition("/")
        if folder == _AUTOMATIC_NVRAM and file.startswith(f"{domain_name}_VARS"):
            nvram.text = ""
    os.children = [each for each in os.children if each != Element("nvram", {})]


def _reduce_cpu(cpu: Element) -> None:
    cpu.forget("check")
    cpu.forget_default(migratable="on", match="exact")
    for model in cpu.named("model"):
        model.forget("fallback")
    for topology in cpu.named("topology"):
        topology.forget_default(dies="1", clusters="1")


# ── devices ────────────────────────────────────────────────────────────────────────────────────────────────────


def _reduce_devices(devices: Element) -> None:
    for device in devices.children:
        device.drop("alias", "address")
        _drop_labels(device)
    devices.children = [each for each in devices.children if _REDUCERS.get(each.name, _whole)(each)]
    _merge_consoles(devices)
    for order, interface in enumerate(devices.named("interface")):
        interface.attributes["order"] = str(order)


def _drop_labels(element: Element) -> None:
    element.drop("seclabel")
    for child in element.children:
        _drop_labels(child)


def _whole(_device: Element) -> bool:
    return True


def _left_out(_device: Element) -> bool:
    return False


def _disk(disk: Element) -> bool:
    disk.drop("iotune", "mirror", "throttlefilters")
    disk.children = [each for each in disk.children if each != Element("backingStore", {})]
    formats = [driver.attributes.get("type", "raw") for driver in disk.named("driver")] or ["raw"]
    disk.drop("driver")
    disk.children += [Element("driver", {"type": each}) for each in formats]
    disk.attributes.setdefault("device", "disk")
    for source in disk.named("source"):
        source.forget("index")
    for target in disk.named("target"):
        target.forget("tray")
    return True


def _interface(interface: Element) -> bool:
    interface.drop("mac", "target", "bandwidth")
    for source in interface.named("source"):
        source.forget("portid")
        if "network" in source.attributes:
            source.forget("bridge")  # filled in from the network while the VM runs
    return True


def _character_device(device: Element) -> bool:
    device.forget("tty")
    for target in device.named("target"):
        target.forget("state")
    for source in device.named("source"):
        path = source.attributes.get("path", "")
        if device.attributes.get("type") == "pty" or (path.startswith(_AUTOMATIC_CHANNELS) and "/../" not in path):
            device.drop("source")
    return True


def _merge_consoles(devices: Element) -> None:
    # A console on a serial port is libvirt's second name of that port; one that differs in its backend is another.
    ports = [_backend(serial) for serial in devices.named("serial")]
    devices.children = [
        each
        for each in devices.children
        if each.name != "console"
        or any(target.attributes.get("type", "serial") != "serial" for target in each.named("target"))
        or _backend(each) not in ports
    ]


def _backend(device: Element) -> Element:
    children = [child for child in device.children if child.name != "target"]
    return Element("", device.attributes, device.text, children)


def _graphics(graphics: Element) -> bool:
    if graphics.attributes.pop("autoport", "") == "yes" or graphics.attributes.get("port") == "-1":
        graphics.forget("port", "tlsPort")
    graphics.forget("passwd", "passwdValidTo", "connected")
    address = graphics.attributes.pop("listen", None)
    if address is not None and not graphics.named("listen"):
        graphics.children.append(Element("listen", {"type": "address", "address": address}))
    for listen in graphics.named("listen"):
        if "network" in listen.attributes:
            listen.forget("address")  # looked up when the VM starts
    graphics.children = [each for each in graphics.children if each != Element("listen", {"type": "address"})]
    return True


def _video(video: Element) -> bool:
    for model in video.named("model"):
        model.forget("ram", "vram", "vram64", "vgamem", "heads", "primary")
    return True


def _input(device: Element) -> bool:
    return device.attributes.get("type") not in {"mouse", "keyboard", "tablet"} or bool(device.named("source"))


def _memory_device(device: Element) -> bool:
    for target in device.named("target"):
        target.drop("address", "current")
        for size in target.named("size", "block", "requested"):
            _to_kib(size)
    return True


def _hostdev(device: Element) -> bool:
    device.children = [each for each in device.children if each != Element("driver", {"name": "vfio"})]
    for source in device.named("source"):
        if source.named("vendor"):
            source.drop("address")  # where the bus found a USB device that is named by what it is
        for address in source.named("address"):
            address.attributes = {name: _number(value) for name, value in address.attributes.items()}
    return True


def _number(text: str) -> str:
    # libvirt reads 0x0a, 0xA and 10 alike.
    try:
        return str(int(text, 0)) if len(text) <= 10 else text
    except ValueError:
        return text


def _vsock(device: Element) -> bool:
    for cid in device.named("cid"):
        if cid.attributes.get("auto") == "yes":
            cid.forget("address")
    return True


def _balloon(device: Element) -> bool:
    device.drop("stats", "driver")
    device.forget("autodeflate", "freePageReporting")
    return device != Element("memballoon", {"model": "virtio"})


def _unless_default(default: Element) -> Callable[[Element], bool]:
    return lambda device: device != default


_REDUCERS: dict[str, Callable[[Element], bool]] = {
    "audio": lambda device: device.attributes.get("type") != "none",
    "channel": _character_device,
    "console": _character_device,
    "controller": _left_out,
    "disk": _disk,
    "graphics": _graphics,
    "hostdev": _hostdev,
    "input": _input,
    "interface": _interface,
    "memballoon": _balloon,
    "memory": _memory_device,
    "parallel": _character_device,
    "serial": _character_device,
    "video": _video,
    "vsock": _vsock,
    "watchdog": _unless_default(Element("watchdog", {"model": "itco", "action": "reset"})),
}
