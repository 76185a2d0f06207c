"""Run by test_run.py at a host with a real TPM: opens a session key, extends PCR 4, and tries the same key again.

Prints "opened", then the code of the error with which the TPM refuses. Arguments: the agent's folder, the TCTI.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys

from keypeer import AsyncClient, TpmError, collect
from keypeer.state import AgentState
from keypeer.tpm import Tpm, pcr_extend


async def main(folder: str, tcti: str) -> None:
    state = AgentState.open(folder)
    async with AsyncClient(state.settings.server, ca=state.ca, certificate=state.certificate, key=state.key) as client:
        challenge = await client.challenge()
        with state.lock(), Tpm.open(tcti) as tpm:
            evidence = collect.answer(tpm, state, challenge, client.certificate, None)
        grant = (await client.attest(evidence.request)).session
    with state.lock(), Tpm.open(tcti) as tpm:
        collect.open_session(tpm, state, challenge, grant).close()
        print("opened")
        pcr_extend(tpm, "sha256", 4, hashlib.sha256(b"another boot loader").digest())
        try:
            collect.open_session(tpm, state, challenge, grant).close()
        except TpmError as error:
            print(error.code)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
