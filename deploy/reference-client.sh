#!/usr/bin/env bash
# A host's whole way to a VM key with curl, openssl, jq, xxd, coreutils and tpm2-tools: keypeer's protocol for whoever
# writes a client in another language. deploy/protocol.md says the same in words.
#
#   reference-client.sh ek                         the EK's digest, for `keypeer host expect`
#   reference-client.sh baseline                   this boot's PCRs, for `keypeer baseline put`
#   reference-client.sh enrol SERVER CA.pem HOST   prove EK and AK, get a client certificate
#   reference-client.sh tag                        fetch the geo-tag, lock its digest into the TPM
#   reference-client.sh attest                     prove boot state and place, get a session
#   reference-client.sh release VM [FILE]          the VM's key, raw: to a new file (0600), else to standard output
#
# KEYPEER_STATE is the folder that it keeps (made 0700; ~/.keypeer-reference unless set), TPM2TOOLS_TCTI the TPM.
# Exit codes are those of the keypeer command: 0 done, 1 refused, 2 usage, 3 bad input, 4 something can't be reached,
# 5 an answer that the service or its HSM didn't make.
#
# It shows which bytes go where, not how to look after keys: a shell can't lock memory or wipe it. No key is written to
# disk but the one you ask for, and no key is an argument of any program but openssl enc, which has no other way in; it
# blanks its copy at once, but for some milliseconds every user of this machine can read the session key in /proc.
set -euo pipefail
shopt -s inherit_errexit
umask 077

STATE=${KEYPEER_STATE:-$HOME/.keypeer-reference}
CALLED_FROM=$PWD
AK=0x81016B70        # persistent, owner range; where the SDK keeps it too
GEO_INDEX=0x01806B70 # NV, owner range
GEO_ATTRIBUTES='ownerwrite|writedefine|ownerread|authread|no_da'
GEO_LOCKED=0x22062802 # the above with WRITTEN and WRITELOCKED (TPMA_NV, TPM 2.0 Part 2 §13.4)
RESIDENT='fixedtpm|fixedparent|sensitivedataorigin|noda'

# stop EXIT-CODE CODE DETAIL [HINT]
stop() {
    printf 'error: %s: %s\n' "$2" "$3" >&2
    [ -z "${4:-}" ] || printf 'hint: %s\n' "$4" >&2
    exit "$1"
}

say() { printf '%s\n' "$*" >&2; }

usage() {
    sed -n '5,10s/^# *//p' "$0" >&2
    exit 2
}

# ── bytes: a shell's strings hold no NUL, so everything is hex until it goes into a pipe ─────────────────────────

hex() { xxd -p | tr -d '\n'; }
raw() { printf '%s' "$1" | xxd -r -p; }
text() { printf '%s' "$1" | hex; }
sha256() { raw "$1" | sha256sum | cut -c 1-64; }

# What makes a concatenation unambiguous: u16 big-endian length ‖ bytes.
field() { printf '%04x%s' $((${#1} / 2)) "$1"; }

# base64url without padding, RFC 4648 §5.
b64() { basenc --base64url --wrap=0 | tr -d '='; }
unb64() {
    local padded=$1
    while ((${#padded} % 4)); do padded+='='; done
    printf '%s' "$padded" | basenc --base64url --decode
}

# HMAC-SHA-256 (RFC 2104) of hex under a hex key of at most 64 bytes, in the shell itself: `openssl mac` would want the
# key as an argument.
hmac() {
    local block=$1 inner='' outer='' byte at
    while ((${#block} < 128)); do block+=00; done
    for ((at = 0; at < 128; at += 2)); do
        printf -v byte '%02x' $((0x${block:at:2} ^ 0x36)) && inner+=$byte
        printf -v byte '%02x' $((0x${block:at:2} ^ 0x5c)) && outer+=$byte
    done
    sha256 "$outer$(sha256 "$inner$2")"
}

# AES-256 key unwrap with padding, RFC 5649: unwrap KEY WRAPPED, both hex; the A65959A6 is §3's constant.
unwrap() {
    raw "$2" | openssl enc -d -id-aes256-wrap-pad -K "$1" -iv A65959A6 2>/dev/null ||
        stop 5 release.unwrap "a wrapped key doesn't open under the session key" "attest again"
}

# ── the service ──────────────────────────────────────────────────────────────────────────────────────────────────

identity=() # curl's options for the client certificate; enrolment goes without

as_host() {
    [ -f host.crt ] || stop 3 state.missing "$STATE holds no certificate" "run: reference-client.sh enrol"
    HOST=$(cat host)
    identity=(--cert host.crt --key tls.key)
}

# call METHOD PATH [FILE]: the JSON answer lands in the file `answer`; a problem document (RFC 9457) ends the script.
call() {
    local outcome body=()
    [ $# -lt 3 ] || body=(--header 'Content-Type: application/json' --data-binary "@$3")
    # --cacert alone is trusted: the CA that `keypeer init` made. Redirects aren't followed.
    outcome=$(curl --silent --show-error --max-time 60 --tlsv1.3 --cacert ca.pem ${identity[@]+"${identity[@]}"} \
        --request "$1" ${body[@]+"${body[@]}"} --output answer --write-out '%{http_code} %{content_type}' \
        "$(cat server)$2" 2>curl.log) || stop 4 service.unreachable "$(cat curl.log)"
    case $outcome in
        2??\ *) ;;
        *\ application/problem+json*) refused "${outcome%% *}" ;;
        *) stop 5 service.answer "status ${outcome%% *} and no problem document" "is that a keypeer service?" ;;
    esac
}

refused() {
    jq --raw-output '"error: \(.code): \(.detail)",
        (select((.hint // "") != "") | "hint: \(.hint)"),
        (.reasons[]? | .id, "  found  \(.found)", "  asked  \(.asked)", "  mend   \(.mend)")' answer >&2
    case $1 in
        401 | 403) exit 1 ;;
        4??) exit 3 ;;
        *) exit 4 ;;
    esac
}

# get FILE FILTER: one value of a JSON document that must be there.
get() {
    jq --exit-status --raw-output "$2" "$1" ||
        stop 5 service.answer "the service's answer has no $2" "is it a keypeer service of this version?"
}

# A number that the MAC covers; also keeps what isn't a number away from the shell's arithmetic.
number() {
    local found
    found=$(get "$1" "$2")
    [[ $found =~ ^(0|[1-9][0-9]{0,15})$ ]] || stop 5 service.answer "$2 is no number"
    printf '%s' "$found"
}

# ── the TPM ──────────────────────────────────────────────────────────────────────────────────────────────────────

# Runs one tool. Without a resource manager what it loaded stays in the TPM's few slots, so it is flushed; sessions that
# are kept for the next tool are saved in their files, not loaded.
tpm() {
    "$@" 2>tpm.log || {
        flush
        ! grep -q 'policy check failed' tpm.log ||
            stop 1 tpm.policy "a PCR policy check failed: a boot PCR moved since the key was made" "attest again"
        stop 4 tpm.failed "$1: $(grep -v WARN tpm.log | tail -n 2 | tr '\n' ' ')" "is the TPM at TPM2TOOLS_TCTI?"
    }
    flush
}

flush() {
    case ${TPM2TOOLS_TCTI:-} in
        '' | *tpmrm* | *tabrmd*) return ;; # what is loaded behind a resource manager is its other clients'
    esac
    tpm2_flushcontext --transient-object 2>/dev/null || true
    tpm2_flushcontext --loaded-session 2>/dev/null || true
}

# A policy session in session.ctx, given more options; flushed at the script's end too, whatever happened.
policy_session() { tpm tpm2_startauthsession --policy-session --session session.ctx "$@"; }
end_session() {
    [ ! -f session.ctx ] || tpm2_flushcontext session.ctx 2>/dev/null || true
    rm -f session.ctx
}

nv_has() {
    local handles
    handles=$(tpm tpm2_getcap handles-nv-index)
    grep -qi "0x0*${1#0x0}\$" <<<"$handles"
}

# The EK by the default template that the maker certified: L-1 (RSA-2048) or L-2 (P-256) of the TCG EK Credential
# Profile 2.5 §B.3, L-1 where none is. The same TPM always makes the same key. (High-range templates: see protocol.md.)
make_ek() {
    EK_CERTIFICATE=0x01C00002
    local algorithm=rsa
    if ! nv_has $EK_CERTIFICATE && nv_has 0x01C0000A; then
        EK_CERTIFICATE=0x01C0000A algorithm=ecc
    fi
    tpm tpm2_createek --key-algorithm $algorithm --ek-context ek.ctx --public ek.pub
}

# A host's identity: SHA-256 of the EK's TPMT_PUBLIC, which is the TPM2B_PUBLIC without its two bytes of size.
ek_digest() { tail -c +3 ek.pub | sha256sum | cut -c 1-64; }

# P-256, restricted, so that it signs only what the TPM made (Part 1 §25.1.5). A primary of the endorsement hierarchy:
# in the attests of other hierarchies' keys a TPM obfuscates the boot counters. Kept, as making one takes up to 0.5 s.
make_ak() {
    local handles
    handles=$(tpm tpm2_getcap handles-persistent)
    if ! grep -qi "$AK" <<<"$handles"; then
        tpm tpm2_createprimary -Q --hierarchy e --key-algorithm ecc256:ecdsa-sha256:null \
            --attributes "$RESIDENT|userwithauth|restricted|sign" --key-context ak.ctx
        tpm tpm2_evictcontrol -Q --hierarchy o --object-context ak.ctx $AK
    fi
    tpm tpm2_readpublic -Q --object-context $AK --output ak.pub
}

# The parent of the binding key; the owner hierarchy's seed makes the same one each time.
make_storage_key() {
    tpm tpm2_createprimary -Q --hierarchy o --key-algorithm ecc256:aes128cfb \
        --attributes "$RESIDENT|userwithauth|restricted|decrypt" --key-context storage.ctx
}

# The binding key: RSA-2048, opened by PolicyPCR (Part 3 §23.7) over the boot PCRs' present values and by nothing else
# (no userwithauth). The kept one serves until those PCRs change. Leaves binding.ctx, binding.pub, storage.ctx.
make_binding_key() {
    make_storage_key
    tpm tpm2_createpolicy -Q --policy-pcr --pcr-list "$1" --policy policy.now
    if [ -f binding.priv ] && cmp --quiet policy.now binding.policy && load_binding_key 2>/dev/null; then
        return
    fi
    tpm tpm2_create -Q --parent-context storage.ctx --key-algorithm rsa2048:null:null \
        --attributes "$RESIDENT|decrypt" --policy policy.now --public binding.pub --private binding.priv
    mv policy.now binding.policy
    tpm load_binding_key
}

load_binding_key() {
    tpm2_load -Q --parent-context storage.ctx --public binding.pub --private binding.priv --key-context binding.ctx
}

# A key's Name: nameAlg (SHA-256 is 0x000B) ‖ SHA-256 of its TPMT_PUBLIC (Part 1 §16).
binding_name() { printf '000b%s' "$(tail -c +3 binding.pub | sha256sum | cut -c 1-64)"; }

# {"attest": …, "signature": …}: TPMS_ATTEST and TPMT_SIGNATURE as the tools wrote them.
signed() { jq --null-input --arg attest "$(b64 <"$1")" --arg signature "$(b64 <"$2")" '$ARGS.named'; }

# ── what a host does ─────────────────────────────────────────────────────────────────────────────────────────────

ek() {
    make_ek
    ek_digest
}

# What an officer approves as good: PCRs 0 to 7, firmware to boot loader (PC Client PFP §3.3.4).
baseline() {
    tpm tpm2_pcrread -Q sha256:0,1,2,3,4,5,6,7 --output pcrs
    hex <pcrs | jq --raw-input '[scan(".{64}")] | to_entries | map({key: "\(.key)", value: [.value]}) | from_entries |
        {bank: "sha256", pcrs: .}'
}

# EK and AK are proved together by credential activation (Part 1 §24).
enrol() {
    local certificates='[]' token
    cp "$(from_here "$2")" ca.pem
    printf '%s' "${1%/}" >server
    printf '%s' "$3" >host
    make_ek
    make_ak
    [ -f tls.key ] || openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out tls.key
    openssl req -new -key tls.key -subj "/CN=$3" -out tls.csr
    if nv_has $EK_CERTIFICATE; then
        tpm tpm2_nvread --hierarchy $EK_CERTIFICATE --output ek.crt $EK_CERTIFICATE
        certificates=$(jq --null-input --arg leaf "$(b64 <ek.crt)" '[$leaf]')
    fi
    jq --null-input --arg host "$3" --arg ek "$(b64 <ek.pub)" --arg ak "$(b64 <ak.pub)" --rawfile csr tls.csr \
        --argjson certificates "$certificates" \
        '{host: $host, ek_public: $ek, ak_public: $ak, csr: $csr, ek_certificates: $certificates}' >request
    call POST /v1/enrolments request
    # tpm2_activatecredential's file: magic, version, TPM2B_ID_OBJECT, TPM2B_ENCRYPTED_SECRET.
    raw badcc0de00000001 >credential
    unb64 "$(get answer .credential)" >>credential
    unb64 "$(get answer .encrypted_secret)" >>credential
    # Low-range EKs are used by PolicySecret of the endorsement hierarchy (EK Credential Profile §B.6).
    policy_session
    tpm tpm2_policysecret -Q --session session.ctx --object-context e
    tpm tpm2_activatecredential -Q --credentialedkey-context $AK --credentialkey-context ek.ctx \
        --credentialkey-auth session:session.ctx --credential-blob credential --certinfo-data secret
    end_session
    token=$(get answer .enrolment)
    jq --null-input --arg enrolment "$token" --arg secret "$(b64 <secret)" '$ARGS.named' >request
    call POST /v1/activations request
    get answer .certificate >host.crt
    unb64 "$(get answer .session_key)" | openssl pkey -pubin -inform DER -out session-key.pem
    rm -f secret session.json
    say "host $3 is $(get answer .status); EK digest $(get answer .ek_digest)"
}

# The tag's digest goes where it can't be written again: an NV index with TPMA_NV_WRITEDEFINE, locked.
tag() {
    local digest
    as_host
    call GET "/v1/hosts/$HOST/geo-tag"
    unb64 "$(get answer .signed.statement)" >statement
    [ "$(get statement .host)" = "$HOST" ] || stop 5 geo.host "the geo-tag is another host's"
    digest=$(sha256 "$(text keypeer/geo-tag/v1)$(hex <statement)")
    if nv_has $GEO_INDEX; then
        if [ "$(geo_contents)" = "$digest" ]; then
            jq .signed answer >tag.json
            say "the TPM holds the tag already: $(get statement .country)"
            return
        fi
        tpm tpm2_nvundefine -Q --hierarchy o $GEO_INDEX
    fi
    tpm tpm2_nvdefine -Q --hierarchy o --size 32 --hash-algorithm sha256 --attributes "$GEO_ATTRIBUTES" $GEO_INDEX
    raw "$digest" >digest
    tpm tpm2_nvwrite -Q --hierarchy o --input digest $GEO_INDEX
    tpm tpm2_nvwritelock -Q --hierarchy o $GEO_INDEX
    jq .signed answer >tag.json
    say "locked into the TPM: $(get statement .country), tag $(get statement .tag)"
}

# The geo index' bytes, when it is written and locked exactly as the service will want it.
geo_contents() {
    tpm tpm2_nvreadpublic $GEO_INDEX >index
    grep -qi "value: $GEO_LOCKED\$" index || return 0
    tpm tpm2_nvread --hierarchy $GEO_INDEX --output index $GEO_INDEX
    hex <index
}

attest() {
    local bank quoted bound certificate qualifying name geo=null index
    as_host
    printf '{}' >request
    call POST /v1/challenges request
    mv answer challenge.json
    bank=$(get challenge.json .bank)
    quoted=$bank:$(get challenge.json '.quote_pcrs | sort | map(tostring) | join(",")')
    bound=$bank:$(get challenge.json '.binding_pcrs | sort | map(tostring) | join(",")')
    make_ak
    make_binding_key "$bound"
    name=$(binding_name)
    # One value in the qualifyingData of quote and NV_Certify: this exchange's nonce, this host, the TLS certificate of
    # this connection (so nobody can relay the evidence over another) and the key that will receive the session key.
    certificate=$(openssl x509 -in host.crt -outform DER | sha256sum | cut -c 1-64)
    qualifying=$(sha256 "$(text keypeer/attest/v1)$(field "$(unb64 "$(get challenge.json .nonce)" | hex)")$(
        field "$(text "$HOST")"
    )$(field "$certificate")$(field "$name")$(field "$(text "$(get challenge.json .purpose)")")")
    # -F values: the quoted PCRs alone, in ascending order. The tool fails when one moves while it quotes.
    tpm tpm2_quote -Q --key-context $AK --pcr-list "$quoted" --qualification "$qualifying" --scheme ecdsa \
        --message quote.attest --signature quote.signature --pcr pcrs --pcrs_format values
    # tpm2_certify has no option for qualifyingData; the service doesn't look at it here, as the quote's names this key.
    tpm tpm2_certify -Q --signingkey-context $AK --certifiedkey-context binding.ctx --hash-algorithm sha256 \
        --scheme ecdsa --attestation certify.attest --signature certify.signature
    index=$(printf '0x%08x' "$(number challenge.json .geo_nv_index)")
    if [ -f tag.json ] && nv_has "$index"; then
        tpm tpm2_nvcertify -Q --signingkey-context $AK --nvauthobj-context "$index" --hash-algorithm sha256 \
            --scheme ecdsa --qualification "$qualifying" --size 32 --offset 0 \
            --attestation nv.attest --signature nv.signature "$index"
        geo=$(jq --argjson certified "$(signed nv.attest nv.signature)" '{tag: ., certified: $certified}' tag.json)
    fi
    jq --arg name "$(raw "$name" | b64)" --arg values "$(b64 <pcrs)" --arg public "$(b64 <binding.pub)" \
        --argjson quote "$(signed quote.attest quote.signature)" --argjson geo "$geo" \
        --argjson certified "$(signed certify.attest certify.signature)" \
        '{nonce, purpose, binding_name: $name, quote: $quote, pcr_values: $values, geo: $geo,
          binding: {public: $public, certified: $certified}}' challenge.json >request
    rm -f session.json # a refusal ends the session on the service's side too
    call POST /v1/attestations request
    [ "$(get answer .session.binding_name)" = "$(raw "$name" | b64)" ] ||
        stop 5 session.binding "the session is for another binding key than this TPM's"
    check_grant
    # Deadlines are the service's clock's. What it showed, less our uptime, tells its time later without our wall clock.
    jq --arg bound "$bound" --argjson offset $(($(number answer .appraisal.appraised_at) - $(uptime_s))) \
        '. + {bound: $bound, clock_offset: $offset}' answer >session.json
    say "$(get answer '"host \(.appraisal.host) is good: \(.appraisal.baselines | join(", ")); " +
        (if .appraisal.geo then "\(.appraisal.geo.country) \(.appraisal.geo.place)" else "no place" end)')"
}

# The HSM's signature over what it made for the session. The binding key is public: without this check any process before
# the HSM could make up session keys.
check_grant() {
    local message part
    message=$(text keypeer/grant/v1)$(field "$(unb64 "$(get answer .session.session)" | hex)")$(field "$(text "$HOST")")
    message+=$(field "$(unb64 "$(get answer .session.binding_name)" | hex)")
    message+=$(field "$(text "$(get answer .session.oaep_hash)")")
    for part in encapsulated_key wrapped_mac_key; do
        message+=$(field "$(unb64 "$(get answer ".session.$part")" | hex)")
    done
    raw "$message" >grant
    unb64 "$(get answer .session.signature)" >grant.signature
    openssl dgst -sha256 -verify session-key.pem -signature grant.signature grant >/dev/null 2>&1 ||
        stop 5 session.signature "the session isn't what the HSM made for host $HOST" \
            "after a new HSM enrol again; else the service or something before it is tampering"
}

uptime_s() { cut -d . -f 1 /proc/uptime; }

# The session key in hex: RSA-OAEP, empty label, opened inside the TPM. The policy session is salted with the storage
# key and encrypts the answer's parameter, so a listener on the TPM's bus learns nothing (Part 1 §21).
session_key() {
    local key
    make_storage_key
    tpm load_binding_key
    policy_session --tpmkey-context storage.ctx
    tpm tpm2_sessionconfig -Q session.ctx --enable-encrypt
    tpm tpm2_policypcr -Q --session session.ctx --pcr-list "$(get session.json .bound)"
    unb64 "$(get session.json .session.encapsulated_key)" >encapsulated
    key=$(tpm tpm2_rsadecrypt --key-context binding.ctx --auth session:session.ctx \
        --scheme "oaep-$(get session.json .session.oaep_hash)" encapsulated | hex)
    end_session
    [ ${#key} -eq 64 ] || stop 5 session.key "a session key of $((${#key} / 2)) bytes"
    printf '%s' "$key"
}

release() {
    local vm=$1 session key mac_key wrapped expires message secret size
    # The VM that is asked for goes into the URL and into the MAC; never the name in the answer.
    [[ $vm =~ ^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$ ]] || stop 3 input.invalid "$vm is no VM's name"
    [ $# -eq 2 ] || [ ! -t 1 ] || stop 2 usage "a key doesn't belong on a terminal" "name a file"
    [ $# -eq 1 ] || [ ! -e "$(from_here "$2")" ] || stop 3 input.exists "$2 is there already" "name a new file"
    as_host
    [ -f session.json ] || stop 3 session.missing "there is no session" "run: reference-client.sh attest"
    jq '{session: .session.session}' session.json >request
    call POST "/v1/vms/$vm/key/release" request
    session=$(unb64 "$(get session.json .session.session)" | hex)
    key=$(session_key)
    mac_key=$(unwrap "$key" "$(unb64 "$(get session.json .session.wrapped_mac_key)" | hex)" | hex)
    wrapped=$(unb64 "$(get answer .wrapped_key)" | hex)
    expires=$(number answer .lease_expires_at)
    # What the HSM MACed: every field by which one key could be taken for another.
    message=$(text keypeer/release/v1)$(field "$(text "$vm")")
    message+=$(printf '%08x%016x' "$(number answer .version)" "$(number answer .generation)")
    message+=$(field "$(text "$HOST")")$(field "$session")
    message+=$(printf '%016x%08x' "$expires" "$(number answer .grace)")$(field "$wrapped")
    [ "$(hmac "$mac_key" "$message")" = "$(unb64 "$(get answer .mac)" | hex)" ] ||
        stop 5 release.mac "the release isn't what the HSM made for VM $vm, host $HOST and this session" \
            "attest again; if it stays, the service or something before it is tampering"
    (($(uptime_s) + $(get session.json .clock_offset) < expires)) ||
        stop 5 release.stale "the lease of VM $vm has ended" "release it again"
    secret=$(unwrap "$key" "$wrapped" | hex)
    size=$((${#secret} / 2))
    [ "$size" -eq "$(number answer .size)" ] || stop 5 release.size "a key of $size bytes, the release says otherwise"
    if [ $# -eq 2 ]; then
        set -o noclobber
        raw "$secret" >"$(from_here "$2")"
    else
        raw "$secret"
    fi
    say "VM $vm: $(get answer '"version \(.version), \(.size) bytes, generation \(.generation)"')"
}

# A path as the caller meant it; we stand in the state's folder.
from_here() { case $1 in /*) printf '%s' "$1" ;; *) printf '%s/%s' "$CALLED_FROM" "$1" ;; esac; }

command=${1:-}
[ $# -eq 0 ] || shift
case $command/$# in
    ek/0 | baseline/0 | enrol/3 | tag/0 | attest/0 | release/1 | release/2) ;;
    *) usage ;;
esac
# tpm2-tools write their files 0660 whatever the umask says, so it is the folder that keeps others out.
mkdir -p "$STATE"
chmod 700 "$STATE"
cd "$STATE"
trap end_session EXIT
"$command" "$@"
