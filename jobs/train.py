"""Train as a Ray job, on any number of workers: the same as `clipmill train`, with one process a worker.

    ray job submit --working-dir . -- python jobs/train.py DATASET... --out /shared/RUN --workers 8 [key=value ...]

RUN must be writable by every worker. A worker gets one GPU if the cluster has one for each, else `--cpus` cores. Submit
it again, with any number of workers, to continue from the last checkpoint; workers that die are restarted from there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from model.cli import ERRORS, parse
from model.config import from_dict, load_config, to_dict
from model.train import train


def work(options: dict[str, Any]) -> None:
    """Train in one worker; Ray has joined the workers into one process group."""
    train(from_dict(options["config"]), Path(options["out"]))


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
        config = load_config(args.config, options, data, cuda=gpu, preset=args.preset)
    except ERRORS as error:
        print(f"train: {error}", file=sys.stderr)
        return 2
    resources = {"GPU": 1.0} if gpu else {"CPU": args.cpus}
    out = args.out.absolute()
    trainer = TorchTrainer(
        work,
        train_loop_config={"config": to_dict(config), "out": str(out)},
        scaling_config=ScalingConfig(num_workers=args.workers, use_gpu=gpu, resources_per_worker=resources),
        run_config=RunConfig(
            name=out.name, storage_path=str(out.parent / "ray"), failure_config=FailureConfig(max_failures=3)
        ),
    )
    trainer.fit()
    return 0


if __name__ == "__main__":
    sys.exit(main())
