#!/usr/bin/env bash
# build.sh DIRECTORY: builds Kubernetes 1.20 from Debian's source package into DIRECTORY (root, Debian 12).
# Takes about five minutes and 3 GB of scratch space once; does nothing when the binaries are there.
set -euo pipefail
[ $# = 1 ] || { echo "usage: build.sh DIRECTORY" >&2; exit 2; }
bin=$1
programs=(kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy)

missing=()
for program in "${programs[@]}"; do
  [ -x "$bin/$program" ] || missing+=("$program")
done
[ ${#missing[@]} -gt 0 ] || exit 0
echo "building Kubernetes from Debian's source package (about five minutes, once)"

apt-get update -qq
apt-get install -y -qq --no-install-recommends golang-go rsync make gcc libc6-dev >/dev/null
mkdir -p "$bin"
scratch=$(mktemp -d "$bin/../build.XXXXXX")
trap 'chmod -R u+w "$scratch"; rm -rf "$scratch"' EXIT
cd "$scratch"

# Only the machine's Debian sources, as source packages, in lists of their own.
mkdir -p lists/partial
if [ -f /etc/apt/sources.list.d/debian.sources ]; then
  sed 's/^Types: .*/Types: deb-src/' /etc/apt/sources.list.d/debian.sources > debian.sources
else
  sed -n 's/^deb /deb-src /p' /etc/apt/sources.list > debian.list
fi
apt=(-o "Dir::Etc::sourcelist=$(ls "$PWD"/debian.*)" -o Dir::Etc::sourceparts=- \
     -o "Dir::State::lists=$PWD/lists" -o APT::Sandbox::User=root)
apt-get "${apt[@]}" update -qq
apt-get "${apt[@]}" source -qq --download-only kubernetes
if ! ls kubernetes_*really1.20.2*.orig.tar.gz >/dev/null 2>&1; then
  echo "build.sh: Debian no longer has Kubernetes 1.20.2; correct version.env in this script" >&2
  exit 1
fi
tar xzf kubernetes_*.orig.tar.gz

# What the release's own build would find out from git.
cat > version.env <<'END'
KUBE_GIT_COMMIT='faecb196815e248d3ecfb03c680a4507229c2a56'
KUBE_GIT_TREE_STATE='clean'
KUBE_GIT_VERSION='v1.20.2'
KUBE_GIT_MAJOR='1'
KUBE_GIT_MINOR='20'
END

cd kubernetes-*/
mkdir -p .go/src/k8s.io
ln -s ../../.. .go/src/k8s.io/kubernetes
# Since Go 1.18 mapiterinit takes the iterator as a third argument; without it the programs crash while
# they write maps as JSON. (The change is that of reflect2 1.0.2.)
reflect2=vendor/github.com/modern-go/reflect2
sed -i 's/^func mapiterinit(.*/func mapiterinit(rtype unsafe.Pointer, m unsafe.Pointer, it *hiter)/
  s|^\t// rest fields are ignored$|\trest [4]unsafe.Pointer; overflow, old *[]unsafe.Pointer; start uintptr; flags [4]uint8; bucket, check uintptr|' \
  $reflect2/unsafe_link.go
sed -i 's/^\treturn &UnsafeMapIterator{$/\tvar it hiter\n\tmapiterinit(type2.rtype, *(*unsafe.Pointer)(obj), \&it)\n&/
  s/mapiterinit(type2.rtype, \*(\*unsafe.Pointer)(obj)),$/\&it,/' $reflect2/unsafe_map.go

# Without the clients of the clouds and of Docker, which are a good part of the work.
export GOFLAGS=-tags=providerless,dockerless
export GOPATH=$PWD/.go CGO_ENABLED=0 GO111MODULE=auto GOTOOLCHAIN=local
export KUBE_GIT_VERSION_FILE=$scratch/version.env PATH=/usr/lib/go/bin:$PATH
make --silent WHAT="${programs[*]/#/cmd/}"
for program in "${programs[@]}"; do
  install -m755 "_output/bin/$program" "$bin/.$program"
  mv "$bin/.$program" "$bin/$program" # a whole program or none, should this be stopped
done
