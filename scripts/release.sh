#!/usr/bin/env bash
# Build wheel and sdist into dist/, and try the wheel in an empty environment. Uploads nothing.
#   scripts/release.sh            PYTHON=python3.12 for another one
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -n "$(git status --porcelain)" ]; then
    echo "There are uncommitted changes: commit or remove them, so that the release is of a commit." >&2
    exit 1
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python=${PYTHON:-python3}
"$python" -m venv "$work/build"
"$work/build/bin/python" -m pip install -q --disable-pip-version-check build
rm -rf dist
"$work/build/bin/python" -m build --quiet

"$python" -m venv "$work/empty"
"$work/empty/bin/python" -m pip install -q --disable-pip-version-check dist/*.whl
cd "$work"  # so that the package that is tried is the installed one
"$work/empty/bin/vitc" doctor
"$work/empty/bin/vitc" train debug --out "$work/run" --train.epochs 1
"$work/empty/bin/vitc" show "$work/run" > /dev/null
cd - > /dev/null
ls -l dist
echo "To publish: git tag v$("$work/empty/bin/python" -c 'import vitc; print(vitc.__version__)'), then twine upload dist/*"
