"""A host agent in a few lines: python example.py FOLDER VM, where FOLDER is one that `keypeer agent enrol` made."""

# ruff: noqa: T201 - a program to be run and pasted from, not a library
import sys

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

import keypeer

folder, vm = sys.argv[1:]
try:
    with keypeer.Host.open(folder) as host, host.release(vm) as key, key.derive("page", epoch=1, size=64) as page_key:
        cipher = Cipher(algorithms.AES(page_key.view()), modes.XTS(bytes(16)))  # the tweak is the page's number
        page = cipher.encryptor().update(bytes(4096))
        print(f"{key!r}, check value {key.check_value()}: {len(page)} bytes encrypted")
except keypeer.KeypeerClientError as error:
    for reason in getattr(error, "reasons", ()):
        print(f"{reason.id}: {reason.found}; {reason.asked}", file=sys.stderr)
    sys.exit(f"{error}\n{error.hint}")
