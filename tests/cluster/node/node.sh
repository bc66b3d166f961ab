#!/usr/bin/env bash
# One real Kubernetes 1.20 node on a Debian 12 machine, for tests (root; not for anything else: its
# administrator's token is written here, and its kubelet answers everybody).
#
#   node.sh up               build Kubernetes if need be, start the node; its kubeconfig is then DIRECTORY/kubeconfig
#   node.sh load IMAGE...    hand images of podman's store to the node
#   node.sh down             stop it and remove all its state
#
#   CARAVAN_NODE_DIR   DIRECTORY, for its state; ~/.cache/caravan/node
#   KUBERNETES_BIN     the binaries, kept between runs; ~/.cache/caravan/kubernetes-1.20/bin
#   PYTHON             a Python with the packages kubernetes and dnslib; the project's .venv
#
# etcd, API server, controllers, scheduler, kubelet, kube-proxy and containerd run as ordinary processes;
# dns.py stands in for the cluster's DNS, volumes.py for a provisioner of volumes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
state=${CARAVAN_NODE_DIR:-$HOME/.cache/caravan/node}
bin=${KUBERNETES_BIN:-$HOME/.cache/caravan/kubernetes-1.20/bin}
python=${PYTHON:-$here/../../../.venv/bin/python}
export PATH=$bin:$PATH:/usr/sbin:/sbin
export CONTAINERS_CONF=${CONTAINERS_CONF:-$here/containers.conf}

node=caravan-node
pause=localhost/caravan/pause:1
token=caravan-test
api_port=16443 etcd_port=12379
daemons=(dns volumes proxy kubelet controllers scheduler containerd apiserver etcd) # in the order of stopping

packages=(containerd containernetworking-plugins curl etcd-server gcc iproute2 iptables libc6-dev openssl podman runc)

install_packages() {
  local missing=()
  command -v kubectl >/dev/null || missing+=(kubernetes-client)
  for package in "${packages[@]}"; do
    dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] || { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null; }
}

alive() { [ -f "$state/pid/$1" ] && kill -0 "$(cat "$state/pid/$1")" 2>/dev/null; }

start() { # NAME COMMAND...
  local name=$1
  shift
  setsid nohup "$@" >"$state/log/$name.log" 2>&1 </dev/null &
  echo $! >"$state/pid/$name"
}

wait_for() { # WHAT SECONDS COMMAND...
  local what=$1 tries=$(($2 * 5))
  shift 2
  for _ in $(seq "$tries"); do
    if "$@" >/dev/null 2>&1; then return 0; fi
    sleep 0.2
  done
  echo "node.sh: $what did not come up; its log is in $state/log" >&2
  return 1
}

api_ready() { curl -fsk -H "Authorization: Bearer $token" "https://127.0.0.1:$api_port/readyz"; }
node_ready() { kubectl get node "$node" --no-headers | grep -qw Ready; }

up() {
  if alive apiserver && alive kubelet && node_ready; then
    echo "$state/kubeconfig"
    return
  fi
  install_packages
  "$here/build.sh" "$bin" >&2
  if [ -d "$state" ]; then down >&2; fi
  address=$(hostname -I | tr ' ' '\n' | grep -m1 '\.')
  mkdir -p "$state"/{log,pid,certs,cni,etcd,volumes,loaded}
  write_configuration
  start_control_plane
  start_node
  echo "$state/kubeconfig"
}

write_configuration() {
  openssl genrsa -out "$state/certs/sa.key" 2048 2>/dev/null
  echo "$token,admin,admin,system:masters" >"$state/tokens.csv"
  cat >"$state/kubeconfig" <<END
apiVersion: v1
kind: Config
clusters: [{name: caravan-test, cluster: {server: "https://127.0.0.1:$api_port", insecure-skip-tls-verify: true}}]
users: [{name: admin, user: {token: $token}}]
contexts: [{name: caravan-test, context: {cluster: caravan-test, user: admin}}]
current-context: caravan-test
END
  # restrict_oom_score_adj: the machine may not let us lower the score of a pod's sandbox.
  cat >"$state/containerd.toml" <<END
version = 2
root = "$state/containerd"
state = "$state/containerd-run"
[grpc]
  address = "$state/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  sandbox_image = "$pause"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$state/cni"
END
  cat >"$state/cni/10-caravan.conflist" <<END
{"cniVersion": "0.4.0", "name": "caravan", "plugins": [
  {"type": "bridge", "bridge": "caravan0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "$state/ipam", "ranges": [[{"subnet": "10.244.0.0/24"}]],
            "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
END
  cat >"$state/kubelet.yaml" <<END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: cgroupfs
failSwapOn: false
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
clusterDomain: cluster.local
clusterDNS: ["$address"]
enforceNodeAllocatable: []
evictionHard: {memory.available: "100Mi", nodefs.available: "1%", imagefs.available: "1%"}
imageGCHighThresholdPercent: 100
END
}

start_control_plane() {
  local etcd=http://127.0.0.1:$etcd_port peers=http://127.0.0.1:$((etcd_port + 1))
  start etcd etcd --data-dir "$state/etcd" --listen-client-urls "$etcd" --advertise-client-urls "$etcd" \
    --listen-peer-urls "$peers" --unsafe-no-fsync
  start apiserver kube-apiserver --etcd-servers="$etcd" --cert-dir="$state/certs" \
    --secure-port=$api_port --bind-address=0.0.0.0 --advertise-address="$address" \
    --service-cluster-ip-range=10.96.0.0/16 --authorization-mode=Node,RBAC \
    --token-auth-file="$state/tokens.csv" --service-account-issuer=https://kubernetes.default.svc \
    --service-account-key-file="$state/certs/sa.key" --service-account-signing-key-file="$state/certs/sa.key" \
    --allow-privileged=true --kubelet-preferred-address-types=InternalIP --feature-gates=TTLAfterFinished=true
  wait_for "the API server" 60 api_ready
  start controllers kube-controller-manager --kubeconfig="$state/kubeconfig" --cert-dir="$state/certs" \
    --service-account-private-key-file="$state/certs/sa.key" --root-ca-file="$state/certs/apiserver.crt" \
    --allocate-node-cidrs=true --cluster-cidr=10.244.0.0/16 --service-cluster-ip-range=10.96.0.0/16 \
    --leader-elect=false --port=0 --feature-gates=TTLAfterFinished=true
  start scheduler kube-scheduler --kubeconfig="$state/kubeconfig" --cert-dir="$state/certs" --leader-elect=false --port=0
}

start_node() {
  start containerd containerd -c "$state/containerd.toml"
  wait_for containerd 30 ctr -a "$state/containerd.sock" version
  if ! podman image exists $pause; then pause_image; fi
  load $pause
  start kubelet kubelet --config="$state/kubelet.yaml" --kubeconfig="$state/kubeconfig" --root-dir="$state/kubelet" \
    --cert-dir="$state/kubelet-certs" --container-runtime=remote --hostname-override=$node --node-ip="$address" \
    --container-runtime-endpoint="unix://$state/containerd.sock"
  start proxy kube-proxy --kubeconfig="$state/kubeconfig" --hostname-override=$node --proxy-mode=iptables \
    --cluster-cidr=10.244.0.0/16 --conntrack-max-per-core=0 \
    --healthz-bind-address=127.0.0.1:11256 --metrics-bind-address=127.0.0.1:11249
  start dns "$python" "$here/dns.py" "$state/kubeconfig" "$address"
  start volumes "$python" "$here/volumes.py" "$state/kubeconfig" "$state/volumes"
  wait_for "the node" 60 node_ready
  wait_for "the default service account" 60 kubectl get serviceaccount default
  for name in dns volumes; do
    alive $name || { echo "node.sh: $name ended:" >&2; tail "$state/log/$name.log" >&2; return 1; }
  done
}

pause_image() { # a pod's sandbox: a program that waits, alone in its image
  local root
  root=$(mktemp -d)
  echo 'int pause(void); int main(void) { for (;;) pause(); }' >"$root/pause.c"
  gcc -static -Os -o "$root/pause" "$root/pause.c"
  rm "$root/pause.c"
  tar -C "$root" --create . | podman import --quiet --change 'ENTRYPOINT ["/pause"]' - $pause >/dev/null
  rm -rf "$root"
}

load() {
  local image id
  for image in "$@"; do
    id=$(podman image inspect --format '{{.Id}}' "$image")
    if [ "$(cat "$state/loaded/${image//\//_}" 2>/dev/null)" = "$id" ]; then continue; fi
    podman save --quiet "$image" | ctr -a "$state/containerd.sock" -n k8s.io images import - >/dev/null
    echo "$id" >"$state/loaded/${image//\//_}"
  done
}

down() {
  [ -d "$state" ] || return 0
  for name in kubelet controllers; do # first what would start containers anew
    if alive $name; then kill "$(cat "$state/pid/$name")"; fi
  done
  if alive containerd; then
    for container in $(ctr -a "$state/containerd.sock" -n k8s.io containers ls -q); do
      ctr -a "$state/containerd.sock" -n k8s.io tasks rm --force "$container"
      ctr -a "$state/containerd.sock" -n k8s.io containers rm "$container"
    done >/dev/null 2>&1 || true
  fi
  for name in "${daemons[@]}"; do
    if alive "$name"; then
      kill "$(cat "$state/pid/$name")"
      for _ in $(seq 75); do alive "$name" || break; sleep 0.2; done
    fi
  done
  ps -eo pid,args | awk -v socket="$state/containerd.sock" '/containerd-shi[m]/ && index($0, socket) {print $1}' | xargs -r kill
  awk -v prefix="$state/" 'index($2, prefix) == 1 {print $2}' /proc/mounts | tac | xargs -r -n1 umount
  kube-proxy --cleanup >/dev/null 2>&1 || true
  ip link delete caravan0 2>/dev/null || true
  rm -rf "$state"
}

export KUBECONFIG=$state/kubeconfig
case ${1:-} in
  up | down) [ $# = 1 ] && "$1" ;;
  load) "$@" ;;
  *) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0" >&2; exit 2 ;;
esac
