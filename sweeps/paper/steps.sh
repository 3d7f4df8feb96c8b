# The steps that every table's script shares: download, plan, run, collect. Sourced, not run.
#   bash sweeps/paper/table1b.sh                        all four
#   bash sweeps/paper/table1b.sh plan                   one of them (several may be named)
#   bash sweeps/paper/table1b.sh run -- throughput=3    after `--`: overrides for plan and run
#   TINY=1 bash sweeps/paper/table1b.sh                 the same on the embedded models and items, in a minute
# A script sets `experiment`, `table` (what collect.py holds against the run), `models` (name=repository), and
# `extra_benchmarks` where it has more. OUT, by default outputs/paper, is where everything lies.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PYTHON=${PYTHON:-python}
OUT=${OUT:-outputs/paper}
run_dir=$OUT/$(basename "$0" .sh)${TINY:+-tiny}
overrides=("store=$OUT/$experiment${TINY:+-tiny}.sqlite")

[ -z "${extra_benchmarks:-}" ] || [ -n "${TINY:-}" ] || overrides+=("extra_benchmarks=$extra_benchmarks")

small() { # the experiment's own selection, search and report, on models and items that fit anywhere
    overrides+=(evaluator=local benchmark=jsonl server=transformers expected=null optimiser.max_trials=2 'analysis=[]'
        evaluator.batch_size=128 evaluator.max_new_tokens=48 evaluator.threads=1 evaluator.workers=2
        evaluator.dtype=null throughput=null
        "pool.candidates=$("$PYTHON" "$here/tiny.py" pool "${models[@]%%=*}")")
    local parts=3
    [ ${#models[@]} -gt 0 ] || parts=6 # where no published scores select, items do
    "$PYTHON" "$here/tiny.py" items "$parts" >"$OUT/$experiment-tiny.jsonl"
    overrides+=("benchmark.path=$OUT/$experiment-tiny.jsonl")
    if [ -n "${extra_benchmarks:-}" ]; then
        "$PYTHON" "$here/tiny.py" others 1 >"$OUT/others.jsonl"
        overrides+=("extra_benchmarks=[$OUT/others.jsonl]")
    fi
}

full() { # checkpoints that the experiment does not name itself
    [ -z "${POOL:-}" ] || overrides+=("pool.candidates=$POOL")
    if [ ${#models[@]} -eq 0 ] && [ -z "${POOL:-}" ]; then
        echo "$experiment: its candidates were never published: POOL='[A,B,C]' names your own" >&2
        exit 2
    fi
}

download() { # checkpoints and environments; what is there already is not fetched again
    if [ -n "${TINY:-}" ]; then
        echo "download: nothing, the embedded models are here"
        return
    fi
    local model
    for model in "${models[@]}"; do hf download "${model#*=}"; done
    prepare
}

prepare() { :; } # what else a table needs; scripts may define their own
plan() { "$PYTHON" -m souping plan "+experiment=$experiment" "${overrides[@]}" "$@"; }
run() { "$PYTHON" -m souping "+experiment=$experiment" "${overrides[@]}" "$@" "out=$run_dir"; }

collect() { # the newest run: a second one lies in DIR_2
    local report
    report=$(ls -t "$run_dir"/report.json "$run_dir"_*/report.json 2>/dev/null | head -n 1 || true)
    [ -n "$report" ] || { echo "$run_dir: there is no report yet: run first" >&2; exit 2; }
    [ -z "${TINY:-}" ] || echo "embedded models stand in for the paper's: the table shows its form, its scores compare nothing"
    "$PYTHON" "$here/collect.py" "$report" $table | tee "$(dirname "$report")/table.md"
}

main() {
    local steps=() more=()
    while [ $# -gt 0 ] && [ "$1" != -- ]; do
        case $1 in
            download | plan | run | collect) steps+=("$1") ;;
            *) echo "unknown step $1: download, plan, run, collect" >&2; exit 2 ;;
        esac
        shift
    done
    [ $# -eq 0 ] || more=("${@:2}")
    [ ${#steps[@]} -gt 0 ] || steps=(download plan run collect)
    mkdir -p "$OUT"
    if [ -n "${TINY:-}" ]; then small; else full; fi
    local step
    for step in "${steps[@]}"; do
        echo "== $experiment: $step"
        case $step in plan | run) "$step" "${more[@]}" ;; *) "$step" ;; esac
    done
}
