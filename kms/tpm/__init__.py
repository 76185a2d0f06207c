"""TPM 2.0 wire formats and single checks. Pure: bytes in, values out; no TPM is needed."""
