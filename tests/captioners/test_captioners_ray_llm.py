"""The caption pass through Ray's own LLM processors, against a real HTTP server."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import ray
from chat_endpoint import GOOD, KEY, Endpoint, clip_of, reply
from videos import pan, texture, write_video

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
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", KEY)
        engine = RayEngine(ray_cluster)
        yield
        engine.close()


@pytest.fixture(scope="module")
def footage(tmp_path_factory):
    folder = tmp_path_factory.mktemp("footage")
    for i, seconds in enumerate(LENGTHS):
        write_video(folder / f"{i}.mp4", pan(texture(i, 200, 400), round(25 * seconds), 3.0), fps=25)
    return str(folder)


@pytest.fixture
def endpoint():
    servers = []

    def start(script):
        servers.append(Endpoint(script))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def recipe(**options):
    given = {"model": "m", "batch": 2, "workers": 2, "attempts": 1, "timeout": 120.0, **options}
    return with_captions({"captioner": "ray_llm", "batch": 2, "audit": False, "options": given})


def with_captions(options):
    scan = {"shots": "adaptive", "min_seconds": 1}
    return from_dict({"scan": scan, "filters": {"duration": {}, "motion": {}}, "caption": options})


def captions(built):
    rows = read_table(built.store, "tables/clips").to_pylist()
    return {f"{row['end'] - row['start']:.1f}": row["caption_short"] or row["caption_error"] for row in rows}


def good(body, _):
    time.sleep(0.3 if clip_of(body) in ("1.2", "2.0") else 0.0)
    return reply(json.dumps(dict(GOOD, short=f"A dog runs in clip {clip_of(body)}.")))


def test_a_pass_that_stopped_goes_on_and_answers_find_their_clips(one_ray, footage, endpoint, tmp_path):
    out = str(tmp_path / "out")
    build([footage], out, with_captions({"captioner": "measured"}), engine="local")  # the passes before captions
    down = endpoint(lambda body, before: good(body, before) if len(down.requests) <= 2 else (503, {"error": "busy"}))
    with pytest.raises(BuildStopped, match=r"no answer from .*run the same command again"):
        build([footage], out, recipe(base_url=down.url))

    strange = {"1.6": (400, {"error": {"message": "too many pictures"}}), "2.8": (500, b"<html>oops</html>")}
    up = endpoint(lambda body, before: strange.get(clip_of(body)) or good(body, before))
    answers = captions(build([footage], out, recipe(base_url=up.url)))
    assert answers.pop("1.6") == "the model rejects this clip: too many pictures"
    assert answers.pop("2.8") == "the model rejects this clip: 500 without a JSON object"
    assert answers == {f"{s:.1f}": f"A dog runs in clip {s:.1f}." for s in LENGTHS if s not in (1.6, 2.8)}

    body, headers = up.requests[0]
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert "null" not in json.dumps(body), "what Arrow fills in"
    assert [set(part) for part in body["messages"][1]["content"][:2]] == [{"type", "text"}, {"type", "image_url"}]
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    for file in (path for folder in (tmp_path, logs) for path in folder.rglob("*") if path.is_file()):
        assert KEY.encode() not in file.read_bytes(), file


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


def test_replies_that_went_through_arrow_are_read_all_the_same():
    message = {"role": "assistant", "content": "A dog runs over a lawn."}
    choices = np.array([{"message": message, "finish_reason": "stop"}], dtype=object)
    llm = RayLlm("m", base_url="http://127.0.0.1/v1")
    row = {"http_response": {"choices": choices, "usage": {"prompt_tokens": np.int64(9)}, "error": None}}
    assert llm.read(CLIP, row).short == "A dog runs over a lawn."
    assert llm.read(CLIP, row).usage["prompt_tokens"] == 9
