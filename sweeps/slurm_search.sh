#!/bin/bash
#SBATCH --job-name=souping --nodes=4 --ntasks-per-node=1 --gpus-per-node=8 --cpus-per-task=32 --time=04:00:00
# One search over all nodes of a job: Ray starts on every node, the driver runs on the first one, Ray ends with it.
#   sbatch sweeps/slurm_search.sh pool.candidates='[/shared/A,/shared/B,/shared/C]' benchmark.path=/shared/items.jsonl \
#     evaluator.device=cuda executor.gpus=1
set -euo pipefail
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --nodes=1 --ntasks=1 -w "$head" hostname --ip-address | awk '{print $1}')
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" \
    ray symmetric-run --address "$address:${RAY_PORT:-6379}" --min-nodes "$SLURM_JOB_NUM_NODES" -- \
    python -m souping executor=ray executor.address=auto "$@"
