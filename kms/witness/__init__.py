"""Asking witnesses to cosign the audit log's checkpoints (C2SP tlog-witness)."""
