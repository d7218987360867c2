#!/bin/sh
# What can a GPU show in ten minutes? The tests that need one, the speed of every size, the batch claim.
#   scripts/gpu.sh [--out DIR] [--data PACK] [--again PART...] [--small]      see scripts/gpu_kit.py
set -eu
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec python -m scripts.gpu_kit "$@"
