#!/usr/bin/env bash
# Makes localhost/base:bookworm from Debian packages, for machines that cannot pull an image: about 22 MB, no shell.
# Needs mmdebstrap and podman; then: BASE=localhost/base:bookworm deploy/build-image.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mmdebstrap --quiet --variant=extract --include=base-files,libc6,libstdc++6,libgcc-s1,libssl3,zlib1g,netbase \
  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' bookworm "$folder/base.tar"
podman import --quiet "$folder/base.tar" localhost/base:bookworm
