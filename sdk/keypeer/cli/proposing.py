"""A client whose acts become proposals where they need more officers than the one who calls."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from keypeer.approving import propose
from keypeer.client import AsyncClient
from keypeer.errors import KeypeerClientError, ProblemError
from keypeer.wire.messages import ProposalView

_Answer = TypeVar("_Answer")


class Proposed(KeypeerClientError):
    """The act wasn't done: it waits for other officers."""

    def __init__(self, view: ProposalView) -> None:
        more = f"{view.missing} more officer{'' if view.missing == 1 else 's'}"
        super().__init__(
            "approval.proposed",
            f"proposal {view.id} of {view.act} waits for {more}",
            f"they run: keypeer proposal approve {view.id}",
        )
        self.view = view


class ProposingClient(AsyncClient):
    """Calls as the identity in ``identity``, a folder. An act that needs more officers is proposed by the very same
    request, signed with the identity's key; then ``Proposed`` is raised in place of an answer."""

    def __init__(self, server: str, identity: Path) -> None:
        super().__init__(server, ca=identity / "ca.pem", certificate=identity / "cert.pem", key=identity / "key.pem")
        self.identity = identity

    async def call(
        self,
        method: str,
        path: str,
        answer: type[_Answer],
        body: msgspec.Struct | None = None,
        *,
        query: Mapping[str, str | int] | None = None,
        repeat: bool = False,
        accept: int = 0,
    ) -> _Answer:
        try:
            return await super().call(method, path, answer, body, query=query, repeat=repeat, accept=accept)
        except ProblemError as error:
            if error.code != "approval.required":
                raise
        view = await propose(self, self.identity, method, path, query, body, why=getattr(body, "why", "") or "")
        raise Proposed(view)
