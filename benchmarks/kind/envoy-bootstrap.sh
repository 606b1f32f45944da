#!/usr/bin/env bash
# Prints deploy/envoy/standalone.yaml for an Envoy that is not on the picker's host.
# usage: envoy-bootstrap.sh HOST
set -euo pipefail

host=${1:?usage: envoy-bootstrap.sh HOST}
bootstrap=$(dirname "${BASH_SOURCE[0]}")/../../deploy/envoy/standalone.yaml
sed -e '/^  - name: picker$/,$ s/type: STATIC/type: STRICT_DNS/' \
  -e "s/address: 127.0.0.1, port_value: 9002/address: $host, port_value: 9002/" "$bootstrap"
