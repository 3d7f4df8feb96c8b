#!/usr/bin/env bash
# The lowest versions that setup.py's core allows (torch apart): the main job, and tests of what differs between versions.
#   bash .ci/lowest.sh [TESTS ...]
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1 WANDB_MODE=offline HF_HUB_OFFLINE=1 PYTHONWARNINGS=ignore
unset PYTHONPATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/venv"
. "$work/venv/bin/activate"
pip install -q "setuptools<75"  # .ci/extras.py reads setup.py with it
python .ci/lowest.py >"$work/lowest.txt"
pip install -q -c "$work/lowest.txt" -e . "pytest>=8" "pytest-xdist>=3.6" "hypothesis>=6.100"
pip check
python -m souping +experiment=bfcl "out=$work/job" "store=$work/store.sqlite" >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
if [ $# -eq 0 ]; then
    set -- tests/test_library.py tests/cli/test_errors.py tests/trackers tests/evaluate/scoring/test_calls.py
fi
pytest -q "$@"
