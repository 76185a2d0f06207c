#!/bin/sh
# Make a SoftHSM token for keypeer in DIRECTORY: softhsm2.conf, tokens/, random PINs in files of mode 0600, and the
# keys that the service needs. Run again, it makes what is missing and touches nothing else.
#
#   softhsm/init-token.sh DIRECTORY [LABEL]
#
# Prints one line of JSON, {"initialised": …, "made": […]}. Environment: PYTHON (an interpreter that has keypeer),
# SOFTHSM2_MODULE (path of libsofthsm2.so).
set -eu
umask 077

if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    echo "usage: $0 DIRECTORY [LABEL]" >&2
    exit 64
fi
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
mkdir -p "$1"
home=$(CDPATH='' cd -- "$1" && pwd)
label=${2:-keypeer}

if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ ! -x "$here/../.venv/bin/python" ] || PYTHON=$here/../.venv/bin/python
fi
if [ -z "${SOFTHSM2_MODULE:-}" ]; then
    for SOFTHSM2_MODULE in /usr/lib/softhsm/libsofthsm2.so /usr/lib/*/softhsm/libsofthsm2.so \
        /usr/lib64/pkcs11/libsofthsm2.so; do
        [ ! -e "$SOFTHSM2_MODULE" ] || break
    done
fi
if [ ! -e "$SOFTHSM2_MODULE" ]; then
    echo "libsofthsm2.so not found; install softhsm2 or set SOFTHSM2_MODULE" >&2
    exit 69
fi

# 24 random bytes: the PIN protects the token's files, so it must stand an offline search.
random_pin() {
    [ -s "$1" ] && return
    head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$1.new"
    mv "$1.new" "$1"
}

mkdir -p "$home/tokens"
chmod 700 "$home" "$home/tokens"
tokens=$(printf '%s' "$home/tokens" | sed 's/[&|\\]/\\&/g') # what sed would take for itself
[ -e "$home/softhsm2.conf" ] || sed "s|@TOKENS@|$tokens|" "$here/softhsm2.conf.template" >"$home/softhsm2.conf"
random_pin "$home/pin"
random_pin "$home/so-pin"

# softhsm2-util would take the PINs as arguments, where every user sees them; this goes through C_InitToken.
SOFTHSM2_CONF=$home/softhsm2.conf
export SOFTHSM2_CONF
cd "$here/.."
exec "$PYTHON" -m hsm_adapter.provision --module "$SOFTHSM2_MODULE" --label "$label" \
    --pin "file:$home/pin" --so-pin "file:$home/so-pin"
