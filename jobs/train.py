"""Trains as a Ray job, on any number of workers: the same as `clipmill train`, one process a worker.

    ray job submit --working-dir . -- python jobs/train.py DATASET... --out /shared/RUN --workers 8 [key=value ...]

RUN lies where every worker can write. A worker has one GPU where the cluster has GPUs, else `--cpus` cores. Submit it
again, with as many workers or others, to go on from the last checkpoint; workers that die are restarted from there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from model.config import load_config
from model.train import ERRORS, parse, train


def work(options: dict[str, list[str] | str | bool | None]) -> None:
    """What each worker runs; Ray has joined them into one process group."""
    config = load_config(options["config"], options["options"], options["data"], cuda=bool(options["gpu"]))  # type: ignore[arg-type]
    train(config, Path(str(options["out"])))


def main() -> int:
    parser = argparse.ArgumentParser(description="Trains a video diffusion model on a Ray cluster.")
    parser.add_argument("--workers", type=int, default=1, help="processes that train together")
    parser.add_argument("--cpus", type=float, default=1, help="cores of a worker without a GPU")
    parser.add_argument("--address", default="auto", help="the cluster; auto is the one this runs on")
    args = parse(parser, None)
    data, options = args.data, args.options
    if not any(o.startswith("micro_batches=") for o in options):
        options.append(f"micro_batches={args.workers}")
    ray.init(address=args.address, log_to_driver=True)
    gpu = ray.cluster_resources().get("GPU", 0) >= args.workers
    try:
        load_config(args.config, options, data, cuda=gpu)  # a wrong option is said here, not by every worker
    except ERRORS as error:
        print(f"train: {error}", file=sys.stderr)
        return 2
    resources = {"GPU": 1.0} if gpu else {"CPU": args.cpus}
    out = args.out.absolute()
    trainer = TorchTrainer(
        work,
        train_loop_config={"config": args.config, "options": options, "data": data, "out": str(out), "gpu": gpu},
        scaling_config=ScalingConfig(num_workers=args.workers, use_gpu=gpu, resources_per_worker=resources),
        run_config=RunConfig(
            name=out.name, storage_path=str(out.parent / "ray"), failure_config=FailureConfig(max_failures=3)
        ),
    )
    trainer.fit()
    return 0


if __name__ == "__main__":
    sys.exit(main())
