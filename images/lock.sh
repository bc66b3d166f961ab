#!/usr/bin/env bash
# lock.sh: writes the exact versions of each image's packages (images/*.txt) from the ranges of pyproject.toml.
# Versions already in a file stay unless the ranges no longer allow them; delete the file to renew it.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=${UV:-.venv/bin/uv}
export UV_FIND_LINKS=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}

lock() { # IMAGE EXTRA...
  local image=$1 extras=() extra
  shift
  for extra in "$@"; do extras+=(--extra "$extra"); done
  "$uv" pip compile --quiet --python-version 3.11 --no-header --no-annotate --no-emit-find-links \
    "${extras[@]}" --output-file "images/$image.txt" pyproject.toml
  sed -i 's/+cpu$//' "images/$image.txt" # a build of torch for the image's own device
}

[ $# -gt 0 ] || set -- stage-cpu dashboard stage-gpu
for image in "$@"; do
  case $image in
    stage-cpu)
      lock stage-cpu train deepspeed pipelines postgres otel
      sed -i -E '/^(cuda-|nvidia-|triton=)/d' images/stage-cpu.txt # which torch for CPUs does without
      ;;
    dashboard) UV_CONSTRAINT=images/stage-cpu.txt lock dashboard dashboard pipelines postgres metrics otel ;;
    stage-gpu) UV_FIND_LINKS='' lock stage-gpu train train-gpu deepspeed lora qlora vllm pipelines postgres otel ;; # wheels for CUDA, not this machine's
    *) echo "lock.sh: no image $image" >&2; exit 2 ;;
  esac
done
