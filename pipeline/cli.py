"""The command line. `clipmill COMMAND --help` lists arguments and examples.

Commands import what they need when they run, so that help and completion are fast.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pipeline.engine.choice import EngineName

PRESETS = sorted(file.stem for file in (Path(__file__).parent / "config" / "recipes").glob("*.yaml"))
OVERRIDE = re.compile(r"[a-z_]+(\.\w+)*=")  # key=value, and no path or URL
COMPLETE = "_CLIPMILL_COMPLETE"  # set to the shell's name: eval "$(_CLIPMILL_COMPLETE=bash_source clipmill)"

# The trainer's commands parse their own arguments, so that nothing here imports torch.
TRAINER = {
    "train": ("model.train", "Train a video diffusion model on a dataset."),
    "sample": ("model.sample", "Write a video for a prompt."),
    "evaluate": ("model.evaluate", "Measure a trained model."),
    "encode": ("model.encode", "Encode a dataset into latents to train on."),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status: 0 success, 1 stopped, 2 wrong input, 130 interrupted."""
    if instruction := os.environ.get(COMPLETE):
        from click.shell_completion import shell_complete

        return shell_complete(cli, {}, "clipmill", COMPLETE, instruction)
    # Set before torch is imported, so that idle threads of OpenMP sleep: spinning beside other busy processes makes
    # training take five times the CPU time.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        with cli.make_context("clipmill", argv) as context:
            return int(cli.invoke(context) or 0)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        error.show()
        return 2
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the output has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        status = _status(error)
        if status is None:
            raise
        from pipeline.sources.names import printable

        print(f"clipmill: {printable(str(error))}", file=sys.stderr)
        if status == 1 and argv[:1] == ["build"]:
            print("finished work is kept: run the same command again to continue", file=sys.stderr)
        return status


def _status(error: Exception) -> int | None:
    """Return 2 for wrong input, 1 for a build or machine that cannot continue, None for a bug."""
    from pipeline.config.recipe import RecipeError
    from pipeline.dataset.finish import DatasetError
    from pipeline.sources.discover import SourceError
    from pipeline.state.units import BuildStopped
    from pipeline.storage.store import StorageError

    if isinstance(error, (RecipeError, SourceError, StorageError, DatasetError)):
        return 2
    return 1 if isinstance(error, (BuildStopped, OSError)) else None


def _say(text: str) -> None:
    """Print `text` with control characters of file names escaped."""
    from pipeline.sources.names import printable

    print(printable(text, lines=True))


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
def cli() -> None:
    """Turn raw video into text-video training data, and train a video diffusion model on it.

    \b
    Start with:
      clipmill doctor
      clipmill build my_videos/ --out my_dataset
      clipmill report my_dataset
    """


def _examples(*lines: str) -> str:
    """Return an epilog that click does not wrap."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def _inputs(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the arguments of build and plan."""
    for decorate in (
        click.option("--recipe", default="embedded", help=f"{', '.join(PRESETS)}, or a YAML file; default: embedded."),
        click.option("--out", required=True, metavar="DATASET", help="Folder of the dataset, or s3:// gs:// az://."),
        click.argument("words", nargs=-1, required=True, metavar="SOURCE... [key=value]..."),
    ):
        function = decorate(function)
    return function


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the sources and the overrides among `words`."""
    return [w for w in words if not OVERRIDE.match(w)], [w for w in words if OVERRIDE.match(w)]


@cli.command(
    epilog=_examples(
        "clipmill build my_videos/ --out my_dataset",
        "clipmill build films.csv more.tar https://host/a.mp4 --out s3://bucket/one --recipe standard",
        "clipmill build my_videos/ --out my_dataset scan.max_seconds=8 select.thresholds.motion_object.min=0.02",
        "clipmill build --out my_dataset -- -odd-name.mp4",
    )
)
@_inputs
@click.option("--address", metavar="RAY", help="Join this Ray cluster (auto: the one that runs this).")
@click.option(
    "--engine",
    type=click.Choice(("auto", "local", "ray")),
    default="auto",
    help="local: threads of this process; ray: Ray Data; default: local for less than 1 GiB of sources.",
)
@click.option("--cores", type=click.IntRange(min=1), metavar="N", help="Cores of this machine to use; default: all.")
@click.option("--gpus", is_flag=True, help="Embed and caption wait for a GPU; default: use one if there is one.")
def build(
    words: Sequence[str], out: str, recipe: str, address: str | None, cores: int | None, gpus: bool, engine: EngineName
) -> None:
    """Build a dataset. Run it again after a change or a stop: it does only what is missing.

    SOURCE is a folder, file, glob, list (.csv .jsonl .parquet), .tar or .parquet of videos, URL, hf://datasets/OWNER/NAME
    of the Hugging Face Hub, or ytdlp:URL for the videos of a page.
    key=value sets an option of the recipe.
    """
    from pipeline.config.recipe import load_recipe

    sources, overrides = _split(words)
    options = load_recipe(recipe, overrides)
    from pipeline.build import build as run
    from pipeline.interrupts import exit_on_signals
    from pipeline.report.summary import summary

    with exit_on_signals():
        built = run(sources, out, options, address, cores, gpus, engine)
    _say(summary(out, built.info, built.unchanged))


@cli.command(epilog=_examples("clipmill plan my_videos/ --out my_dataset scan.max_seconds=8"))
@_inputs
def plan(words: Sequence[str], out: str, recipe: str) -> None:
    """Show what a build would do, why, and how long it takes. Takes the arguments of build."""
    from pipeline.config.recipe import load_recipe
    from pipeline.plan import plan as planned

    sources, overrides = _split(words)
    _say(planned(sources, out, load_recipe(recipe, overrides)))


@cli.command(epilog=_examples("clipmill report my_dataset"))
@click.argument("dataset")
def report(dataset: str) -> None:
    """Write report.html again."""
    from pipeline.dataset.finish import read_whole
    from pipeline.report.page import write_report
    from pipeline.storage.store import Store

    read_whole(Store(dataset))
    _say(write_report(dataset))


@cli.command(
    epilog=_examples(
        "clipmill explore my_dataset",
        "clipmill explore s3://bucket/one --port 8000",
        "clipmill explore my_dataset --reference pictures_of_what_i_want/",
    )
)
@click.argument("dataset")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Of this machine; default: a free one.")
@click.option("--reference", metavar="FOLDER", help="Pictures to sort and filter by: clips that look like one of them.")
def explore(dataset: str, port: int, reference: str | None) -> None:
    """Show all clips of a dataset in a browser: search, filter, play, keep, reject, edit captions.

    Only this machine can open the page. The next build follows the decisions, which are in DATASET/decisions.
    """
    try:
        from pipeline.explore.server import serve
    except ImportError as error:
        raise click.ClickException(f"{error.name} is not installed: pip install 'clipmill[explore]'") from error
    serve(dataset, port, reference)


@cli.command(epilog=_examples("clipmill verify my_dataset", "clipmill verify s3://bucket/one"))
@click.argument("dataset")
def verify(dataset: str) -> int:
    """Check every checksum, decode every clip, compare the tables."""
    from pipeline.dataset.finish import read_info
    from pipeline.dataset.verify import verify as problems_of
    from pipeline.engine.progress import counted
    from pipeline.storage.store import Store

    read_info(Store(dataset))
    problems = problems_of(dataset)
    for problem in problems:
        _say(problem)
    if problems:
        number = counted(len(problems), "problems")
        print(f"{number}: delete the shards named above and build again, which makes only these")
    else:
        print("no problems")
    return 1 if problems else 0


@cli.command(epilog=_examples("clipmill select my_dataset select.thresholds.motion_object.min=0.02"))
@click.argument("dataset")
@click.argument("overrides", nargs=-1, required=True, metavar="key=value...")
def select(dataset: str, overrides: Sequence[str]) -> None:
    """Show which clips other thresholds would add or drop. It writes nothing; `build` applies a change."""
    from pipeline.config.recipe import from_dict
    from pipeline.dataset.finish import read_whole
    from pipeline.report.what_if import what_if
    from pipeline.storage.store import Store

    _say(str(what_if(dataset, from_dict(read_whole(Store(dataset))["recipe"]), overrides)))


@cli.command(epilog=_examples("clipmill calibrate my_dataset", "clipmill calibrate my_dataset --labels labels.jsonl"))
@click.argument("dataset")
@click.option(
    "--labels", metavar="FILE", help="CSV: clip_id,label with good or bad; or .jsonl, one object a source file."
)
def calibrate(dataset: str, labels: str | None) -> None:
    """Print percentiles of every score and, with labels, precision and recall of thresholds."""
    from pipeline.dataset.finish import read_whole
    from pipeline.report.calibrate import calibrate as tables
    from pipeline.storage.store import Store

    read_whole(Store(dataset))
    _say(tables(dataset, labels))


@cli.command(
    epilog=_examples(
        "clipmill export my_dataset --to musubi --out for_musubi --model wan2.1",
        "clipmill export my_dataset --to videofolder --out my_videofolder",
        "clipmill export my_dataset --to csv --out kept.csv",
    )
)
@click.argument("dataset")
@click.option(
    "--to",
    required=True,
    metavar="NAME",
    help="Trainers: musubi, diffusion-pipe, ai-toolkit, ltx, simpletuner, diffsynth, finetrainers, fastvideo, "
    "videox-fun, automodel, cosmos, open-sora; libraries: videofolder, hf-parquet, hub; tables: csv, jsonl, parquet.",
)
@click.option("--out", required=True, metavar="FOLDER", help="A new or empty folder; for a table, the file.")
@click.option("--model", metavar="MODEL", help="List the clips that this model cannot use: wan2.1, ltx ...")
@click.option("--control", metavar="NAME", help="Control videos: a companion of the dataset, such as canny or depth.")
def export(dataset: str, to: str, out: str, model: str | None, control: str | None) -> None:
    """Write a dataset in the layout of a trainer or library, or as one table."""
    from pipeline.export.export import export as write

    _say(write(dataset, to, Path(out), model, control))


@cli.command(epilog=_examples("clipmill compare before after", "clipmill compare before after --out differences.csv"))
@click.argument("before", metavar="DATASET")
@click.argument("after", metavar="DATASET")
@click.option("--out", metavar="CSV", help="Every difference as a row: clip_id, what, before, after.")
def compare(before: str, after: str, out: str | None) -> None:
    """Show the differences between two datasets, clip by clip."""
    from pipeline.dataset.compare import compare as differences

    _say(differences(before, after, Path(out) if out else None))


@cli.command(epilog=_examples("clipmill doctor"))
def doctor() -> None:
    """Show what this machine can run."""
    from pipeline.doctor import examine

    print(examine())


def _add_trainer(name: str, module: str, text: str) -> None:
    @cli.command(
        name,
        help=text,
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    )
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def run(arguments: Sequence[str]) -> int:
        return int(importlib.import_module(module).main(list(arguments)) or 0)


for _name, (_module, _text) in TRAINER.items():
    _add_trainer(_name, _module, _text)


if __name__ == "__main__":
    sys.exit(main())
