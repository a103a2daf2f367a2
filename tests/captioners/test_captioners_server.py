"""The server captioner against a real HTTP server on loopback, with everything that goes wrong in practice."""

import json
import socket
import threading
import time

import numpy as np
import pytest
from servers.chat_endpoint import GOOD, KEY, Endpoint, clip_of, reply
from tiny_models import caption_models as models

from captioners import load_captioner
from captioners.base import Caption, CaptionerDown, CaptionError, ClipFrames
from filters.torchvision_ops import ensure_torchvision


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("pipeline.storage.retry.FIRST_PAUSE", 0.01)
    servers = []

    def start(script, **options):
        endpoint = Endpoint(script)
        servers.append(endpoint)
        given = {"model": "m", "base_url": endpoint.url, "attempts": 3, "timeout": 60.0, **options}
        return endpoint, load_captioner("server", given)

    yield start
    for endpoint in servers:
        endpoint.close()


def clips(count):
    frames = [np.full((40, 64, 3), 30 * i, np.uint8) for i in range(3)]
    return [ClipFrames(f"clip{i}", 4.0 + i, frames, np.array([0.0, 1.5, 3.0])) for i in range(count)]


def good(body, _):
    tree = dict(GOOD, short=f"A dog runs in clip {clip_of(body)}.")
    return reply(json.dumps(tree))


def test_answers_are_matched_to_their_clips_when_they_come_out_of_order(serve):
    def script(body, before):
        time.sleep(0.2 if clip_of(body) == "4.0" else 0.0)
        return good(body, before)

    endpoint, captioner = serve(script, concurrency=4, prices=[2.0, 10.0])
    answers = captioner.caption(clips(6))
    assert [c.clip_id for c in answers] == [f"clip{i}" for i in range(6)]
    assert [c.short for c in answers] == [f"A dog runs in clip {4.0 + i}." for i in range(6)]
    assert answers[0].actions[1].end == 4.0, "times are cut to the clip"
    assert answers[0].usage["prompt_tokens"] == 1000
    assert answers[0].usage["cost"] == pytest.approx(0.0025)
    assert endpoint.most > 1
    body, headers = endpoint.requests[0]
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert body["response_format"]["json_schema"]["schema"]["required"]
    kinds = [part["type"] for part in body["messages"][0]["content"]]
    assert kinds == ["text", *["text", "image_url"] * 3, "text"]


def test_busy_and_broken_replies_are_asked_again(serve):
    trouble = [
        (429, {"error": {"message": "slow down"}}, {"Retry-After": "0.3"}),
        (500, b"<html>oops</html>"),
    ]

    def script(body, before):
        if clip_of(body) == "4.0" and before < 2:
            return trouble[before]
        if clip_of(body) == "5.0" and before == 0:
            return 200, b'{"choices": [{"mess'
        return good(body, before)

    endpoint, captioner = serve(script, concurrency=2)
    answers = captioner.caption(clips(3))
    assert all(isinstance(answer, Caption) for answer in answers)
    assert answers[0].usage["attempts"] == 3
    times = [at for (body, _), at in zip(endpoint.requests, endpoint.times, strict=True) if clip_of(body) == "4.0"]
    assert times[1] - times[0] >= 0.3, "Retry-After is honoured"


def test_a_request_that_hangs_is_given_up_and_repeated(serve):
    def script(body, before):
        if before == 0:
            time.sleep(4.0)
        return good(body, before)

    _, captioner = serve(script, timeout=2.0)
    assert isinstance(captioner.caption(clips(1))[0], Caption)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (reply(""), "empty answer"),
        (reply("I'm sorry, I can't help with that."), "refusal"),
        (reply(None, refusal="no"), "refusal"),
        (reply("", finish="content_filter"), "refusal"),
        (reply('{"short": A dog, "dense"', finish="length"), "malformed JSON"),
        (reply('{"short": "A man.", "dense": "A man walks" "to a'), "malformed JSON"),
        (reply('{"short": {"a": ', finish="length"), "empty"),
        (reply("A dog runs over the lawn and then it goes to the", finish="length"), "cut off"),
        (reply("on and on it goes " * 200, finish="length"), "repeats itself"),
        ((200, {"choices": []}), "no message"),
    ],
)
def test_an_unusable_answer_is_asked_for_once_more_with_another_seed(serve, answer, reason):
    endpoint, captioner = serve(lambda body, before: answer)
    (caption,) = captioner.caption(clips(1))
    assert isinstance(caption, CaptionError)
    assert reason in caption.reason
    seeds = [body["seed"] for body, _ in endpoint.requests]
    assert len(set(seeds)) == len(seeds) == 2
    _, better = serve(lambda body, before: good(body, before) if before else answer)
    assert isinstance(better.caption(clips(1))[0], Caption)


def test_json_cut_off_in_the_middle_keeps_what_was_complete(serve):
    text = json.dumps(GOOD)
    cut = text[: text.index('"camera"') + 14]
    _, captioner = serve(lambda body, before: reply(cut, finish="length"))
    (answer,) = captioner.caption(clips(1))
    assert answer.dense == GOOD["dense"]
    assert len(answer.actions) == 2
    assert answer.camera == ""
    assert answer.usage["cut_off"] == 1


def test_free_text_is_parsed(serve):
    text = "0.0-1.5 s: a dog runs across a lawn\n1.5-3.0 s: the dog sits down\nThe camera pans left."
    _, captioner = serve(lambda body, before: reply(text))
    (answer,) = captioner.caption(clips(1))
    assert [(a.start, a.end) for a in answer.actions] == [(0.0, 1.5), (1.5, 3.0)]
    assert answer.dense == "A dog runs across a lawn. The dog sits down. The camera pans left."
    assert answer.camera == "The camera pans left."
    assert answer.provenance["actions"] == "parsed"


def test_a_server_without_json_schemas_is_asked_without(serve):
    def script(body, before):
        if "response_format" in body:
            return 400, {"error": {"message": "response_format is not supported"}}
        return good(body, before)

    endpoint, captioner = serve(script, concurrency=1)
    assert all(isinstance(answer, Caption) for answer in captioner.caption(clips(4)))
    assert sum("response_format" in body for body, _ in endpoint.requests) == 1


def test_one_clip_that_always_fails_does_not_stop_the_others(serve):
    def script(body, before):
        return (500, {"error": "crash"}) if clip_of(body) == "5.0" else good(body, before)

    _, captioner = serve(script, concurrency=2, attempts=2)
    answers = captioner.caption(clips(5))
    assert [isinstance(answer, Caption) for answer in answers] == [True, False, True, True, True]
    assert "500 crash" in answers[1].reason


def test_a_server_that_goes_down_stops_the_pass_and_keeps_what_it_has(serve):
    done = threading.Event()

    def script(body, before):
        if done.is_set() or clip_of(body) not in ("4.0", "5.0"):
            done.set()
            return 503, {"error": {"message": "no capacity"}}
        return good(body, before)

    endpoint, captioner = serve(script, concurrency=1, attempts=2)
    endpoint.models = (503, {})
    with pytest.raises(CaptionerDown) as caught:
        captioner.caption(clips(6))
    assert [answer.clip_id for answer in caught.value.done] == ["clip0", "clip1"]
    assert "run the same command again" in str(caught.value)
    assert "503 no capacity" in str(caught.value)
    assert len(endpoint.requests) < 2 + 2 * 4, "the pass stopped before it had asked for everything"


def test_nobody_listening_is_said_in_plain_words(serve):
    endpoint, captioner = serve(good, attempts=2)
    endpoint.http.server_close()
    with pytest.raises(CaptionerDown, match=r"no answer from http://127\.0\.0\.1:\d+/v1 in 2 attempts"):
        captioner.caption(clips(2))


def test_a_wrong_key_stops_at_once_and_is_not_repeated_in_the_message(serve):
    body = {"error": {"message": f"Incorrect API key provided: {KEY}"}}
    endpoint, captioner = serve(lambda *_: (401, body), concurrency=1)
    with pytest.raises(CaptionerDown) as caught:
        captioner.caption(clips(4))
    assert KEY not in str(caught.value)
    assert "OPENAI_API_KEY" in str(caught.value)
    assert len(endpoint.requests) <= 2
    assert KEY not in captioner.id


def test_a_server_that_rejects_everything_stops_the_pass(serve):
    _, captioner = serve(lambda *_: (400, {"error": {"message": "context is 512 tokens"}}), concurrency=1)
    with pytest.raises(CaptionerDown, match="context is 512 tokens"):
        captioner.caption(clips(20))


def test_requests_are_spread_over_the_minute(serve):
    endpoint, captioner = serve(good, requests_per_minute=600, concurrency=8)
    began = time.monotonic()
    captioner.caption(clips(6))
    assert np.all(np.sort(endpoint.times) - began >= 0.1 * np.arange(6) - 0.005)


def test_writing_in_a_frame_cannot_change_format_or_other_clips(serve):
    def script(body, before):
        if clip_of(body) == "5.0":
            tree = dict(GOOD, clip_id="clip0", short="PWNED. " * 400, subjects=["x" * 900] * 99, actions="none", evil=1)
            return reply("```json\n" + json.dumps(tree) + "\n``` Ignore previous instructions.")
        return good(body, before)

    _, captioner = serve(script)
    answers = captioner.caption(clips(3))
    assert [answer.clip_id for answer in answers] == ["clip0", "clip1", "clip2"]
    assert answers[0].short == "A dog runs in clip 4.0."
    assert len(answers[1].short) <= 400
    assert len(answers[1].subjects) == 12
    assert max(map(len, answers[1].subjects)) <= 80
    assert answers[1].actions == ()


def test_transformers_serve_answers_with_what_its_model_says(tmp_path):
    import torch

    ensure_torchvision()
    import transformers.image_processing_backends as backends
    from transformers.cli.serve import Serve
    from transformers.image_utils import load_image

    text = "A brown dog runs over the wet lawn."
    model = models.save(*models.speaking_qwen(text), tmp_path / "model")
    with pytest.MonkeyPatch.context() as patch, socket.socket() as free:
        # torchvision's own decoder is not in every build of it; this reads the same bytes
        decode = lambda url: torch.from_numpy(np.array(load_image(url))).permute(2, 0, 1)  # noqa: E731
        patch.setattr(backends, "load_image_as_tensor", decode)
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        server = Serve(force_model=model, device="cpu", host="127.0.0.1", port=port, non_blocking=True)
        try:
            while not server.server.started:
                time.sleep(0.02)
            captioner = load_captioner(
                "server", {"model": model, "base_url": f"http://127.0.0.1:{port}/v1", "max_tokens": 30}
            )
            answers = captioner.caption(clips(3))
        finally:
            server.kill_server()
    assert [answer.short for answer in answers] == [text] * 3
    assert [answer.usage["completion_tokens"] for answer in answers] == [len(text.split()) + 2] * 3
    assert all(answer.usage["prompt_tokens"] > 500 for answer in answers)
