#!/usr/bin/env bash
# Table 2a and Figure 3b: SoCE on MGSM with Llama 2 7B models. One GPU from 24 GB. Steps: steps.sh.
experiment=mgsm
table="mgsm 7b"
models=(
    MetaMathOctopus-7B=kevinpro/MetaMathOctopus-7B
    MetaMathOctopus-MAPO-DPO-7B=kevinpro/MetaMathOctopus-MAPO-DPO-7B
    MathOctopus-MAPO-DPO-7B=kevinpro/MathOctopus-MAPO-DPO-7B
    MathOctopus-Parallel-7B=Mathoctopus/Parallel_7B
)
. "$(dirname "$0")/steps.sh"
main "$@"
