#!/usr/bin/env bash
# Every extra installs alone beside the core: a fresh virtual environment each, then `pip check` and a first import.
# The main job and the default suite run with every Python from 3.11 to 3.13 that is found, also in a fresh environment each.
#   bash .ci/extras.sh [EXTRA | python3.X ...]       all by default; `vllm` takes several GB and minutes
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1 WANDB_MODE=offline HF_HUB_OFFLINE=1
unset PYTHONPATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
declare -A proof=(
    [peft]='import peft'
    [datasets]='import datasets, pyarrow'
    [mergekit]='import mergekit'
    [lm_eval]='import lm_eval, sacrebleu'
    [serving]='import transformers, fastapi, uvicorn'
    [vllm]='import importlib.metadata as m; m.version("vllm")'
    [ray]='import ray'
    [inspect]='import inspect_ai'
    [remote]='import s3fs, gcsfs'
    [dev]='import pytest, ruff, gguf'
)

# The interpreter of that name, on the path or else the newest of pyenv's, if it can make environments.
interpreter() {
    local python
    for python in "$(command -v "$1")" $(printf '%s\n' "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin/"$1" | sort -rV); do
        if [ -x "$python" ] && "$python" -c 'import ensurepip' 2>/dev/null; then
            echo "$python"
            return
        fi
    done
    return 1
}

# Proofs, given the environment and the name: commands are chained, as `set -e` does not hold inside an `if`.
imports() {
    "$1/bin/python" -c "import souping; ${proof[$2]:-pass}"
}

main_job_and_suite() {
    mkdir "$1/job" &&
        (cd "$1/job" && "$1/bin/python" -m souping +experiment=bfcl) &&
        PATH="$1/bin:$PATH" "$1/bin/pytest" -q
}

# attempt NAME PYTHON EXTRAS PROOF: one line on a fresh environment.
attempt() {
    local begin=$SECONDS venv="$work/$1"
    if {
        "$2" -m venv "$venv" &&
            "$venv/bin/pip" install -q -e ".[$3]" &&
            "$venv/bin/pip" check &&
            "$4" "$venv" "$1"
    } >"$work/log" 2>&1; then
        printf '%-10s ok      %4d s  %s\n' "$1" $((SECONDS - begin)) "$(du -sh "$venv" | cut -f1)"
    else
        printf '%-10s FAILED  %4d s\n' "$1" $((SECONDS - begin))
        tail -n 15 "$work/log"
        failed=1
    fi
    rm -rf "$venv"
}

names=("$@")
if [ ${#names[@]} -eq 0 ]; then
    mapfile -t names < <(python3 .ci/extras.py)
    for name in python3.{11..13}; do
        if interpreter "$name" >/dev/null; then
            names+=("$name")
        fi
    done
fi
failed=0
for name in "${names[@]}"; do
    case $name in
        python3.*)
            if python=$(interpreter "$name"); then
                attempt "$name" "$python" dev,lm_eval main_job_and_suite
            else
                printf '%-10s FAILED  not found\n' "$name"
                failed=1
            fi
            ;;
        *) attempt "$name" python3 "$name" imports ;;
    esac
done
exit $failed
