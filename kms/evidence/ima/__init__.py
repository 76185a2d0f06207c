"""Runtime evidence: Linux' IMA list, replayed to PCR 10 and held against a runtime policy (DESIGN §6 rule 8)."""
