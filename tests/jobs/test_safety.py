"""What the code never does with data from outside: run it."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from repository import ROOT

from captioners.text.prompt import find_json
from pipeline.config.recipe import RecipeError, load_recipe

PACKAGES = ("pipeline", "filters", "captioners", "model", "jobs")
PICKLES = {  # who unpickles, always what this program's own processes send each other, never a file
    *("pipeline/engine/ray_engine.py", "pipeline/media/isolation/sandbox.py", "pipeline/passes/ray_llm.py"),
    "pipeline/engine/local.py",  # results of workers that read what earlier passes wrote
    "pipeline/passes/run.py",  # units of work, in memory
    "pipeline/media/faults.py",  # an error that it has pickled itself, to see whether another process can read it
}


def calls() -> Iterator[tuple[str, ast.Call, str]]:
    """Every call in the packages: file, call, and dotted name."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    yield path.relative_to(ROOT).as_posix(), node, ast.unparse(node.func)


def test_nothing_from_disk_is_unpickled() -> None:
    loads = {file for file, _, name in calls() if name in ("pickle.loads", "pickle.load", "cloudpickle.loads")}
    assert loads <= PICKLES
    assert not [file for file, _, name in calls() if name == "pickle.load"]


def test_weights_are_data_and_repositories_bring_no_code() -> None:
    for file, call, name in calls():
        options = {option.arg: ast.unparse(option.value) for option in call.keywords}
        if name == "torch.load":
            assert options.get("weights_only") == "True", file
        if name.endswith(".load") and name.startswith(("np.", "numpy.")):
            assert options.get("allow_pickle", "False") == "False", file
        assert options.get("trust_remote_code", "False") == "False", file
        assert name not in ("yaml.unsafe_load", "yaml.full_load", "eval", "exec", "os.system"), file


@pytest.mark.parametrize(
    "override",
    [
        "caption.options.base_url=https://me:hush@host/v1",
        "filters.aesthetics.head=https://h/x.pth?X-Amz-Signature=hush",
    ],
)
def test_a_recipe_with_credentials_is_refused_without_showing_them(override: str) -> None:
    with pytest.raises(RecipeError, match="put them into the environment") as caught:
        load_recipe("embedded", [override])
    assert "hush" not in str(caught.value)


def test_an_answer_nested_too_deep_is_no_json() -> None:
    assert find_json('{"a":' * 100_000, False) is None
