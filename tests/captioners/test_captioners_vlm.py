"""The vlm captioner loads real models in the hub's format and says what plain generate says, faster."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from tiny_models import caption_models as models

from captioners import load_captioner
from captioners.base import Caption, CaptionError, ClipFrames
from captioners.vlm.decode import Decoder, read
from captioners.vlm.judge import judged
from captioners.vlm.row_attention import attend_rows_plainly
from captioners.vlm.vlm import Vlm, ahead

torch.set_num_threads(1)
FAMILIES = {
    "qwen": models.tiny_qwen,
    "qwen3": models.tiny_qwen3,
    "llava": models.tiny_llava,
    "smolvlm": models.tiny_smolvlm,
    "internvl": models.tiny_internvl,
}


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    return {name: models.save(*make(), tmp_path_factory.mktemp("models") / name) for name, make in FAMILIES.items()}


def clips(count=5):
    rng = np.random.default_rng(0)
    return [
        ClipFrames(
            f"clip{i}",
            4.0,
            [rng.integers(0, 255, (60, 100 if i % 2 else 80, 3), np.uint8) for _ in range(2 + i % 3)],
            np.linspace(0, 4, 2 + i % 3),
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_plain_generate(saved, family):
    captioner = Vlm(saved[family], dtype="float32", max_new_tokens=12, rows=3, prefill=2, frame_tokens=8)
    given = clips()
    answers = {answer.key: answer for answer in captioner.answers(given)}
    assert set(answers) == {clip.clip_id for clip in given}
    plain = FAMILIES[family]()[0].to(captioner.device)
    for clip in given:
        inputs = {name: value.to(captioner.device) for name, value in captioner._prepared([clip]).inputs.items()}
        for ours in ("position_ids", "rope_deltas"):
            inputs.pop(ours, None)
        generated = plain.generate(**inputs, max_new_tokens=12, do_sample=False, pad_token_id=0)
        assert answers[clip.clip_id].tokens == generated[0, inputs["input_ids"].shape[1] :].tolist()
        assert answers[clip.clip_id].prompt_tokens == inputs["input_ids"].shape[1]


def test_an_end_token_ends_an_answer_and_its_row_is_used_again(saved):
    captioner = Vlm(saved["qwen"], max_new_tokens=12, rows=1, prefill=1, frame_tokens=8)
    free = {answer.key: answer.tokens for answer in captioner.answers(clips(3))}
    captioner._shared.decoder = None  # it was made with the model's own end tokens
    captioner.ends = [free["clip0"][3]]
    ended = {answer.key: answer for answer in captioner.answers(clips(3))}
    cut = free["clip0"].index(captioner.ends[0])
    assert ended["clip0"].tokens == free["clip0"][:cut]
    assert ended["clip0"].ended
    for key, tokens in free.items():
        if captioner.ends[0] not in tokens:
            assert ended[key].tokens == tokens
            assert not ended[key].ended


def test_a_mirrored_pair_of_batches_gives_the_same_answers(saved):
    captioner = Vlm(saved["qwen"], max_new_tokens=6, rows=4, prefill=4, frame_tokens=8)
    forwards = {answer.key: answer.tokens for answer in captioner.answers(clips())}
    back = {answer.key: answer.tokens for answer in captioner.answers(clips()[::-1])}
    assert forwards == back


def test_random_weights_give_errors_with_reasons_for_every_clip_in_order(saved):
    captioner = load_captioner("vlm", {"model": saved["qwen"], "max_new_tokens": 8, "rows": 4, "frame_tokens": 8})
    given = [*clips(2), ClipFrames("blank", 1.0, [], np.zeros(0))]
    answers = captioner.caption(given)
    assert [answer.clip_id for answer in answers] == ["clip0", "clip1", "blank"]
    assert all(isinstance(answer, CaptionError) and answer.reason for answer in answers)
    assert answers[2].reason == "no frames"


def test_a_sampled_answer_follows_from_the_seed_and_the_clip_and_differs_from_the_greedy_one(saved):
    captioner = Vlm(saved["qwen"], max_new_tokens=8, rows=4, prefill=4, frame_tokens=8)

    def sampled(given):
        return {answer.key: answer.tokens for answer in captioner.answers(given, temperature=1.0)}

    both = sampled(clips(2))
    assert sampled(clips(1)) == {"clip0": both["clip0"]}
    assert both != {answer.key: answer.tokens for answer in captioner.answers(clips(2))}
    captioner.seed = 1
    assert sampled(clips(2)) != both


def test_tokens_are_drawn_as_often_as_they_are_likely():
    model, _ = models.tiny_qwen()
    decoder = Decoder(model, rows=4096, length=2, limit=1, ends=[])
    decoder.temperature.fill_(0.5)
    decoder.temperature[0] = 0
    logits = torch.tensor([0.0, 0.5, 1.0, -20.0]).expand(4096, -1)
    draws = (torch.arange(4096) + 1) / 4096
    tokens = decoder._choose(logits, torch.arange(4096), draws, sampled=True)
    assert tokens[0] == 2, "a greedy row beside sampled ones"
    shares = torch.bincount(tokens[1:], minlength=4) / 4095
    assert torch.allclose(shares, (logits[0] / 0.5).softmax(0), atol=1e-3)


def test_one_decoder_serves_greedy_rounds_and_retries(saved):
    captioner = Vlm(saved["qwen"], max_new_tokens=8, rows=4, prefill=4, frame_tokens=8)
    captioner.caption(clips(2))  # random weights: every answer is asked for again, sampled
    decoder = captioner._shared.decoder
    assert decoder is not None
    captioner.caption(clips(2))
    assert captioner._shared.decoder is decoder


def test_a_group_larger_than_the_rows_is_split_and_answered(saved):
    captioner = Vlm(saved["qwen"], max_new_tokens=4, rows=2, prefill=32, frame_tokens=8)
    assert {answer.key for answer in captioner.answers(clips(5))} == {clip.clip_id for clip in clips(5)}


def test_calls_of_several_threads_share_rows_and_get_the_answers_that_they_get_alone(saved):
    captioner = Vlm(saved["qwen"], max_new_tokens=8, rows=3, prefill=2, frame_tokens=8)
    groups = [clips(5)[at : at + 2] for at in range(4)]
    alone = [{answer.key: answer.tokens for answer in captioner.answers(group)} for group in groups]
    with ThreadPoolExecutor(8) as threads:
        greedy = [threads.submit(captioner.answers, group) for group in groups]
        greedy = [threads.submit(lambda call=call: list(call.result())) for call in greedy]
        sampled = [threads.submit(lambda group=group: list(captioner.answers(group, 1.0))) for group in groups]
        chances = threads.submit(captioner.ask, clips(3), ["Is there a dog?"] * 3)
        together = [{answer.key: answer.tokens for answer in call.result()} for call in greedy]
        assert [len(call.result()) for call in sampled] == [2] * 4
        assert len(chances.result()) == 3
    assert together == alone


def fail_above(monkeypatch, name, most):
    """Have a method of the decoder raise what a full GPU raises, where more than `most` rows are in use by it."""
    plain, sizes = getattr(Decoder, name), []

    def limited(self, *args):
        rows = len(args[0].keys) if name == "fill" else self.rows
        sizes.append(rows)
        if rows > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return plain(self, *args)

    monkeypatch.setattr(Decoder, name, limited)
    return sizes


@pytest.mark.parametrize("method", ["fill", "advance"])
def test_where_memory_does_not_suffice_fewer_clips_are_answered_at_once_and_none_twice(saved, monkeypatch, method):
    captioner = Vlm(saved["qwen"], max_new_tokens=8, rows=4, prefill=4, frame_tokens=8)
    expected = sorted((answer.key, answer.tokens) for answer in captioner.answers(clips()))
    sizes = fail_above(monkeypatch, method, most=2)
    assert sorted((answer.key, answer.tokens) for answer in captioner.answers(clips())) == expected
    assert max(sizes) == 4
    again = len(sizes)
    assert sorted((answer.key, answer.tokens) for answer in captioner.answers(clips())) == expected
    assert max(sizes[again:]) == 2, "it does not try what failed before"


def test_a_clip_for_which_memory_does_not_suffice_is_the_machines_fault(saved, monkeypatch):
    captioner = Vlm(saved["qwen"], max_new_tokens=8, rows=4, prefill=4, frame_tokens=8)
    fail_above(monkeypatch, "fill", most=0)
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        captioner.caption(clips(3))


@pytest.mark.gpu
def test_several_batches_with_retries_are_captioned_while_other_threads_use_the_gpu(saved):
    captioner = Vlm(saved["qwen"], device="cuda", max_new_tokens=24, rows=8, prefill=4, frame_tokens=8)
    stop = threading.Event()

    def score() -> None:  # allocates and synchronizes all the time, as similarity scoring does
        while not stop.is_set():
            states = torch.ones(256, 256, device="cuda")
            (states @ states).sum().item()

    busy = threading.Thread(target=score)
    busy.start()
    try:
        for _ in range(4):
            assert len(captioner.caption(clips(5))) == 5
    finally:
        stop.set()
        busy.join()


def test_questions_get_a_probability_from_the_first_word(saved):
    captioner = Vlm(saved["qwen"], rows=2, prefill=2, frame_tokens=8)
    given = clips(3)
    chances = captioner.ask(given, ["Is there a dog?"] * 3)
    assert all(0 < chance < 1 for chance in chances)
    alone = captioner.ask(given[2:], ["Is there a dog?"])
    assert chances[2] == pytest.approx(alone[0], abs=1e-5)


def test_aligned_and_blockwise_models_compute_the_same():
    plain, processor = models.tiny_qwen()
    fast, _ = models.tiny_qwen()
    captioner = Vlm(fast, processor, frame_tokens=12)  # frames of unequal windows
    assert fast.config.vision_config._attn_implementation != plain.config.vision_config._attn_implementation
    from captioners.vlm.kernels import align_projections

    assert align_projections(fast, 48) == 4
    batch = captioner._prompts(clips(2), ["What happens?"] * 2)
    assert torch.allclose(read(plain, batch), read(fast, batch), atol=1e-5)


def test_a_prompt_that_does_not_fit_is_said_to_be_too_long():
    plain, processor = models.tiny_qwen()
    captioner = Vlm(plain, processor, frame_tokens=8)
    decoder = Decoder(plain, rows=2, length=64, limit=8, ends=[])
    with pytest.raises(ValueError, match="do not fit rows of 64"):
        decoder.fill(captioner._prompts(clips(1), ["What happens?"]))


def test_work_ahead_keeps_order_and_hands_on_errors():
    with ThreadPoolExecutor(3) as pool:
        assert list(ahead(lambda x: x * x, range(20), pool, depth=4)) == [x * x for x in range(20)]
        with pytest.raises(ZeroDivisionError):
            list(ahead(lambda x: 1 // x, [1, 0, 1], pool, depth=2))


def test_what_a_model_says_becomes_the_caption():
    text = "A brown dog runs over the wet lawn."
    answers = Vlm(*models.speaking_qwen(text), max_new_tokens=20, rows=2, prefill=2, frame_tokens=8).caption(clips(3))
    assert [answer.dense for answer in answers] == [text] * 3
    assert answers[0].usage["completion_tokens"] == len(text.split()) + 1


@pytest.mark.parametrize("shape", [(3, 28, 4, 128, 200), (2, 6, 6, 80, 33), (1, 4, 1, 16, 64)])
def test_a_step_attends_to_what_its_row_holds(shape):
    rows, heads, groups, dim, length = shape
    torch.manual_seed(0)
    query = torch.randn(rows, heads, 1, dim)
    key, value = (torch.randn(rows, groups, length, dim) for _ in range(2))
    lengths = torch.randint(0, length, (rows,))
    attended = attend_rows_plainly(query, key, value, lengths, dim**-0.5)
    for row in range(rows):
        slots = slice(0, int(lengths[row]) + 1)
        keys, values = (x[row, :, slots].repeat_interleave(heads // groups, 0) for x in (key, value))
        alone = (query[row] @ keys.transpose(1, 2) * dim**-0.5).softmax(-1) @ values
        assert torch.allclose(attended[row], alone, atol=1e-5)


def test_a_caption_can_be_asked_back(saved):
    captioner = Vlm(saved["llava"], rows=2, prefill=2, verify=True)
    (clip,) = clips(1)
    caption = Caption(clip.clip_id, "A dog runs.", "A dog runs to the left. Then it sits.", provenance={})
    (kept,) = judged([caption], [clip], captioner)
    assert kept.usage["faithfulness"] < 0
    assert kept.usage["unfaithful"] in (0, 1, 2)
