#!/bin/sh
# Makes what a service with SoftHSM needs in $KEYPEER_HOME: settings, token, PINs, keys, certificates. Run again, it makes
# what is missing, renews certificates that run out, and touches nothing else.
#
#   keypeer-first-start SETTINGS
#
# SETTINGS is copied the first time. Environment: SHARE, where softhsm/ is.
set -eu
umask 077
share=${SHARE:-/opt/keypeer/share}
PYTHON=${PYTHON:-/opt/keypeer/bin/python3}
export PYTHON
[ -e "$KEYPEER_HOME/keypeer.toml" ] || install -m 600 "$1" "$KEYPEER_HOME/keypeer.toml"
"$share/softhsm/init-token.sh" "$KEYPEER_HOME/token"
exec keypeer init --so-pin file:token/so-pin
