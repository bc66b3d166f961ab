#!/usr/bin/env bash
# The cluster of the tests.
#
#   cluster.sh up       find or start a cluster; prints the path of its kubeconfig
#   cluster.sh images   build the images of the tests and hand them to the cluster
#   cluster.sh test [PYTEST ARGUMENTS]   both, then the tests of tests/cluster
#   cluster.sh down     stop the cluster that `up` started, if it did
#
# The cluster is that of KUBECONFIG, if it is set (then REGISTRY names the registry path that the images
# are pushed to and pulled from); else one of kind, where Docker and kind are; else a node made of Debian's
# packages (node/node.sh; root).
#
#   KEEP=1   `test` leaves a cluster that it started running
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
cache=$HOME/.cache/caravan
kind_cluster=caravan-test
test_images=(postgres seaweedfs vllm)

if [ -n "${KUBECONFIG:-}" ]; then cluster=given
elif command -v kind >/dev/null && docker info >/dev/null 2>&1; then cluster=kind
else cluster=node; fi

debian() { # works on the packages of this machine where no registry of images need be reached
  export CONTAINERS_CONF=${CONTAINERS_CONF:-$here/node/containers.conf} BUILDER=${BUILDER:-podman}
  export BASE=${BASE:-localhost/caravan/debian:bookworm}
}

up() {
  case $cluster in
    given) echo "$KUBECONFIG" ;;
    kind)
      mkdir -p "$cache"
      kind get clusters 2>/dev/null | grep -qx $kind_cluster ||
        kind create cluster --quiet --wait 120s --name $kind_cluster --kubeconfig "$cache/kind.kubeconfig" >&2
      echo "$cache/kind.kubeconfig"
      ;;
    node) "$here/node/node.sh" up ;;
  esac
}

down() {
  case $cluster in
    given) ;;
    kind) kind delete cluster --quiet --name $kind_cluster ;;
    node) "$here/node/node.sh" down ;;
  esac
}

running() { # is a cluster there that `up` would only have to find?
  case $cluster in
    given) true ;;
    kind) kind get clusters 2>/dev/null | grep -qx $kind_cluster ;;
    node) [ -d "${CARAVAN_NODE_DIR:-$cache/node}" ] ;;
  esac
}

images() {
  if [ $cluster = node ]; then
    debian
    if ! command -v debootstrap >/dev/null || ! command -v podman >/dev/null; then
      apt-get update -qq
      apt-get install -y -qq --no-install-recommends debootstrap podman >/dev/null
    fi
    if [ "$BASE" = localhost/caravan/debian:bookworm ]; then "$root/images/base.sh" "$BASE"; fi
  fi
  if [ $cluster = kind ]; then export BUILDER=docker; fi
  "$root/images/build.sh" stage-cpu dashboard
  CONTAINERFILES=$here/images "$root/images/build.sh" "${test_images[@]}"
  local image
  for image in stage-cpu dashboard "${test_images[@]}"; do
    image=$REGISTRY/$image:$TAG
    case $cluster in
      given) "${BUILDER:-podman}" push --quiet "$image" ;;
      kind) kind load docker-image --quiet --name $kind_cluster "$image" ;;
      node) "$here/node/node.sh" load "$image" ;;
    esac
  done
}

run_tests() {
  local kubeconfig
  was_running=no # read when the script ends
  if running; then was_running=yes; fi
  trap '[ $was_running = yes ] || [ -n "${KEEP:-}" ] || down' EXIT
  kubeconfig=$(up)
  images
  cd "$root"
  KUBECONFIG=$kubeconfig TEST_CLUSTER=$cluster TEST_IMAGES=$REGISTRY TEST_TAG=$TAG \
    .venv/bin/python -m pytest tests/cluster "$@"
}

export REGISTRY=${REGISTRY:-localhost/caravan}
export TAG=${TAG:-$(sed -n 's/^version = "\(.*\)"$/\1/p' "$root/pyproject.toml")}
case ${1:-} in
  up | down | images) [ $# = 1 ] && "$1" ;;
  test) shift; run_tests "$@" ;;
  *) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0" >&2; exit 2 ;;
esac
