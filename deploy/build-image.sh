#!/usr/bin/env bash
# Publishes the daemon (and, with --tests, the integration tests) and builds their images: localhost/vmmservice and localhost/vmmservice-tests.
#
#   deploy/build-image.sh [--tests]
#
# BASE names the base image (default: the public .NET runtime-deps), ENGINE the tool (podman or docker).
set -euo pipefail
cd "$(dirname "$0")/.."
engine=${ENGINE:-$(command -v podman || command -v docker)}
base=${BASE:-mcr.microsoft.com/dotnet/runtime-deps:10.0}
context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT

publish() { # project folder
  dotnet publish "$1" -c Release -r linux-x64 --self-contained -p:ForImage=true ${3:-} --artifacts-path "$context/artifacts" -o "$context/$2" -clp:ErrorsOnly -nodeReuse:false -p:UseSharedCompilation=false
}
publish client/Vmm vmm -p:PublishReadyToRun=true
"$engine" build -q --build-arg "BASE=$base" -t localhost/vmmservice -f deploy/Containerfile "$context"
if [ "${1:-}" = --tests ]; then
  publish integration-tests tests
  "$engine" build -q --build-arg "BASE=$base" -t localhost/vmmservice-tests -f deploy/Containerfile.tests "$context"
fi
