"""The approval rules and the officers who are enrolled, read together, with what a commit has to check of them."""

from __future__ import annotations

from dataclasses import dataclass

from kms import limits
from kms.approvals import needed
from kms.domain.staff import ApprovalRules, Principal
from kms.records import APPROVAL_RULES, PRINCIPALS, Loaded, Records
from kms.store.port import Check, Store

RULES = "officers"


@dataclass(frozen=True, slots=True)
class Officers:
    """The rules in force (None: one officer for each act), and every officer."""

    rules: Loaded[ApprovalRules] | None
    principals: tuple[Loaded[Principal], ...]

    @property
    def keys(self) -> dict[str, bytes]:
        """Officer → the key (SPKI) that verifies their decisions, of those who have one."""
        found = {each.value.name: each.value.approval_key or each.value.public_key for each in self.principals}
        return {name: key for name, key in found.items() if key}

    @property
    def rules_check(self) -> Check:
        """That the rules are still these."""
        return rules_check(self.rules)

    @property
    def checks(self) -> tuple[Check, ...]:
        """That rules and officers are still these. One who joined since isn't noticed, and does no harm."""
        return (self.rules_check, *(each.check for each in self.principals))

    def needed(self, act: str) -> int:
        """How many officers ``act`` needs."""
        return needed(self.rules.value if self.rules else None, act)


def rules_check(rules: Loaded[ApprovalRules] | None) -> Check:
    """That the rules are still these."""
    return rules.check if rules else Check(APPROVAL_RULES.key(RULES), 0)


async def load_rules(records: Records) -> Loaded[ApprovalRules] | None:
    """The rules, freshly read."""
    return await records.load(APPROVAL_RULES, RULES)


async def load_officers(store: Store, records: Records) -> Officers:
    """Rules and officers, freshly read."""
    items = await store.scan(PRINCIPALS.key("officer/"), b"", limits.OFFICERS_MAX)
    opened = await records.open(PRINCIPALS, items)
    return Officers(await load_rules(records), tuple(each for each in opened if each is not None))
