# Sourced: two hosts' software TPMs (swtpm) with EK certificates of a CA made here, standing in for TPM vendors' chips and
# CAs. Needs KEYPEER_HOME, and `children` and `die` of the sourcing script.

# What "firmware and boot loader" measure on these hosts: PCR and text.
BOOT_CHAIN=("0 firmware 1.2" "1 platform configuration" "2 option roms" "4 shim, grub, linux 6.1" "5 gpt" "7 secure boot on")

tcti() { printf 'swtpm:path=%s/hosts/%s/sock\n' "$KEYPEER_HOME" "$1"; }

# A TPM as its maker ships it: seeds, EK, EK certificate.
make_tpm() {
    local state=$1 ca=$KEYPEER_HOME/hosts/vendor-ca
    mkdir -p "$state" "$ca"
    cat >"$ca/localca.conf" <<CONF
statedir = $ca
signingkey = $ca/signkey.pem
issuercert = $ca/issuercert.pem
certserial = $ca/certserial
CONF
    printf -- '--tpm-manufacturer IBM\n--tpm-model swtpm\n--tpm-version 2\n--platform-manufacturer keypeer\n--platform-model demo\n--platform-version 1\n' \
        >"$ca/options.conf"
    printf 'create_certs_tool = %s\ncreate_certs_tool_config = %s\ncreate_certs_tool_options = %s\n' \
        "$(command -v swtpm_localca)" "$ca/localca.conf" "$ca/options.conf" >"$ca/setup.conf"
    swtpm_setup --tpm2 --tpmstate "$state" --config "$ca/setup.conf" --create-ek-cert --create-platform-cert \
        --lock-nvram --not-overwrite --pcr-banks sha256 >"$state.setup.log" 2>&1 ||
        die "swtpm_setup failed, see $state.setup.log"
    mkdir -p "$KEYPEER_HOME/vendor-cas"
    cp "$ca/issuercert.pem" "$KEYPEER_HOME/vendor-cas/demo-tpm-vendor.pem"
    cp "$ca/swtpm-localca-rootca-cert.pem" "$KEYPEER_HOME/vendor-cas/demo-tpm-vendor-root.pem"
}

# Powers a host's TPM on and measures its boot.
start_tpm() {
    local host=$1 folder=$KEYPEER_HOME/hosts/$1 pcr text
    [ -f "$folder/tpm/tpm2-00.permall" ] || { say "making the software TPM of $host"; make_tpm "$folder/tpm"; }
    rm -f "$folder/sock" "$folder/sock.ctrl"
    swtpm socket --tpm2 --tpmstate dir="$folder/tpm" --flags not-need-init,startup-clear \
        --server type=unixio,path="$folder/sock" --ctrl type=unixio,path="$folder/sock.ctrl" 2>>"$folder/swtpm.log" 9>&- &
    children+=($!)
    for _ in $(seq 50); do [ -S "$folder/sock" ] && break; sleep 0.1; done
    for entry in "${BOOT_CHAIN[@]}"; do
        pcr=${entry%% *} text=${entry#* }
        TPM2TOOLS_TCTI=$(tcti "$host") tpm2_pcrextend "$pcr:sha256=$(printf '%s' "$text" | sha256sum | cut -d' ' -f1)" ||
            die "the TPM of $host doesn't answer, see $folder/swtpm.log"
    done
}
