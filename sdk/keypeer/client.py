"""Every call of the HTTP API, typed. ``async with AsyncClient(server, ca=…, certificate=…, key=…) as client: …``

All raise what ``Transport.call`` raises. Pages: pass the last page's ``next`` as ``after``.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, nullcontext
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

import msgspec

from keypeer.errors import AnswerError, KeypeerClientError, ProblemError
from keypeer.eventstream import listen_on
from keypeer.transport import Transport
from keypeer.wire import messages as m
from keypeer.wire.proposals import Decision
from keypeer.wire.runtime import RuntimePolicy
from keypeer.wire.tlog.tiles import Tile

_line = msgspec.json.Decoder(m.BatchLine)
PAGE_DEFAULT = 100  # items; the service's own default
_UNAVAILABLE = 503


class Page(Protocol):
    """What every list answers."""

    @property
    def items(self) -> tuple[Any, ...]:
        """The items, in order."""

    @property
    def next(self) -> str | None:
        """Where the next page begins."""


_Page = TypeVar("_Page", bound=Page)


class AsyncClient(Transport):
    """The service, called as one identity."""

    # ── hosts' own calls ───────────────────────────────────────────────────────────────────────────────────────

    async def enrol(self, request: m.EnrolRequest) -> m.EnrolChallenge:
        """Asks for a credential challenge; needs no certificate. Nothing is kept until ``activate``."""
        return await self.call("POST", "/v1/enrolments", m.EnrolChallenge, request, repeat=True)

    async def activate(self, request: m.ActivateRequest) -> m.EnrolResult:
        """Proves EK and AK; answers the host's certificate."""
        return await self.call("POST", "/v1/activations", m.EnrolResult, request)

    async def challenge(self, request: m.ChallengeRequest | None = None) -> m.Challenge:
        """A nonce and what to prove."""
        return await self.call("POST", "/v1/challenges", m.Challenge, request or m.ChallengeRequest(), repeat=True)

    async def attest(self, request: m.AttestRequest) -> m.AttestResult:
        """Sends evidence; a refusal is a ProblemError ``attestation.refused`` with every reason."""
        return await self.call("POST", "/v1/attestations", m.AttestResult, request)

    async def release(self, vm: str, session: str, version: int | None = None) -> m.Release:
        """One VM's key, wrapped to ``session``. Asking again renews the lease. ``version``: one before the current one,
        which the host's lease names."""
        body = m.ReleaseRequest(session=session, version=version)
        return await self.call("POST", f"/v1/vms/{_name(vm)}/key/release", m.Release, body, repeat=True)

    async def release_many(self, vms: Sequence[str], session: str) -> m.BatchRelease:
        """Up to 10,000 VMs' keys, each decided on its own."""
        body = m.BatchReleaseRequest(session=session, vms=tuple(vms))
        return await self.call("POST", "/v1/releases", m.BatchRelease, body, repeat=True)

    async def release_lines(self, vms: Sequence[str], session: str) -> AsyncGenerator[m.BatchItem, None]:
        """As ``release_many``, each VM as soon as its release is durable, one named twice once; never tried again.
        Raises ProblemError for what refused all, or at the end for what refused the rest: VMs without an item may be
        asked for again. An answer that breaks off raises too."""
        body = m.BatchReleaseRequest(session=session, vms=tuple(vms))
        end: m.BatchEnd | None = None
        told = 0
        async with aclosing(self.lines("/v1/releases", body)) as lines:
            async for text in lines:
                line = _batch_line(text)
                if end is not None or (line.vm is None) == (line.end is None):
                    raise AnswerError("service.answer", "a line that is neither a VM's nor the end")
                if line.vm is not None:
                    told += 1
                    yield m.BatchItem(vm=line.vm, release=line.release, problem=line.problem)
                end = line.end
        if end is None:
            raise AnswerError("service.answer", "the lines ended without an end")
        if end.problem is not None:
            raise ProblemError(end.problem)
        if not told == end.items == len(set(vms)):
            raise AnswerError(
                "service.answer",
                f"{told} of {len(set(vms))} VMs were told, {end.items} by its own count, without a word why",
            )

    # ── events ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def host_events(self, host: str, after: int = 0, limit: int = PAGE_DEFAULT) -> m.EventPage:
        """A page of what a host should hear; a host may ask about itself."""
        query = {"after": after, "limit": limit}
        return await self.call("GET", f"/v1/hosts/{_name(host)}/events", m.EventPage, query=query, repeat=True)

    async def events(self, after: int = 0, limit: int = PAGE_DEFAULT) -> m.EventPage:
        """A page of what happened to trust in hosts."""
        return await self.call("GET", "/v1/events", m.EventPage, query={"after": after, "limit": limit}, repeat=True)

    def listen(
        self,
        host: str | None = None,
        last: int | None = None,
        trouble: Callable[[KeypeerClientError | None], None] = lambda _: None,
    ) -> AsyncGenerator[m.HostEvent, None]:
        """The events of ``host``, or of all, without end; from now on, or after the ``last``-th. Connections that break
        are made again, and no event is lost (``resync`` says so where one was). ``trouble`` hears why there is none."""
        path = "/v1/events" if host is None else f"/v1/hosts/{_name(host)}/events"
        return listen_on(lambda: nullcontext(self), path, last, trouble)

    async def renew_leases(self, session: str, after: str | None = None) -> m.RenewedLeases:
        """Renews a page of the host's leases; pass its ``next`` as ``after``."""
        body = m.RenewLeases(session=session, after=after)
        return await self.call("POST", "/v1/leases/renew", m.RenewedLeases, body, repeat=True)

    # ── hosts and geo-tags ─────────────────────────────────────────────────────────────────────────────────────

    async def host(self, host: str) -> m.HostView:
        """One host; a host may ask about itself."""
        return await self.call("GET", f"/v1/hosts/{_name(host)}", m.HostView, repeat=True)

    async def hosts(self, after: str = "", limit: int = PAGE_DEFAULT) -> m.HostPage:
        """A page of hosts."""
        return await self._page("/v1/hosts", m.HostPage, after, limit)

    async def approve_host(self, host: str) -> m.HostView:
        """Lets an enrolled host attest (officer)."""
        return await self.call("POST", f"/v1/hosts/{_name(host)}/approve", m.HostView)

    async def revoke_host(self, host: str, why: str) -> m.HostView:
        """Ends a host's session and trust (officer)."""
        return await self.call("POST", f"/v1/hosts/{_name(host)}/revoke", m.HostView, m.RevokeHost(why=why))

    async def expect_host(self, request: m.ExpectHost) -> None:
        """Puts an EK on the inventory (officer)."""
        await self.call("POST", "/v1/expected-hosts", type(None), request)

    async def appraisal_token(self, host: str, nonce: str = "") -> m.AppraisalToken:
        """A host's appraisal as a signed token; ProblemError ``appraisal.none`` where there is no good one."""
        path, query = f"/v1/hosts/{_name(host)}/appraisal-token", {"nonce": nonce} if nonce else {}
        return await self.call("GET", path, m.AppraisalToken, query=query, repeat=True)

    async def appraisal_keys(self) -> m.JwkSet:
        """What verifies appraisal tokens; needs no certificate."""
        return await self.call("GET", "/v1/keys", m.JwkSet, repeat=True)

    async def issue_geo_tag(self, host: str, request: m.IssueGeoTag) -> m.GeoTagView:
        """States where a host stands (officer)."""
        return await self.call("POST", f"/v1/hosts/{_name(host)}/geo-tag", m.GeoTagView, request)

    async def geo_tag(self, host: str) -> m.GeoTagView:
        """A host's current tag; a host may ask for its own. ProblemError ``geo.missing`` where there is none."""
        return await self.call("GET", f"/v1/hosts/{_name(host)}/geo-tag", m.GeoTagView, repeat=True)

    async def geo_tags(self, after: str = "", limit: int = PAGE_DEFAULT) -> m.GeoTagPage:
        """A page of current tags."""
        return await self._page("/v1/geo-tags", m.GeoTagPage, after, limit)

    # ── baselines and policies ─────────────────────────────────────────────────────────────────────────────────

    async def put_baseline(self, name: str, request: m.PutBaseline) -> m.BaselineView:
        """Proposes reference values (officer)."""
        return await self.call("PUT", f"/v1/baselines/{_name(name)}", m.BaselineView, request, repeat=True)

    async def record_baseline(self, name: str, request: m.RecordBaseline) -> m.BaselineView:
        """Proposes what a golden host proved last (officer)."""
        return await self.call("POST", f"/v1/baselines/{_name(name)}/record", m.BaselineView, request)

    async def approve_baseline(self, name: str) -> m.BaselineView:
        """Puts a proposed baseline in force (officer)."""
        return await self.call("POST", f"/v1/baselines/{_name(name)}/approve", m.BaselineView, repeat=True)

    async def retire_baseline(self, name: str) -> m.BaselineView:
        """Takes a baseline out of force, for good (officer)."""
        return await self.call("POST", f"/v1/baselines/{_name(name)}/retire", m.BaselineView, repeat=True)

    async def baseline(self, name: str) -> m.BaselineView:
        """One baseline."""
        return await self.call("GET", f"/v1/baselines/{_name(name)}", m.BaselineView, repeat=True)

    async def baseline_differences(self, name: str, *, other: str = "", host: str = "") -> m.Differences:
        """A baseline beside another one, or beside what a host proved last."""
        query = {"baseline": other} if other else {"host": host}
        path = f"/v1/baselines/{_name(name)}/differences"
        return await self.call("GET", path, m.Differences, query=query, repeat=True)

    async def baselines(self, after: str = "", limit: int = PAGE_DEFAULT) -> m.BaselinePage:
        """A page of baselines."""
        return await self._page("/v1/baselines", m.BaselinePage, after, limit)

    async def put_runtime_policy(self, name: str, document: RuntimePolicy) -> m.RuntimePolicySummary:
        """Stores a runtime policy (officer)."""
        path = f"/v1/runtime-policies/{_name(name)}"
        return await self.call("PUT", path, m.RuntimePolicySummary, document, repeat=True)

    async def delete_runtime_policy(self, name: str) -> None:
        """Takes a runtime policy out of force (officer)."""
        await self.call("DELETE", f"/v1/runtime-policies/{_name(name)}", type(None))

    async def runtime_policy(self, name: str) -> m.RuntimePolicyView:
        """One runtime policy, whole."""
        return await self.call("GET", f"/v1/runtime-policies/{_name(name)}", m.RuntimePolicyView, repeat=True)

    async def runtime_policies(self) -> m.RuntimePolicyPage:
        """All runtime policies."""
        return await self.call("GET", "/v1/runtime-policies", m.RuntimePolicyPage, repeat=True)

    async def put_policy(self, name: str, document: m.PolicyDocument) -> m.PolicyView:
        """Stores a policy (officer)."""
        return await self.call("PUT", f"/v1/policies/{_name(name)}", m.PolicyView, document, repeat=True)

    async def policy(self, name: str) -> m.PolicyView:
        """One policy."""
        return await self.call("GET", f"/v1/policies/{_name(name)}", m.PolicyView, repeat=True)

    async def policies(self, after: str = "", limit: int = PAGE_DEFAULT) -> m.PolicyPage:
        """A page of policies."""
        return await self._page("/v1/policies", m.PolicyPage, after, limit)

    async def explain(self, vm: str, host: str) -> m.Explanation:
        """What a release of ``vm`` to ``host`` would be answered now."""
        query = {"vm": vm, "host": host}
        return await self.call("GET", "/v1/explanations", m.Explanation, query=query, repeat=True)

    # ── signing keys ───────────────────────────────────────────────────────────────────────────────────────────

    async def signing_keys(self) -> m.SigningKeyPage:
        """The signing keys and their versions."""
        return await self.call("GET", "/v1/signing-keys", m.SigningKeyPage, repeat=True)

    async def rotate_signing_key(self, name: str) -> m.SigningKeyView:
        """Makes a new version, which signs from then on (officer)."""
        return await self.call("POST", f"/v1/signing-keys/{_name(name)}/rotation", m.SigningKeyView)

    async def retire_signing_key(self, name: str, version: int, why: str, *, anyway: bool = False) -> m.SigningKeyView:
        """Lets nothing that an old version signed be good any more (officer). ``anyway``: of ``ca``, though hosts and
        staff hold certificates by it."""
        path = f"/v1/signing-keys/{_name(name)}/versions/{version}/retirement"
        return await self.call("POST", path, m.SigningKeyView, m.RetireVersion(why=why, anyway=anyway), repeat=True)

    async def signing_key(self, name: str) -> m.SigningKeyView:
        """One signing key; of ``ca`` also who hasn't moved to its newest version."""
        return await self.call("GET", f"/v1/signing-keys/{_name(name)}", m.SigningKeyView, repeat=True)

    async def ca_bundle(self) -> m.CaBundle:
        """The CA certificates in force."""
        return await self.call("GET", "/v1/ca-bundle", m.CaBundle, repeat=True)

    async def renew_certificate(self) -> m.OwnCertificate:
        """The caller's certificate by the newest CA, over the same key; asking again does no harm."""
        return await self.call("POST", "/v1/certificate", m.OwnCertificate, repeat=True)

    async def destroy_signing_key(self, name: str, version: int) -> m.SigningKeyView:
        """Destroys an old version that nothing needs (officer)."""
        path = f"/v1/signing-keys/{_name(name)}/versions/{version}"
        return await self.call("DELETE", path, m.SigningKeyView, repeat=True)

    # ── quotas ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def put_quota(self, kind: m.OwnerKind, name: str, max_keys: int | None) -> m.QuotaView:
        """How many VM keys a tenant or an operator may have; None: any number (officer)."""
        body = m.PutQuota(max_keys=max_keys)
        return await self.call("PUT", f"/v1/quotas/{kind}/{_name(name)}", m.QuotaView, body, repeat=True)

    async def quota(self, kind: m.OwnerKind, name: str) -> m.QuotaView:
        """Quota and keys of one."""
        return await self.call("GET", f"/v1/quotas/{kind}/{_name(name)}", m.QuotaView, repeat=True)

    async def quotas(self, kind: m.OwnerKind, after: str = "", limit: int = PAGE_DEFAULT) -> m.QuotaPage:
        """A page of those with a quota or with keys."""
        return await self._page(f"/v1/quotas/{kind}", m.QuotaPage, after, limit)

    # ── officers ───────────────────────────────────────────────────────────────────────────────────────────────

    async def create_proposal(self, request: m.CreateProposal) -> m.ProposalView:
        """Proposes an act (officer); nobody has approved it then (keypeer.approving does both)."""
        return await self.call("POST", "/v1/proposals", m.ProposalView, request)

    async def proposal(self, proposal: str) -> m.ProposalView:
        """One proposal with its document."""
        return await self.call("GET", f"/v1/proposals/{_name(proposal)}", m.ProposalView, repeat=True)

    async def proposals(self, after: str = "", limit: int = PAGE_DEFAULT) -> m.ProposalPage:
        """A page of the proposals that are open."""
        return await self._page("/v1/proposals", m.ProposalPage, after, limit)

    async def all_proposals(self, after: str = "", limit: int = PAGE_DEFAULT) -> m.ProposalPage:
        """A page of all proposals, ended ones too."""
        query: dict[str, str | int] = {"limit": limit, "state": "all", **({"after": after} if after else {})}
        return await self.call("GET", "/v1/proposals", m.ProposalPage, query=query, repeat=True)

    async def decide_proposal(self, proposal: str, decision: Decision, signature: str) -> m.ProposalView:
        """Approves or rejects (officer); the last approval that is needed carries the act out."""
        path = f"/v1/proposals/{_name(proposal)}/{'approvals' if decision == 'approve' else 'rejections'}"
        return await self.call("POST", path, m.ProposalView, m.SignDecision(signature=signature), repeat=True)

    async def execute_proposal(self, proposal: str) -> m.ProposalView:
        """Carries an approved proposal out whose act failed before (officer)."""
        return await self.call("POST", f"/v1/proposals/{_name(proposal)}/execute", m.ProposalView)

    async def approval_rules(self) -> m.ApprovalsView:
        """How many officers each act needs."""
        return await self.call("GET", "/v1/approval-rules", m.ApprovalsView, repeat=True)

    async def set_approvals(self, needs: dict[str, int]) -> m.ApprovalsView:
        """How many officers the acts named need from now on (officer)."""
        return await self.call("PATCH", "/v1/approval-rules", m.ApprovalsView, m.SetApprovals(needs=needs))

    async def put_principal(self, role: m.StaffRole, name: str, request: m.PutPrincipal) -> m.PrincipalView:
        """Enrols an officer, operator or auditor (officer); answers with the certificate."""
        return await self.call("PUT", f"/v1/principals/{role}/{_name(name)}", m.PrincipalView, request)

    async def renew_principal(self, role: m.StaffRole, name: str, csr: str) -> m.PrincipalView:
        """A new certificate for the caller itself."""
        path = f"/v1/principals/{role}/{_name(name)}/renew"
        return await self.call("POST", path, m.PrincipalView, m.RenewPrincipal(csr=csr))

    async def remove_principal(self, role: m.StaffRole, name: str) -> None:
        """Ends someone's right to call (officer)."""
        await self.call("DELETE", f"/v1/principals/{role}/{_name(name)}", type(None))

    async def principal(self, role: m.StaffRole, name: str) -> m.PrincipalView:
        """One of the staff, with the certificate."""
        return await self.call("GET", f"/v1/principals/{role}/{_name(name)}", m.PrincipalView, repeat=True)

    async def principals(self, role: m.StaffRole, after: str = "", limit: int = PAGE_DEFAULT) -> m.PrincipalPage:
        """A page of those of a role."""
        return await self._page(f"/v1/principals/{role}", m.PrincipalPage, after, limit)

    # ── VMs, audit, health ─────────────────────────────────────────────────────────────────────────────────────

    async def create_vm(self, request: m.CreateVm) -> m.VmView:
        """Makes a VM key (operator)."""
        return await self.call("POST", "/v1/vms", m.VmView, request)

    async def create_vms(self, requests: Sequence[m.CreateVm]) -> int:
        """Makes up to 10,000, or none (operator); answers how many."""
        body = m.CreateVmBatch(vms=tuple(requests))
        return (await self.call("POST", "/v1/vm-batches", m.CreatedVms, body)).created

    async def vm(self, vm: str) -> m.VmView:
        """One VM key's public facts."""
        return await self.call("GET", f"/v1/vms/{_name(vm)}", m.VmView, repeat=True)

    async def vms(
        self,
        after: str = "",
        limit: int = PAGE_DEFAULT,
        *,
        tenant: str = "",
        policy: str = "",
        state: m.VmState | None = None,
        labels: Mapping[str, str] | None = None,
        prefix: str = "",
    ) -> m.VmPage:
        """A page of VMs, of those that fit. With a filter a page may be short and have a next one."""
        pairs = ",".join(f"{name}={value}" for name, value in (labels or {}).items())
        only = {"tenant": tenant, "policy": policy, "state": state or "", "labels": pairs, "prefix": prefix}
        return await self._page("/v1/vms", m.VmPage, after, limit, only)

    async def import_key(self) -> m.ImportKeyView:
        """What keys are wrapped to before they are imported (operator)."""
        return await self.call("GET", "/v1/import-key", m.ImportKeyView, repeat=True)

    async def import_vm(self, request: m.ImportVm) -> m.VmView:
        """Imports a VM key that ``keypeer.keyimport.wrap`` wrapped (operator)."""
        return await self.call("POST", "/v1/vm-imports", m.VmView, request)

    async def set_labels(self, vm: str, labels: Mapping[str, str]) -> m.VmView:
        """Sets all labels of a VM (operator)."""
        body = m.SetLabels(labels=dict(labels))
        return await self.call("PUT", f"/v1/vms/{_name(vm)}/labels", m.VmView, body, repeat=True)

    async def set_tenant(self, vm: str, tenant: str | None) -> m.VmView:
        """Sets a VM's owner (officer)."""
        body = m.SetTenant(tenant=tenant)
        return await self.call("PUT", f"/v1/vms/{_name(vm)}/tenant", m.VmView, body, repeat=True)

    async def activate_vm(self, vm: str, why: str = "") -> m.VmView:
        """Lets a pre-active key be released (officer)."""
        return await self._vm_act(vm, "activate", m.VmAct(why=why))

    async def suspend_vm(self, vm: str, why: str = "") -> m.VmView:
        """Stops releases for a time (officer)."""
        return await self._vm_act(vm, "suspend", m.VmAct(why=why))

    async def resume_vm(self, vm: str, why: str = "") -> m.VmView:
        """Ends a suspension (officer)."""
        return await self._vm_act(vm, "resume", m.VmAct(why=why))

    async def compromise_vm(self, vm: str, why: str = "") -> m.VmView:
        """Marks a key as compromised, which stops releases (officer)."""
        return await self._vm_act(vm, "compromise", m.VmAct(why=why))

    async def deactivate_vm(self, vm: str, readable: int = 0, why: str = "") -> m.VmView:
        """Stops releases for good; its holder reads it for ``readable`` seconds more (officer)."""
        return await self._vm_act(vm, "deactivate", m.DeactivateVm(readable=readable, why=why))

    async def destroy_vm(self, vm: str, after: int | None = None, why: str = "") -> m.VmView:
        """Schedules a key's destruction, ``after`` seconds from now (officer)."""
        return await self._vm_act(vm, "destroy", m.DestroyVm(after=after, why=why))

    async def cancel_destroy_vm(self, vm: str, why: str = "") -> m.VmView:
        """Cancels a scheduled destruction (officer)."""
        return await self._vm_act(vm, "cancel-destroy", m.VmAct(why=why))

    async def begin_migration(self, vm: str, request: m.BeginMigration) -> m.MigrationView:
        """Begins a VM's hand-over (its owner, or an operator). The same ``id`` again is the same call."""
        return await self.call("POST", f"/v1/vms/{_name(vm)}/migrations", m.MigrationView, request, repeat=True)

    async def accept_migration(self, vm: str, migration: str, session: str) -> m.AcceptedMigration:
        """The destination's key, still wrapped (host)."""
        body = m.AcceptMigration(session=session)
        return await self.call("POST", _migration(vm, migration, "accept"), m.AcceptedMigration, body, repeat=True)

    async def switch_over(self, vm: str, migration: str, generation: int) -> m.MigrationView:
        """Makes the destination the owner (the source)."""
        body = m.SwitchOver(generation=generation)
        return await self.call("POST", _migration(vm, migration, "switchover"), m.MigrationView, body, repeat=True)

    async def leave_migration(self, vm: str, migration: str) -> m.MigrationView:
        """The source's copy of the VM runs no more (the source)."""
        return await self.call("POST", _migration(vm, migration, "leave"), m.MigrationView, repeat=True)

    async def complete_migration(self, vm: str, migration: str) -> m.MigrationView:
        """The VM runs at the destination (the destination)."""
        return await self.call("POST", _migration(vm, migration, "complete"), m.MigrationView, repeat=True)

    async def abort_migration(self, vm: str, migration: str, why: str = "") -> m.MigrationView:
        """The VM stays with the source: not after the switchover (source, destination, operator)."""
        body = m.AbortMigration(why=why)
        return await self.call("POST", _migration(vm, migration, "abort"), m.MigrationView, body, repeat=True)

    async def migration(self, vm: str) -> m.MigrationView:
        """A VM's last hand-over."""
        return await self.call("GET", f"/v1/vms/{_name(vm)}/migration", m.MigrationView, repeat=True)

    async def migrations(self, after: str = "", limit: int = PAGE_DEFAULT) -> m.MigrationPage:
        """A page of the VMs' last hand-overs."""
        return await self._page("/v1/migrations", m.MigrationPage, after, limit)

    async def rotate_vm(self, vm: str, readable: int | None = None, why: str = "") -> m.VmView:
        """Makes a key's next version; the one before stays readable for so many seconds (officer)."""
        return await self._vm_act(vm, "rotate", m.RotateVm(readable=readable, why=why))

    async def rotate_vms(self, request: m.RotateVms) -> m.VmRotationView:
        """Begins the rotation of every key that fits (officer)."""
        return await self.call("POST", "/v1/vm-rotations", m.VmRotationView, request)

    async def vm_rotation(self, rotation: str) -> m.VmRotationView:
        """How far a rotation of many keys is."""
        return await self.call("GET", f"/v1/vm-rotations/{_name(rotation)}", m.VmRotationView, repeat=True)

    async def vm_rotations(self, after: str = "", limit: int = PAGE_DEFAULT) -> m.VmRotationPage:
        """A page of rotations of many keys."""
        return await self._page("/v1/vm-rotations", m.VmRotationPage, after, limit)

    async def _vm_act(self, vm: str, act: str, body: m.Request) -> m.VmView:
        return await self.call("POST", f"/v1/vms/{_name(vm)}/{act}", m.VmView, body)

    async def audit(self, after: int = 0, limit: int = PAGE_DEFAULT, **wanted: str | int) -> m.AuditPage:
        """Entries of the audit log after the first ``after`` ones, or with ``newest=1`` those below ``before``, newest
        first (auditor). ``action``, ``outcome``, ``actor``, ``host``, ``vm``, ``code``, ``since`` and ``until`` (Unix
        seconds) narrow it. Pass ``next`` as ``after``, or as ``before``."""
        query: dict[str, str | int] = {"after": after, "limit": limit, **wanted}
        return await self.call("GET", "/v1/audit", m.AuditPage, query=query, repeat=True)

    async def log_checkpoint(self, *, cosigned: bool = False) -> bytes:
        """The audit log's signed head (C2SP tlog-checkpoint); the newest that witnesses cosigned when asked so."""
        return await self.fetch("/v1/log/checkpoint", query={"cosigned": 1} if cosigned else None)

    async def log_keys(self) -> m.LogKeys:
        """What verifies checkpoints, as the service tells it."""
        return await self.call("GET", "/v1/log/key", m.LogKeys, repeat=True)

    async def log_tile(self, tile: Tile) -> bytes:
        """A tile of the audit log, or a bundle of entries (C2SP tlog-tiles)."""
        return await self.fetch(f"/v1/log/{tile.path}")

    async def log_inclusion(self, sequence: int, size: int) -> m.InclusionProof:
        """That an entry is among the first ``size`` of the audit log."""
        query = {"sequence": sequence, "size": size}
        return await self.call("GET", "/v1/log/inclusion", m.InclusionProof, query=query, repeat=True)

    async def log_consistency(self, old: int, new: int) -> m.ConsistencyProof:
        """That the audit log only grew from the one size to the other."""
        query = {"from": old, "to": new}
        return await self.call("GET", "/v1/log/consistency", m.ConsistencyProof, query=query, repeat=True)

    async def alive(self) -> m.HealthCheck:
        """Does a process answer? Needs no certificate."""
        return await self.call("GET", "/healthz", m.HealthCheck, repeat=True)

    async def readiness(self) -> m.Readiness:
        """Would a release succeed now, and if not, why? Needs no certificate; an unready service is an answer."""
        return await self.call("GET", "/readyz", m.Readiness, repeat=True, accept=_UNAVAILABLE)

    async def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        return await self.call("GET", "/openapi.json", dict[str, Any], repeat=True)

    # ── the HSM's keys ─────────────────────────────────────────────────────────────────────────────────────────

    async def keys(self) -> m.KeyPage:
        """The long-lived keys in the HSM, their versions and last rotations."""
        return await self.call("GET", "/v1/key-versions", m.KeyPage, repeat=True)

    async def rollback(self) -> m.RollbackView:
        """The audit log's head in the HSM token and in the store."""
        return await self.call("GET", "/v1/store/rollback", m.RollbackView, repeat=True)

    async def accept_rollback(self, request: m.AcceptRollback) -> m.RollbackView:
        """Takes a database that was put back as it is (officer)."""
        return await self.call("POST", "/v1/store/accept-rollback", m.RollbackView, request)

    async def rotate_key(self, key: str) -> m.RotationView:
        """Begins the rotation of a key (officer); ``rotation`` tells how far it is."""
        return await self.call("POST", f"/v1/keys/{_name(key)}/rotation", m.RotationView)

    async def rotation(self, key: str) -> m.RotationView:
        """The last rotation of a key. ProblemError ``rotation.none`` where there was none."""
        return await self.call("GET", f"/v1/keys/{_name(key)}/rotation", m.RotationView, repeat=True)

    async def pause_rotation(self, key: str) -> m.RotationView:
        """Lets a rotation stand where it is (officer)."""
        return await self.call("POST", f"/v1/keys/{_name(key)}/rotation/pause", m.RotationView)

    async def resume_rotation(self, key: str) -> m.RotationView:
        """Lets it go on (officer)."""
        return await self.call("POST", f"/v1/keys/{_name(key)}/rotation/resume", m.RotationView)

    async def destroy_key(self, key: str, version: int) -> m.DestroyedVersion:
        """Destroys an old version (officer); ProblemError ``key.in_use`` while anything needs it."""
        return await self.call("DELETE", f"/v1/keys/{_name(key)}/versions/{version}", m.DestroyedVersion)

    async def _page(
        self, path: str, answer: type[_Page], after: str, limit: int, only: Mapping[str, str] | None = None
    ) -> _Page:
        query: dict[str, str | int] = {"limit": limit} | ({"after": after} if after else {})
        query |= {name: value for name, value in (only or {}).items() if value}
        return await self.call("GET", path, answer, query=query, repeat=True)


def _batch_line(text: bytes) -> m.BatchLine:
    try:
        return _line.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise AnswerError("service.answer", f"a line that is none: {error}") from None


async def every(fetch: Callable[[str, int], Awaitable[Page]], page: int = 1000) -> AsyncIterator[Any]:
    """All items of a list, page after page: ``async for host in every(client.hosts)``."""
    after: str | None = ""
    while after is not None:
        answer = await fetch(after, page)
        for item in answer.items:
            yield item
        after = answer.next


def _migration(vm: str, migration: str, act: str) -> str:
    return f"/v1/vms/{_name(vm)}/migrations/{_name(migration)}/{act}"


def _name(name: str) -> str:
    """One segment of a path; whether it is a name is the service's to say."""
    return quote(name, safe="")
