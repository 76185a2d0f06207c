#!/usr/bin/env bash
# From a bare Debian 12 machine to an attested, geo-checked key release: sets everything up, starts the service and two
# hosts with software TPMs, and shows one release granted and one refused. Then stays in the foreground.
#
#   deploy/run.sh           set up, show, and go on serving until Ctrl-C
#   deploy/run.sh --once    set up, show, stop; exit 0 when all went as it should, 1 on any surprise
#   deploy/run.sh --postgres [--once]   the same on three PostgreSQL servers, with two service nodes, one for each host
#
# State is kept in $KEYPEER_HOME (.keypeer in the checkout unless set) and found again by the next start.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

once=false postgres=false
for option in "$@"; do
    case "$option" in
        --once) once=true ;;
        --postgres) postgres=true ;;
        *) die "usage: deploy/run.sh [--postgres] [--once]" ;;
    esac
done

set_up
cd "$KEYPEER_ROOT"
$postgres && folder=.keypeer-postgres || folder=.keypeer
export KEYPEER_HOME=${KEYPEER_HOME:-$KEYPEER_ROOT/$folder}
PORT=${KEYPEER_PORT:-8443}
. deploy/demo-hosts.sh
. deploy/demo-postgres.sh

LOG=$KEYPEER_HOME/service.log
SERVER=https://localhost:$PORT
SECOND=$SERVER
POLICY=eu-production
BASELINE=demo-boot
VM=demo-vm
children=()
shown=false

finish() {
    local code=$?
    trap - EXIT INT TERM
    [ ${#children[@]} -gt 0 ] && kill "${children[@]}" 2>/dev/null || true
    wait 2>/dev/null || true
    exit "$code"
}
trap finish EXIT
# Stopped before it had shown anything, it has failed; afterwards being stopped is how it ends.
trap '$shown && exit 0; exit 130' INT
trap '$shown && exit 0; exit 143' TERM

surprise() {
    printf 'error: %s\n' "$*" >&2
    printf 'the service'\''s log is %s; its last lines:\n' "$LOG" >&2
    tail -n 15 "$LOG" >&2 || true
    exit 1
}

start_service() {
    say "making the token, the HSM's keys and the first certificates (what is there stays)"
    softhsm/init-token.sh "$KEYPEER_HOME/token" >&2
    keypeer init --module "$(softhsm_module)" --pin file:token/pin --so-pin file:token/so-pin \
        --env 'SOFTHSM2_CONF={home}/token/softhsm2.conf' --listen "127.0.0.1:$PORT" ${STORE:+--store "$STORE"}
    grep -q "^listen = \"127.0.0.1:$PORT\"" "$KEYPEER_HOME/keypeer.toml" ||
        die "$KEYPEER_HOME listens on another port than $PORT: set KEYPEER_PORT as it was, or change service.listen there"
    serve "$KEYPEER_HOME" "$SERVER"
    service=$served
}

# Another node: the same settings, token and store, a port and a run folder of its own (deploy/postgres.md).
start_second_node() {
    local node=$KEYPEER_HOME/node-2
    SECOND=https://localhost:$((PORT + 1))
    mkdir -p "$node"
    cp -R "$KEYPEER_HOME/tls" "$KEYPEER_HOME/vendor-cas" "$KEYPEER_HOME/postgres" "$node"
    sed -e "s|^listen = .*|listen = \"127.0.0.1:$((PORT + 1))\"|" -e "s|file:token/|file:$KEYPEER_HOME/token/|g" \
        -e "s|{home}/token|$KEYPEER_HOME/token|g" "$KEYPEER_HOME/keypeer.toml" >"$node/keypeer.toml"
    serve "$node" "$SECOND"
}

serve() {
    local tries
    say "starting the service on $2"
    KEYPEER_HOME=$1 keypeer serve 2>>"$LOG" 9>&- &
    served=$!
    children+=("$served")
    for tries in $(seq 150); do
        curl --silent --fail --cacert "$KEYPEER_HOME/tls/ca.pem" "$2/readyz" >/dev/null && return
        kill -0 "$served" 2>/dev/null || surprise "the service ended"
        sleep 0.2
    done
    surprise "the service isn't ready after 30 s"
}

softhsm_module() {
    local path
    for path in /usr/lib/softhsm/libsofthsm2.so /usr/lib/*/softhsm/libsofthsm2.so; do
        [ -f "$path" ] && { printf '%s\n' "$path"; return; }
    done
    die "no libsofthsm2.so; is softhsm2 installed?"
}

# A host's whole way in: enrol, officer's approval, geo-tag. Each step is taken when it is missing, so that a run that was
# interrupted is mended by the next.
introduce_host() {
    local host=$1 country=$2 place=$3 server=$4 folder=$KEYPEER_HOME/agents/$1 known
    if [ ! -f "$folder/host.crt" ]; then
        say "enrolling $host"
        keypeer agent enrol --server "$server" --ca "$KEYPEER_HOME/tls/ca.pem" --host "$host" \
            --tcti "$(tcti "$host")" --folder "$folder" >&2
    fi
    known=$(keypeer host show "$host" --json)
    [ "$(field status <<<"$known")" = approved ] || keypeer host approve "$host" >&2
    if [ "$(field geo <<<"$known")" = None ]; then
        keypeer geo-tag issue --host "$host" --country "$country" --place "$place" >&2
    fi
}

# What fra-1 booted the first time is the golden state; later boots are held against it.
prepare_policy() {
    if [ ! -f "$KEYPEER_HOME/$BASELINE.json" ]; then
        keypeer agent pcrs --baseline --host fra-1 >"$KEYPEER_HOME/$BASELINE.draft.json"
        keypeer baseline put "$BASELINE" "$KEYPEER_HOME/$BASELINE.draft.json" >&2
        keypeer baseline approve "$BASELINE" >&2
        mv "$KEYPEER_HOME/$BASELINE.draft.json" "$KEYPEER_HOME/$BASELINE.json"
    fi
    printf '[policy.%s]\ngeo = { countries = ["DE", "FR", "NL"], max_tag_age = "180d" }\nplatform = { baselines = ["%s"] }\nfresh = { evidence = "60s", lease = "10m", grace = "5m" }\n' \
        "$POLICY" "$BASELINE" >"$KEYPEER_HOME/$POLICY.toml"
    keypeer policy put "$POLICY" "$KEYPEER_HOME/$POLICY.toml" >&2
    keypeer vm show "$VM" >/dev/null 2>&1 || keypeer vm create "$VM" --policy "$POLICY" >&2
}

show_granted() {
    local answer
    keypeer agent attest --host fra-1 >&2 || surprise "fra-1 was refused"
    answer=$(keypeer agent fetch "$VM" --host fra-1 --json) || surprise "fra-1 got no key: $answer"
    printf 'GRANTED host=fra-1 vm=%s country=%s policy=%s check-value=%s\n' "$VM" "$(field country <<<"$answer")" \
        "$POLICY" "$(field check_value <<<"$answer")"
}

show_denied() {
    local answer
    keypeer agent attest --host iad-1 >&2 || surprise "iad-1's evidence was refused; only its place should be"
    answer=$(keypeer agent fetch "$VM" --host iad-1 --json 2>/dev/null) && surprise "iad-1 got the key: it stands in the US"
    grep -q '"geo.country"' <<<"$answer" || surprise "iad-1 was refused, but not for its country: $answer"
    printf 'DENIED  host=iad-1 vm=%s geo.country: %s; %s\n' "$VM" "$(reason geo.country found <<<"$answer")" \
        "$(reason geo.country asked <<<"$answer")"
}

field() { python -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }
reason() {
    python -c 'import json, sys
print(next(r[sys.argv[2]] for r in json.load(sys.stdin)["reasons"] if r["id"] == sys.argv[1]))' "$1" "$2"
}

mkdir -p "$KEYPEER_HOME"
chmod 700 "$KEYPEER_HOME"
exec 9>"$KEYPEER_HOME/lock"
flock --nonblock 9 || die "another deploy/run.sh uses $KEYPEER_HOME; stop it, or set KEYPEER_HOME and KEYPEER_PORT"
start_tpm fra-1
start_tpm iad-1
if $postgres; then start_postgres; fi
start_service
if $postgres; then start_second_node; fi
introduce_host fra-1 DE "Frankfurt am Main" "$SERVER"
introduce_host iad-1 US "Ashburn, Virginia" "$SECOND"
prepare_policy
granted=$(show_granted)
denied=$(show_denied)

if $postgres; then
    granted+=" node=$SERVER" denied+=" node=$SECOND"
fi
if $once; then
    printf '%s\n%s\n' "$granted" "$denied"
    exit 0
fi

for host in fra-1 iad-1; do
    keypeer agent attest --host "$host" --watch 30 >>"$KEYPEER_HOME/agents/$host.log" 2>&1 9>&- &
    children+=($!)
done
printf '%s\n%s\n' "$granted" "$denied"
shown=true
cat <<TRY

keypeer serves on $SERVER; both hosts attest every 30 s. In another terminal, in this folder, try:

  . .venv/bin/activate
  export KEYPEER_HOME=$(printf %q "$KEYPEER_HOME")
  keypeer doctor
  keypeer host list
  keypeer host show fra-1
  keypeer vm create web-1 --policy $POLICY
  keypeer policy explain --vm $VM --host fra-1
  keypeer policy explain --vm $VM --host iad-1
  keypeer agent fetch web-1 --host fra-1
  keypeer audit tail --json

Change what fra-1 booted, and see its next attestation refused:

  TPM2TOOLS_TCTI=$(printf %q "$(tcti fra-1)") tpm2_pcrextend 4:sha256=$(printf evil | sha256sum | cut -d' ' -f1)
  keypeer agent attest --host fra-1

Ctrl-C stops everything; the next start finds its data again.
TRY
wait "$service" || true
surprise "the service ended"
