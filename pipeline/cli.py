"""The command line. `clipmill COMMAND --help` says what each takes."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pipeline.config.recipe import RecipeError, from_dict, load_recipe, presets
from pipeline.dataset.finish import DatasetError, read_info, read_whole
from pipeline.sources.discover import SourceError
from pipeline.state.units import BuildStopped
from pipeline.storage.lease import give_back
from pipeline.storage.store import StorageError, Store

OVERRIDE = re.compile(r"[a-z_]+(\.\w+)*=")  # key=value, and no path or URL

# The trainer's commands parse their own arguments, so that nothing here imports torch.
TRAINER = {
    "train": ("model.train", "train a video diffusion model on a dataset"),
    "sample": ("model.sample", "write a video for a prompt"),
    "evaluate": ("model.evaluate", "measure a trained model"),
    "encode": ("model.encode", "encode a dataset into latents to train on"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0 done, 1 stopped, 2 wrong input, 130 interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in TRAINER:
        return int(importlib.import_module(TRAINER[argv[0]][0]).main(argv[1:]) or 0)
    args = _parse(argv)
    try:
        return int(args.run(args) or 0)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except (RecipeError, SourceError, StorageError, DatasetError) as error:
        print(f"clipmill: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (BuildStopped, OSError) as error:
        print(f"clipmill: {error}", file=sys.stderr)
        if args.run is _build:
            print("what is done is kept: run the same command again to go on", file=sys.stderr)
        return 1


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest and ("words" not in args or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if "words" in args:  # argparse leaves over words that come after options
        words = [*args.words, *rest]
        args.overrides = [word for word in words if OVERRIDE.match(word)]
        args.sources = [word for word in words if not OVERRIDE.match(word)]
    return args


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="clipmill",
        description="Turns raw video into text-video training data, and trains a video diffusion model on it.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int | None], text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        made.set_defaults(run=run)
        return made

    for name, run, text in (
        ("build", _build, "build a dataset, doing only what is not done yet"),
        ("plan", _plan, "say what a build would do, and why"),
    ):
        made = command(name, run, text)
        made.add_argument(
            "words",
            nargs="+",
            metavar="SOURCE | key=value",
            help="folder, file, glob, list (.csv .jsonl .parquet), .tar, URL, ytdlp:URL; options (scan.max_seconds=8)",
        )
        made.add_argument("--out", required=True, metavar="DATASET", help="folder of the dataset, or s3:// gs:// az://")
        made.add_argument("--recipe", default="embedded", help=f"{', '.join(presets())}, or a YAML file")
    commands.choices["build"].add_argument(
        "--address", metavar="RAY", help="join this Ray cluster (auto: the one this runs in); default: this machine"
    )
    commands.choices["build"].add_argument("--cores", type=int, metavar="N", help="of this machine; default: all")
    commands.choices["build"].add_argument(
        "--gpus", action="store_true", help="embed and caption wait for a GPU; default: on one if there is one then"
    )
    made = command("report", _report, "write the dataset's page again")
    made.add_argument("dataset")
    made = command("verify", _verify, "check every checksum, decode every clip, compare with the tables")
    made.add_argument("dataset")
    made = command("select", _select, "what other thresholds would add or drop; computes no score again")
    made.add_argument("dataset")
    made.add_argument("overrides", nargs="+", metavar="key=value", help="e.g. select.thresholds.motion_object.min=0.02")
    made.add_argument("--dry-run", action="store_true", help="as it is without: nothing is written, `build` does that")
    made = command("calibrate", _calibrate, "percentiles of every score; precision and recall where labels exist")
    made.add_argument("dataset")
    made.add_argument("--labels", metavar="CSV", help="clip_id,label with label good or bad")
    made = command("export", _export, "write the kept clips as one table (.csv, .jsonl or .parquet)")
    made.add_argument("dataset")
    made.add_argument("--out", required=True, metavar="FILE")
    command("doctor", _doctor, "what this machine can do")
    for name, (_, text) in TRAINER.items():
        commands.add_parser(name, help=text)
    return parser


def _build(args: argparse.Namespace) -> None:
    recipe = load_recipe(args.recipe, args.overrides)
    from pipeline.build import build
    from pipeline.report.summary import summary

    with _left_by_signals():
        built = build(args.sources, args.out, recipe, args.address, args.cores, args.gpus)
    print(summary(args.out, built.info))


@contextlib.contextmanager
def _left_by_signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the process at once, whatever it is doing.

    An exception would surface at any line, often one of Ray's, which may swallow it or leave a lock held. There is
    nothing to unwind: what is committed is whole at any moment, and Ray's processes end with this one.
    """
    leaving = (signal.SIGINT, signal.SIGTERM)
    numbers, write = os.pipe()
    stderr = os.dup(2)  # which is silent while Ray starts

    def leave() -> None:
        while (number := os.read(numbers, 1)[0]) not in leaving:
            if number == 0:
                return
        os.write(stderr, b"\nstopped; what is done is kept: run the same command again to go on\n")
        give_back()
        os._exit(130)

    os.set_blocking(write, False)
    descriptor_before = signal.set_wakeup_fd(write)
    handlers_before = {number: signal.signal(number, lambda *_: None) for number in leaving}
    thread = threading.Thread(target=leave, daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(descriptor_before)
        for number, handler in handlers_before.items():
            signal.signal(number, handler)
        os.write(write, b"\0")
        thread.join()
        for descriptor in (numbers, write, stderr):
            os.close(descriptor)


def _plan(args: argparse.Namespace) -> None:
    recipe = load_recipe(args.recipe, args.overrides)
    from pipeline.plan import plan

    print(plan(args.sources, args.out, recipe))


def _report(args: argparse.Namespace) -> None:
    from pipeline.report.page import write_report

    read_whole(Store(args.dataset))
    print(write_report(args.dataset))


def _verify(args: argparse.Namespace) -> int:
    from pipeline.dataset.verify import verify

    read_info(Store(args.dataset))
    problems = verify(args.dataset)
    for problem in problems:
        print(problem)
    if problems:
        print(f"{len(problems)} problems: delete the shards named above and build again; only they are made anew")
    else:
        print("everything is as it should be")
    return 1 if problems else 0


def _select(args: argparse.Namespace) -> None:
    from pipeline.report.what_if import what_if

    print(what_if(args.dataset, from_dict(read_whole(Store(args.dataset))["recipe"]), args.overrides))


def _calibrate(args: argparse.Namespace) -> None:
    from pipeline.report.calibrate import calibrate

    read_whole(Store(args.dataset))
    print(calibrate(args.dataset, args.labels))


def _export(args: argparse.Namespace) -> None:
    from pipeline.dataset.export import export

    print(f"{export(Store(args.dataset), Path(args.out)):,} clips written to {args.out}")


def _doctor(args: argparse.Namespace) -> None:
    from pipeline.doctor import examine

    print(examine())


if __name__ == "__main__":
    sys.exit(main())
