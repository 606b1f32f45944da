#!/usr/bin/env bash
# A kind cluster in which a gateway asks the picker about simulated model servers. Running it again brings an existing
# cluster up to date; down.sh removes it. See docs/kind.md.
set -euo pipefail

# What is installed. A newer release may rename what this script waits for: change one at a time.
KIND_NODE_IMAGE=kindest/node:v1.34.0
GATEWAY_API_VERSION=v1.4.0
INFERENCE_EXTENSION_VERSION=v1.6.0
ISTIO_VERSION=1.28.1
KGATEWAY_VERSION=v2.1.0
# The release that the project's own tests run; the tag in gateways/envoy.yaml is the same.
ENVOY_VERSION=v1.40.0

NAMESPACE=epp
RELEASE=sim
GATEWAY=envoy
SERVERS=3
CLUSTER=epp

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)

usage() {
  cat <<TEXT
usage: up.sh [--gateway envoy|istio|kgateway] [--servers N] [--name CLUSTER]

  --gateway  what stands in front of the servers: Envoy alone ($ENVOY_VERSION), Istio ($ISTIO_VERSION) or
             kgateway ($KGATEWAY_VERSION) ($GATEWAY)
  --servers  simulated model servers ($SERVERS)
  --name     name of the cluster ($CLUSTER)
TEXT
}

say() { printf '\n==> %s\n' "$*"; }

fail() {
  printf 'up.sh: %s\n' "$*" >&2
  exit 1
}

need() { command -v "$1" >/dev/null || fail "$1 is not installed: see $2"; }

# Retries what depends on something that was only just created.
eventually() {
  local tries=$1
  shift
  until "$@"; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || return 1
    sleep 2
  done
}

while [ $# -gt 0 ]; do
  case $1 in
    --gateway | --servers | --name)
      [ $# -ge 2 ] || fail "$1 needs a value"
      case $1 in
        --gateway) GATEWAY=$2 ;;
        --servers) SERVERS=$2 ;;
        --name) CLUSTER=$2 ;;
      esac
      shift 2
      ;;
    -h | --help)
      usage
      exit 0
      ;;
    *)
      usage >&2
      fail "unknown argument $1"
      ;;
  esac
done
case $GATEWAY in
  envoy | istio | kgateway) ;;
  *) fail "--gateway $GATEWAY: expected envoy, istio or kgateway" ;;
esac
[[ $SERVERS =~ ^[1-9][0-9]*$ ]] || fail "--servers $SERVERS: expected a number of at least 1"

need docker https://docs.docker.com/engine/install/
need kind https://kind.sigs.k8s.io/docs/user/quick-start/
need kubectl https://kubernetes.io/docs/tasks/tools/
need helm https://helm.sh/docs/intro/install/
docker info >/dev/null 2>&1 || fail "docker does not answer: is its daemon running, and may you use it?"

kube() { kubectl --context "kind-$CLUSTER" "$@"; }
chart() { helm --kube-context "kind-$CLUSTER" upgrade --install --create-namespace --wait --timeout 5m "$@"; }

say "Cluster $CLUSTER"
if kind get clusters 2>/dev/null | grep -qx "$CLUSTER"; then
  echo "exists"
else
  kind create cluster --name "$CLUSTER" --image "$KIND_NODE_IMAGE" --config "$here/cluster.yaml" --wait 120s
fi

say "Gateway API $GATEWAY_API_VERSION, Inference Extension $INFERENCE_EXTENSION_VERSION, objectives and rewrites"
kube apply --server-side -f "https://github.com/kubernetes-sigs/gateway-api/releases/download/$GATEWAY_API_VERSION/standard-install.yaml"
kube apply --server-side -f "https://github.com/kubernetes-sigs/gateway-api-inference-extension/releases/download/$INFERENCE_EXTENSION_VERSION/manifests.yaml"
kube apply --server-side -k "$root/deploy/crds"
kube wait --for=condition=Established --timeout=60s crd/inferencepools.inference.networking.k8s.io

say "Image, from $root/Dockerfile"
docker build --tag epp:kind "$root"
# Named by its content, so that only a changed image restarts pods.
id=$(docker image inspect --format '{{.Id}}' epp:kind)
tag=kind-${id#sha256:}
tag=${tag:0:17}
docker tag epp:kind "epp:$tag"
kind load docker-image "epp:$tag" --name "$CLUSTER"

case $GATEWAY in
  istio)
    say "Istio $ISTIO_VERSION"
    charts=https://istio-release.storage.googleapis.com/charts
    chart istio-base base --repo "$charts" --version "$ISTIO_VERSION" --namespace istio-system
    chart istiod istiod --repo "$charts" --version "$ISTIO_VERSION" --namespace istio-system \
      --set-string pilot.env.ENABLE_GATEWAY_API_INFERENCE_EXTENSION=true
    ;;
  kgateway)
    say "kgateway $KGATEWAY_VERSION"
    charts=oci://cr.kgateway.dev/kgateway-dev/charts
    chart kgateway-crds "$charts/kgateway-crds" --version "$KGATEWAY_VERSION" --namespace kgateway-system
    chart kgateway "$charts/kgateway" --version "$KGATEWAY_VERSION" --namespace kgateway-system \
      --set inferenceExtension.enabled=true
    ;;
esac

say "Picker and $SERVERS simulated servers"
options=(--set-string "router.epp.image.tag=$tag" --set "decode.replicas=$SERVERS")
if [ "$GATEWAY" != envoy ]; then
  options+=(--set httpRoute.create=true)
fi
if [ "$GATEWAY" = istio ]; then
  options+=(--set provider.name=istio)
fi
chart "$RELEASE" "$root/deploy/modelservice" --namespace "$NAMESPACE" --values "$here/values.yaml" "${options[@]}"

say "Gateway: $GATEWAY"
case $GATEWAY in
  envoy)
    service=envoy port=8081 deployment=envoy
    "$here/envoy-bootstrap.sh" "$RELEASE-epp.$NAMESPACE.svc.cluster.local" |
      kube -n "$NAMESPACE" create configmap envoy --from-file=envoy.yaml=/dev/stdin --dry-run=client --output yaml |
      kube apply -f -
    ;;
  istio) service=inference-gateway-istio port=80 deployment=inference-gateway-istio ;;
  kgateway) service=inference-gateway port=80 deployment=inference-gateway ;;
esac
kube -n "$NAMESPACE" apply -f "$here/gateways/$GATEWAY.yaml"
kube -n "$NAMESPACE" wait --for=create --timeout=120s "deployment/$deployment"
kube -n "$NAMESPACE" rollout status --timeout=180s "deployment/$deployment"

say "One request, from inside the cluster"
ask="import urllib.request as u
body = b'{\"model\": \"sim\", \"prompt\": \"Hello\", \"max_tokens\": 8}'
request = u.Request('http://$service.$NAMESPACE:$port/v1/completions', body, {'content-type': 'application/json'})
print(u.urlopen(request, timeout=10).read().decode())"
eventually 30 kube -n "$NAMESPACE" exec "deployment/$RELEASE-decode" -- python -c "$ask" ||
  fail "no answer through the gateway. Look at: kubectl --context kind-$CLUSTER -n $NAMESPACE logs deployment/$RELEASE-epp"

cat <<TEXT

Ready. From here:

  kubectl --context kind-$CLUSTER -n $NAMESPACE port-forward service/$service 8080:$port &
  curl -s localhost:8080/v1/completions -H 'content-type: application/json' \\
    -d '{"model": "sim", "prompt": "Hello", "max_tokens": 8}'

What the picker sees:

  kubectl --context kind-$CLUSTER -n $NAMESPACE port-forward deployment/$RELEASE-epp 9090 &
  curl -s localhost:9090/metrics

Remove everything: $here/down.sh --name $CLUSTER
TEXT
