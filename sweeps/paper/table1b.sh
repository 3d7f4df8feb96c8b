#!/usr/bin/env bash
# Table 1b: SoCE on BFCL v3 with 8B models. One GPU from 24 GB, 80 GB of disk. Steps: steps.sh.
experiment=bfcl_8b
table=${table:-bfcl_v3 8b}
models=(
    xLAM-2-8b-fc-r=Salesforce/Llama-xLAM-2-8b-fc-r
    ToolACE-2-8B=Team-ACE/ToolACE-2-Llama-3.1-8B
    watt-tool-8B=watt-ai/watt-tool-8B
    BitAgent-8B=BitAgent/BitAgent-8B
    CoALM-8B=uiuc-convai/CoALM-8B
)
. "$(dirname "$0")/steps.sh"
prepare() { # bfcl-eval in an environment of its own
    local place=${SOUPING_BFCL:-$HOME/.cache/souping/bfcl}
    [ -d "$place" ] || "$PYTHON" -m venv "$place"
    "$place/bin/pip" install -r "$here/../../souping/evaluate/bfcl/requirements/full.txt"
}
main "$@"
