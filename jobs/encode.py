"""Encodes a dataset into latents as a Ray job, on every GPU of the cluster: the same as `clipmill encode`.

    ray job submit --working-dir . -- python jobs/encode.py DATASET --out /shared/LATENTS [key=value ...]

LATENTS lies where every worker can write. Without GPUs every core is a worker. Submit it again to go on.
"""

from __future__ import annotations

import sys
from pathlib import Path

import ray
import ray.data

from model.config import Config
from model.encode import Encoder, arguments, plan
from model.train import ERRORS


class Encode:
    """A row with a shard's name -> how many samples it has."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.encoder = Encoder(folder, config)

    def __call__(self, row: dict[str, str]) -> dict[str, object]:
        made, failed = self.encoder(row["shard"])
        return {**row, "made": made, "failed": failed}


def main() -> int:
    ray.init(address="auto", log_to_driver=True)
    try:
        out, config = arguments("encode", sys.argv[1:])
        left = plan(out, config)
    except ERRORS as error:
        print(f"encode: {error}", file=sys.stderr)
        return 2
    gpus = int(ray.cluster_resources().get("GPU", 0))
    workers = min(gpus or int(ray.cluster_resources()["CPU"]), len(left))
    if left:
        shards = ray.data.from_items([{"shard": shard} for shard in left])
        done = shards.repartition(len(left)).map(
            Encode,
            fn_constructor_args=(out.absolute(), config),
            concurrency=workers,
            num_gpus=1 if gpus else 0,
            num_cpus=1,
        )
        for number, row in enumerate(done.iter_rows()):
            print(
                f"{number + 1} of {len(left)}  {row['shard']}  {row['made']} samples, {row['failed']} failed",
                flush=True,
            )
    print(f"the latents are in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
