"""Two processes of torchrun train what one trains, and one goes on from two."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from parallel_runs import run_python, same, words
from shards import clips_of, write_shards
from tiny_models.tiny_pipelines import save_pipeline

from model.train import main

LORA, FULL = ("lora_rank=4",), ("recompute=1",)
QUANTISED = (*LORA, "quantise=int8", "parallel=ddp")
SCRIPT = """
import json, sys
from model.train import main
sys.exit(any(main(words) for words in json.loads(sys.argv[1])))
"""


@pytest.fixture(scope="module")
def dataset(sample_videos, tmp_path_factory) -> Path:
    return write_shards(tmp_path_factory.mktemp("dataset"), [clips_of(sample_videos["bigbuckbunny"], 3)])


@pytest.fixture(scope="module")
def fine_tuning(tmp_path_factory) -> tuple[str, ...]:
    base = save_pipeline("wan", tmp_path_factory.mktemp("base") / "wan")
    return (f"base=diffusers:{base}", "lr=0.001", "warmup=0", "ema=0", "steps=2")


@pytest.fixture(scope="module")
def two(dataset, fine_tuning, tmp_path_factory) -> Path:
    """A folder of runs by two processes, one after the other, because starting the processes costs most."""
    folder = tmp_path_factory.mktemp("two")
    runs = {"scratch": ("steps=2",), "lora": (*fine_tuning, *LORA), "full": (*fine_tuning, *FULL)}
    runs |= {"quantised": (*fine_tuning, *QUANTISED)} if find_spec("torchao") else {}
    arguments = [words(dataset, folder / name, *options) for name, options in runs.items()]
    (folder / "main.py").write_text(SCRIPT)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run_python(*launch, str(folder / "main.py"), json.dumps(arguments))
    return folder


def test_two_processes_train_what_one_does_and_one_goes_on_from_two(dataset, two, tmp_path):
    assert not main(words(dataset, tmp_path / "one", "steps=4"))
    assert not main(words(dataset, two / "scratch", "steps=4"))
    assert same(tmp_path / "one", two / "scratch")


@pytest.mark.parametrize(
    ("name", "options", "exported"),
    [
        ("lora", LORA, "pytorch_lora_weights.safetensors"),
        ("full", FULL, "transformer"),
        pytest.param(
            *("quantised", QUANTISED, "pytorch_lora_weights.safetensors"),
            marks=pytest.mark.skipif(not find_spec("torchao"), reason="no torchao"),
        ),
    ],
)
def test_two_processes_fine_tune_a_base_as_one_does(name, options, exported, dataset, fine_tuning, two, tmp_path):
    assert not main(words(dataset, tmp_path / "one", *fine_tuning, *options))
    # A fifth of a step: Adam magnifies rounding where a gradient is nearly zero.
    assert same(tmp_path / "one", two / name, tolerance=2e-4)
    assert (two / name / exported).exists()
