#!/usr/bin/env bash
# Removes the cluster that up.sh created, and nothing else. See docs/kind.md.
set -euo pipefail

CLUSTER=epp

fail() {
  printf 'down.sh: %s\n' "$*" >&2
  exit 1
}

while [ $# -gt 0 ]; do
  case $1 in
    --name)
      [ $# -ge 2 ] || fail "--name needs a value"
      CLUSTER=$2
      shift 2
      ;;
    -h | --help)
      echo "usage: down.sh [--name CLUSTER]   (name: $CLUSTER)"
      exit 0
      ;;
    *) fail "unknown argument $1; see down.sh --help" ;;
  esac
done

command -v kind >/dev/null || fail "kind is not installed: see https://kind.sigs.k8s.io/docs/user/quick-start/"
if kind get clusters 2>/dev/null | grep -qx "$CLUSTER"; then
  kind delete cluster --name "$CLUSTER"
  echo "The images epp:kind and epp:kind-* are still in docker: docker image rm them if you like."
else
  echo "there is no cluster $CLUSTER"
fi
