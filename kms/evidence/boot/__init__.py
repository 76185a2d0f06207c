"""Boot evidence: the firmware's event log, replayed to the quoted PCRs (DESIGN §6 rule 7)."""
