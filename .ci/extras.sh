#!/usr/bin/env bash
# Every extra installs alone beside the core: a fresh virtual environment each, then `pip check` and a first import.
#   bash .ci/extras.sh [EXTRA ...]       all of setup.py's by default; `vllm` takes several GB and minutes
set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONPATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
declare -A proof=(
    [peft]='import peft'
    [mergekit]='import mergekit'
    [lm_eval]='import lm_eval, sacrebleu'
    [serving]='import transformers, fastapi, uvicorn'
    [vllm]='import importlib.metadata as m; m.version("vllm")'
    [ray]='import ray'
    [inspect]='import inspect_ai'
    [remote]='import s3fs, gcsfs'
    [dev]='import pytest, ruff, gguf'
)
extras=("$@")
if [ ${#extras[@]} -eq 0 ]; then
    mapfile -t extras < <(python3 .ci/extras.py)
fi
failed=0
for extra in "${extras[@]}"; do
    begin=$SECONDS
    python3 -m venv "$work/$extra"
    if "$work/$extra/bin/pip" install -q -e ".[$extra]" >"$work/log" 2>&1 &&
        "$work/$extra/bin/pip" check >>"$work/log" 2>&1 &&
        "$work/$extra/bin/python" -c "import souping; ${proof[$extra]:-pass}" >>"$work/log" 2>&1; then
        printf '%-10s ok      %4d s  %s\n' "$extra" $((SECONDS - begin)) "$(du -sh "$work/$extra" | cut -f1)"
    else
        printf '%-10s FAILED  %4d s\n' "$extra" $((SECONDS - begin))
        tail -n 15 "$work/log"
        failed=1
    fi
    rm -rf "${work:?}/$extra"
done
exit $failed
