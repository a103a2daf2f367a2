#!/usr/bin/env bash
# A build on a Slurm allocation: sbatch --nodes=4 jobs/slurm.sh SOURCES... --out /shared/dataset [key=value ...]
# One Ray node a Slurm node, the head on the first. Submit again after a time limit: it goes on where it stopped.
#SBATCH --job-name=clipmill
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
set -euo pipefail

nodes=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))
head=${nodes[0]}
port=$((20000 + SLURM_JOB_ID % 10000))
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=${RAY_AUTH_TOKEN:-$(head -c 32 /dev/urandom | sha256sum | cut -d' ' -f1)}

srun --nodes=1 --ntasks=1 --nodelist="$head" ray start --head --block --port="$port" --disable-usage-stats &
sleep 20
if [ "${#nodes[@]}" -gt 1 ]; then
  srun --nodes=$((${#nodes[@]} - 1)) --ntasks=$((${#nodes[@]} - 1)) --exclude="$head" \
    ray start --block --address="$head:$port" --disable-usage-stats &
  sleep 20
fi
RAY_ADDRESS="$head:$port" python jobs/curate.py "$@"
