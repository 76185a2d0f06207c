# Sourced by run.sh and test.sh: brings a Debian 12 machine to where keypeer can run. Installs only what is missing and
# says so. Sets KEYPEER_ROOT and puts the virtual environment first in PATH.

KEYPEER_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$KEYPEER_ROOT/.venv

# The service (SoftHSM, its Python), its hosts' TPMs (swtpm, the TSS), and what the documented flow without SDK uses.
PACKAGES=(
    ca-certificates curl gcc jq libc6-dev libtss2-dev openssl pkg-config postgresql procps python3 python3-dev
    python3-venv softhsm2 swtpm swtpm-tools tpm2-tools xxd
)

say() { printf '\033[1m==\033[0m %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"
    elif command -v sudo >/dev/null; then sudo "$@"
    else die "installing packages needs root or sudo: $*"
    fi
}

install_packages() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return
    say "installing from Debian: ${missing[*]}"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# One virtual environment with everything; made anew only when pyproject.toml changed.
install_python() {
    local wanted
    wanted=$(sha256sum <"$KEYPEER_ROOT/pyproject.toml")
    if [ "$(cat "$VENV/.installed" 2>/dev/null)" != "$wanted" ]; then
        say "installing keypeer and its dependencies from PyPI into .venv"
        [ -x "$VENV/bin/python" ] || /usr/bin/python3 -m venv "$VENV"
        "$VENV/bin/pip" install --quiet --disable-pip-version-check --editable "$KEYPEER_ROOT[tpm,server,hypervisor,test]"
        printf '%s\n' "$wanted" >"$VENV/.installed"
    fi
    PATH=$VENV/bin:$PATH
}

# The kernel of the tests' guests: Debian's for clouds, unpacked and not installed, so that the machine boots what it did.
fetch_guest_kernel() {
    local folder=$KEYPEER_ROOT/.guest work
    compgen -G "$folder/boot/vmlinuz-*" >/dev/null && return
    say "unpacking Debian's cloud kernel for the tests' guests into .guest"
    work=$(mktemp -d)
    download_guest_kernel "$work" || { as_root apt-get update -qq && download_guest_kernel "$work"; }
    mkdir "$work/tree"
    dpkg-deb --fsys-tarfile "$work"/linux-image-*.deb | tar -x -C "$work/tree" --wildcards \
        './lib/modules/*/kernel/drivers/virtio' './lib/modules/*/kernel/drivers/block/virtio_blk.ko' './boot/vmlinuz-*'
    rm -rf "$folder"
    mv "$work/tree" "$folder"
    rm -r "$work"
}

download_guest_kernel() {
    local package
    package=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image-/ { print $2; exit }')
    [ -n "$package" ] && (cd "$1" && apt-get download -qq -o APT::Sandbox::User=root "$package")
}

set_up() {
    [ -r /etc/debian_version ] || die "this script knows Debian; elsewhere install: ${PACKAGES[*]}"
    install_packages "${PACKAGES[@]}"
    install_python
}
