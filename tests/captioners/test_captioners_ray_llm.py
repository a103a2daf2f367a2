"""The caption pass through Ray's own LLM processor, with an engine that answers at once."""

import json
import time

import numpy as np
import pytest
from footage.videos import pan, texture, write_video
from servers.chat_endpoint import GOOD, clip_of

from captioners.api.ray_llm import RayLlm
from captioners.base import ClipFrames
from pipeline.build import build
from pipeline.config.recipe import from_dict
from pipeline.engine.ray_engine import RayEngine
from pipeline.passes.ray_llm import AskRay
from pipeline.state.units import BuildStopped
from pipeline.storage.store import Store
from pipeline.tables.published import read_table

CLIP = ClipFrames("clip", 4.0, [np.zeros((8, 8, 3), np.uint8)], np.zeros(1))
LENGTHS = (1.2, 1.6, 2.0, 2.8)  # seconds: they name the clips in the questions


@pytest.fixture(scope="module")
def one_ray(ray_cluster):
    opened = RayEngine(ray_cluster)
    yield
    opened.close()


@pytest.fixture(scope="module")
def footage(tmp_path_factory):
    folder = tmp_path_factory.mktemp("footage")
    for i, seconds in enumerate(LENGTHS):
        write_video(folder / f"{i}.mp4", pan(texture(i, 200, 400), round(25 * seconds), 3.0), fps=25)
    return str(folder)


def recipe(**options):
    given = {"model": "m", "batch": 2, "workers": 2, **options}
    return with_captions({"captioner": "ray_llm", "batch": 2, "audit": False, "options": given})


def with_captions(options):
    scan = {"shots": "adaptive", "min_seconds": 1}
    return from_dict({"scan": scan, "filters": {"duration": {}, "motion": {}}, "caption": options})


def captions(built):
    rows = read_table(built.store, "tables/clips").to_pylist()
    return {f"{row['end'] - row['start']:.1f}": row["caption_short"] or row["caption_error"] for row in rows}


def engine(failing=()):
    """In place of Ray's processor with vLLM: answers with the clip's length, some clips later than others."""

    def answer(row):
        *pictures, question = row.pop("messages")[1]["content"]
        assert [set(part) for part in pictures[:2]] == [{"type", "text"}, {"type", "image_url"}]
        assert "json" in row.pop("sampling_params")["structured_outputs"]
        clip = clip_of({"messages": [{"content": [question]}]})
        time.sleep(0.3 if clip in ("1.2", "2.0") else 0.0)
        if clip in failing:
            return {**row, "__inference_error__": "too many pictures"}
        text = json.dumps(dict(GOOD, short=f"A dog runs in clip {clip}."))
        return {**row, "generated_text": text, "num_generated_tokens": 40, "num_input_tokens": 900}

    return lambda _: lambda requests: requests.map(answer)


def test_answers_in_any_order_find_their_clips_and_a_failed_one_costs_one_clip(one_ray, footage, tmp_path, monkeypatch):
    out = str(tmp_path / "out")
    build(
        [footage], out, with_captions({"captioner": "measured"}), cores=1, engine="local"
    )  # the passes before captions
    monkeypatch.setattr(RayLlm, "processor", engine(failing=("1.6",)))
    answers = captions(build([footage], out, recipe()))
    assert answers.pop("1.6") == "the model rejects this clip: too many pictures"
    assert answers == {f"{s:.1f}": f"A dog runs in clip {s:.1f}." for s in LENGTHS if s != 1.6}


def test_an_engine_that_is_not_installed_is_said_in_one_line(one_ray, tmp_path):
    given = recipe(model=str(tmp_path))
    stage = RayLlm(str(tmp_path)).processor().get_stage_by_name("PrepareMultimodalStage")
    with pytest.raises(ImportError) as missing:
        stage.fn(data_column="", expected_input_keys=[], **stage.fn_constructor_kwargs)
    with pytest.raises(BuildStopped, match="vLLM is not installed where Ray's workers run"):
        AskRay(Store(str(tmp_path)), given).explain(missing.value)


def test_an_engines_row_is_read_as_a_completion(one_ray, tmp_path):
    llm = RayLlm(str(tmp_path), max_tokens=50)
    assert llm.processor().list_stage_names()[-2:] == ["vLLMEngineStage", "DetokenizeStage"]
    row = {"generated_text": "A dog runs over a lawn.", "num_generated_tokens": 50, "num_input_tokens": 900}
    answer = llm.read(CLIP, row)
    assert answer.short == "A dog runs over a lawn."
    assert answer.usage == {"prompt_tokens": 900, "completion_tokens": 50, "cut_off": 1}
    assert llm.read(CLIP, {**row, "num_generated_tokens": 49}).usage == {"prompt_tokens": 900, "completion_tokens": 49}
    assert "engine died" in llm.read(CLIP, {"__inference_error__": "engine died"}).reason
