#!/usr/bin/env bash
# Table 5: SoCE on FLORES-36, 36 directions, BLEU. One GPU from 24 GB.
# The paper's candidates were never published: POOL='[A,B,C]' names your own. FLORES_DIR: the unpacked archive.
experiment=flores
table="flores36"
models=()
. "$(dirname "$0")/steps.sh"
export FLORES_DIR=${FLORES_DIR:-$OUT/flores200_dataset}
prepare() {
    [ -d "$FLORES_DIR" ] || curl -L https://dl.fbaipublicfiles.com/nllb/flores200_dataset.tar.gz | tar -xz -C "$OUT"
}
main "$@"
