"""Encode a dataset into latents as a Ray job, on every GPU of the cluster: the same as `clipmill encode`.

    ray job submit --working-dir . -- python jobs/encode.py DATASET --out /shared/LATENTS [key=value ...]

LATENTS must be writable by every worker. Without GPUs there is a worker for every core. Submit it again to continue.
"""

from __future__ import annotations

import dataclasses
import sys

import ray
from ray.util import ActorPool

from model.cli import ERRORS
from model.encode import Encoder, arguments, prepare


def main() -> int:
    try:
        out, config = arguments("encode", sys.argv[1:])
        ray.init(address="auto", log_to_driver=True)
        out = out.absolute()
        pending = prepare(out, config)
    except ERRORS as error:
        print(f"encode: {error}", file=sys.stderr)
        return 2
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if gpus == 0:
        config = dataclasses.replace(config, device="cpu")
    workers = min(gpus or int(ray.cluster_resources()["CPU"]), len(pending))
    worker = ray.remote(num_cpus=1, num_gpus=min(gpus, 1), max_restarts=3, max_task_retries=3)(Encoder)
    pool = ActorPool([worker.remote(out, config) for _ in range(workers)])
    results = pool.map_unordered(lambda actor, shard: actor.encode.remote(shard), pending)
    for number, (shard, count, failed) in enumerate(results):
        print(f"{number + 1} of {len(pending)}  {shard}  {count} samples, {failed} failed", flush=True)
    print(f"the latents are in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
