#!/usr/bin/env bash
# All the set-up, then every check and every test. Arguments go to pytest.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
set_up
# Go's reference implementation of transparency logs verifies our exports (tests/support/tlog): 81 MB, once.
install_packages golang-go golang-golang-x-mod-dev
install_packages iproute2 # a network that can be cut
# Hypervisors, and what their guests are made of.
install_packages prometheus # promtool checks deploy/grafana; its server isn't used
install_packages busybox-static cpio libvirt-clients libvirt-daemon qemu-system-x86 qemu-utils spin
fetch_guest_kernel
cd "$KEYPEER_ROOT"
say "ruff"
ruff check --quiet .
ruff format --check --quiet .
say "mypy"
mypy --no-error-summary
say "pytest"
# Three at a time, each file by one process: half of the time goes by waiting.
exec python -m pytest -n 3 --dist loadfile "$@"
