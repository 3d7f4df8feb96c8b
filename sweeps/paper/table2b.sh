#!/usr/bin/env bash
# Table 2b: SoCE on three categories of infinite-Bench. One GPU of 80 GB, 10 to 71 hours for five 8B models.
# The paper's candidates were never published: POOL='[A,B,C]' names your own. Steps: steps.sh.
experiment=infinitebench
table="infinitebench 70b"
models=()
tiny_off=(evaluator.name evaluator.tasks evaluator.group evaluator.apply_chat_template evaluator.max_length evaluator.truncation)
. "$(dirname "$0")/steps.sh"
main "$@"
