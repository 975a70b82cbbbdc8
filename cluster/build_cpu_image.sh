#!/usr/bin/env bash
# Build the Dockerfile's CPU flavour and run it, with no container engine: Debian's buildah and debootstrap, as root.
#
#   apt-get install buildah debootstrap
#   cluster/build_cpu_image.sh [work folder, default build/image]
#
# The base is a bare Debian 12 with Python 3.11 in the place of python:3.11-slim-bookworm. Needs about 15 GB and
# ten minutes. PIP_FIND_LINKS=<folder> with PyTorch's CPU wheel in it keeps CUDA out; without one, TORCH_PIP_ARGS.
set -euo pipefail

repository="$(cd "$(dirname "$0")/.." && pwd)"
work="$(realpath -m "${1:-$repository/build/image}")"
wheels="${PIP_FIND_LINKS:-}"
export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=vfs
buildah=(buildah --root "$work/store" --runroot "$work/run")
mkdir -p "$work"

if [ ! -e "$work/rootfs/usr/bin/python3" ]; then
  mirror="$(awk '/^(deb|URIs:)/ {for (i = 1; i <= NF; i++) if ($i ~ /^http/) {print $i; exit}}' \
    /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null)"
  debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates \
    bookworm "$work/rootfs" "$mirror"
fi
if ! "${buildah[@]}" inspect localhost/base:dev >/dev/null 2>&1; then
  container="$("${buildah[@]}" from scratch)"
  cp -a "$work/rootfs/." "$("${buildah[@]}" mount "$container")/"
  "${buildah[@]}" umount "$container" >/dev/null
  "${buildah[@]}" config --env PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
  "${buildah[@]}" commit -q --rm "$container" localhost/base:dev
fi

# The host's certificates, because pip inside must trust what pip outside trusts.
mounts=(--volume /etc/ssl/certs:/etc/ssl/certs:ro)
torch_arguments="${TORCH_PIP_ARGS:-}"
if [ -n "$wheels" ]; then
  mounts+=(--volume "$wheels:/wheels-here:ro")
  torch_arguments="--find-links /wheels-here $torch_arguments"
fi
# Docker's format: OCI's knows neither SHELL nor HEALTHCHECK.
"${buildah[@]}" bud --format docker --network host "${mounts[@]}" \
  --build-arg FLAVOR=cpu --build-arg CPU_BASE_IMAGE=localhost/base:dev \
  --build-arg TORCH_PIP_ARGS="$torch_arguments" \
  --build-arg GIT_SHA="$(git -C "$repository" rev-parse HEAD 2>/dev/null || true)" \
  --tag localhost/crate-scaling:dev-cpu "$repository"

container="$("${buildah[@]}" from localhost/crate-scaling:dev-cpu)"
trap '"${buildah[@]}" rm "$container" >/dev/null' EXIT
run() {
  echo "+ $*"
  "${buildah[@]}" run "$container" -- "$@"
}
run bash -c 'test "$(id -u)" = 10001 && touch "$HOME/writable" && command -v python'
run bash -lc 'command -v python' # a login shell finds the same one
run python -m pipeline doctor
run python pipeline/sweep.py --config configs/quickstart.yaml --plan --set runtime.store=/tmp/store
run bash -c '! ls /app/.git /app/tests /app/cluster/site 2>/dev/null' # the allow-list held
echo "RESULT image built and run"
