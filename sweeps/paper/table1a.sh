#!/usr/bin/env bash
# Table 1a: SoCE on BFCL v3 with 70B models. Four GPUs of 80 GB, 0.7 TB of disk. Steps: steps.sh.
experiment=bfcl_70b
table="bfcl_v3 70b"
models=(
    xLAM-2-70b-fc-r=Salesforce/Llama-xLAM-2-70b-fc-r
    CoALM-70B=uiuc-convai/CoALM-70B
    watt-tool-70B=watt-ai/watt-tool-70B
    functionary-medium-v3.1=meetkai/functionary-medium-v3.1
)
. "$(dirname "$0")/steps.sh"
prepare() { # bfcl-eval in an environment of its own
    local place=${SOUPING_BFCL:-$HOME/.cache/souping/bfcl}
    [ -d "$place" ] || "$PYTHON" -m venv "$place"
    "$place/bin/pip" install -r "$here/../../souping/evaluate/bfcl/requirements/full.txt"
}
main "$@"
