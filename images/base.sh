#!/usr/bin/env bash
# base.sh TAG: a base image from Debian's packages alone, where no image registry can be reached (root, Debian).
set -euo pipefail
[ $# = 1 ] || { echo "usage: base.sh TAG" >&2; exit 2; }
if podman image exists "$1"; then exit 0; fi
command -v debootstrap >/dev/null || { echo "base.sh needs debootstrap: apt-get install debootstrap" >&2; exit 1; }
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
debootstrap --variant=minbase bookworm "$root" >"$root.log" 2>&1 || { tail "$root.log" >&2; exit 1; }
rm -rf "$root.log" "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
tar -C "$root" --create . | podman import --quiet - "$1" >/dev/null
