#!/usr/bin/env bash
# Table 3: HellaSwag, IFEval and BBH after souping for BFCL: the 8B soup and its ingredients. Table 1b's run with three
# more benchmarks; after it, in the same OUT, nothing of BFCL is asked again. Steps: steps.sh.
table="table3"
extra_benchmarks="[hellaswag, {tasks: [ifeval], apply_chat_template: true}, bbh]"
. "$(dirname "$0")/table1b.sh"
