"""What both ends of the protocol must agree on: messages, canonical bytes, the TPM profile. Pure; imports nothing of
keypeer."""
