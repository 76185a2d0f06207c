"""What can go wrong with a hypervisor."""

from __future__ import annotations

from keypeer.errors import KeypeerClientError


class HypervisorError(KeypeerClientError):
    """QEMU, swtpm or libvirt said no, or died (qemu.*, vtpm.*, migration.*, libvirt.*, tmemk.*)."""
