#!/usr/bin/env bash
# Table 2b: SoCE on three categories of infinite-Bench. One GPU of 80 GB.
# The paper's candidates were never published: POOL='[A,B,C]' names your own. Steps: steps.sh.
experiment=infinitebench
table="infinitebench 70b"
models=()
. "$(dirname "$0")/steps.sh"
main "$@"
