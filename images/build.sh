#!/usr/bin/env bash
# build.sh [IMAGE...]: builds container images (stage-cpu dashboard stage-gpu; all of them by default).
#
#   BUILDER   podman, buildah or docker; by default the first that works
#   REGISTRY  first part of the names, registry and path; localhost/caravan
#   TAG       the version in pyproject.toml
#   BASE      the image to build on; by default the one that each Containerfile names
#   CONTAINERFILES   another directory with IMAGE.Containerfile than images; it is their context then
#
# This machine's pip settings (indexes, wheels, certificates) reach the builds as secrets and mounts;
# nothing of them is in an image.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- stage-cpu dashboard stage-gpu

works() { case $1 in docker) docker info ;; *) "$1" --version ;; esac >/dev/null 2>&1; }
if [ -z "${BUILDER:-}" ]; then
  for BUILDER in podman buildah docker none; do works "$BUILDER" && break; done
  [ "$BUILDER" != none ] || { echo "build.sh needs podman, buildah or docker" >&2; exit 1; }
fi
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
revision=$(git describe --always --dirty --abbrev=40 2>/dev/null || echo unknown)

export DOCKER_BUILDKIT=1 # Docker's own builder, the default before 23, knows no secrets
options=()
[ "$BUILDER" != buildah ] || options+=(--layers) # or all steps of an image would be one layer

# --- this machine's pip settings ---
conf=$(mktemp)
trap 'rm -f "$conf"' EXIT
options+=(--secret "id=pip_conf,src=$conf")
echo "[global]" >"$conf"
certificates=${PIP_CERT:-${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}}
if [ -f "$certificates" ]; then
  options+=(--secret "id=ca_bundle,src=$certificates")
  echo "cert = /run/secrets/ca.crt" >>"$conf"
fi

declare -A setting mounted
mounts=/dev/pip # in the build; not a part of the file system that becomes the image
mount() { # DIRECTORY: readable in the build below $mounts
  [ -z "${mounted[$1]:-}" ] || return 0
  mounted[$1]=yes
  [ "$BUILDER" != docker ] || { echo "docker builds cannot mount $1: serve it over HTTP, or use podman" >&2; exit 1; }
  options+=(--volume "$1:$mounts$1:ro")
}
while IFS='=' read -r name values; do
  name=${name##*.}
  case $name in index-url | extra-index-url | find-links | trusted-host) ;; *) continue ;; esac
  values=${values#\'} values=${values%\'}
  for value in $(printf '%b' "$values"); do
    path=${value#file://}
    if [ -d "$path" ]; then # the pages of an index link to files beside it
      case $name in
        find-links) mount "$path" && value=$mounts$path ;;
        *) mount "$(dirname "$path")" && value=file://$mounts$path ;;
      esac
    fi
    case " ${setting[$name]:-} " in *" $value "*) ;; *) setting[$name]+=" $value" ;; esac
  done
done < <(python3 -m pip config list 2>/dev/null)
for name in "${!setting[@]}"; do echo "$name =${setting[$name]}" >>"$conf"; done

# --- the builds ---
[ -z "${BASE:-}" ] || options+=(--build-arg "BASE=$BASE")
options+=(--build-arg "VERSION=$version" --build-arg "REVISION=$revision")
for image in "$@"; do
  name=${REGISTRY:-localhost/caravan}/$image:${TAG:-$version}
  echo "building $name"
  "$BUILDER" build "${options[@]}" --tag "$name" \
    --file "${CONTAINERFILES:-images}/$image.Containerfile" "${CONTAINERFILES:-.}"
done
