"""Dynamic launch (Intel TXT, AMD SKINIT): that the hypervisor was measured by the CPU's own instruction, late, with
everything that booted before it out of the trusted base (TCG D-RTM Architecture; PC Client Platform TPM Profile §4.6).

PCRs 17 to 22 tell by their start values: TPM2_Startup sets them to all ones, a dynamic launch (_TPM_Hash_Start at
locality 4) resets them to zero and then extends PCR 17. Nothing else gives them a value that was extended from zero.
"""

from __future__ import annotations

from collections.abc import Mapping

from kms.evidence.model import Findings

DRTM_PCRS = range(17, 23)  # PC Client Platform TPM Profile §4.6.2: reset by a dynamic launch alone
LAUNCH_PCR = 17  # the launch itself: ACM and policy (TXT), the secure loader block (SKINIT)


def drtm_launched(pcrs: Mapping[int, bytes]) -> bool:
    """Whether ``pcrs`` (quoted and proven) can only come from a dynamic launch. That it was a good one is for the
    allowed values to say."""
    value = pcrs.get(LAUNCH_PCR)
    if value is None or not value or _all(value, 0x00):
        return False
    # A launch resets all six, so one of them still at all ones means that there was none.
    return not any(_all(pcrs[pcr], 0xFF) for pcr in DRTM_PCRS if pcr in pcrs)


def check_drtm(findings: Findings, pcrs: Mapping[int, bytes], allowed: Mapping[int, tuple[bytes, ...]]) -> None:
    """That a dynamic launch took place and left the values that ``allowed``, one baseline's PCRs, lists for 17 to 22.
    PCR 17 must be among them: a launch of just anything proves nothing. Entries for other PCRs are ignored.

    Adds ``platform.drtm`` when there was no launch or none can be judged, ``platform.drtm.pcr<n>`` for a wrong value.
    """
    if not drtm_launched(pcrs):
        findings.add(
            "platform.drtm",
            asked="a dynamic launch (Intel TXT or AMD SKINIT)",
            found=_why_not(pcrs),
            mend=f"start host {findings.host} with tboot or Secure Launch (enable TXT or SKINIT in its firmware)",
        )
        return
    if not allowed.get(LAUNCH_PCR):
        findings.add(
            "platform.drtm",
            asked=f"a baseline that lists PCR {LAUNCH_PCR} of a good dynamic launch",
            found="one that doesn't",
            mend=f"record a baseline of host {findings.host} after a good dynamic launch and have it approved",
        )
        return
    for pcr in DRTM_PCRS:
        if pcr in allowed and pcrs.get(pcr) not in allowed[pcr]:
            value = pcrs.get(pcr)
            findings.add(
                f"platform.drtm.pcr{pcr}",
                asked=f"PCR {pcr} is {' or '.join(each.hex() for each in allowed[pcr]) or 'a value that is listed'}",
                found=f"PCR {pcr} is {value.hex() if value is not None else 'not quoted'}",
                mend=f"launch host {findings.host} with the approved SINIT module, policy and kernel, or have a new "
                "baseline approved",
            )


def _why_not(pcrs: Mapping[int, bytes]) -> str:
    value = pcrs.get(LAUNCH_PCR)
    if not value:
        return f"PCR {LAUNCH_PCR} isn't quoted"
    if _all(value, 0xFF):
        return f"PCR {LAUNCH_PCR} is all ones: nothing was launched since the TPM started"
    if _all(value, 0x00):
        return f"PCR {LAUNCH_PCR} is zero: reset, and nothing was measured"
    untouched = ", ".join(str(pcr) for pcr in DRTM_PCRS if pcr in pcrs and _all(pcrs[pcr], 0xFF))
    return f"PCR {untouched} still at all ones: a launch would have reset it"


def _all(value: bytes, octet: int) -> bool:
    return value.count(octet) == len(value)
