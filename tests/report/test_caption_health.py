"""Caption health: truncated, refused, empty and looped answers are counted; phrases that all captions share named."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from finished_dataset import finished, footage

from pipeline.report.caption_health import Problem, caption_health, common_phrases
from pipeline.report.page import write_report
from pipeline.storage.store import Store
from pipeline.tables.columns import Columns

SUBJECTS = ("dog", "cat", "horse", "child", "train", "boat", "kite", "leaf", "wheel", "cloud")


def columns(folder: Path, rows: list[dict[str, object]]) -> Columns:
    (folder / "tables" / "clips").mkdir(parents=True)
    schema = pa.schema(
        [("caption", pa.string()), ("caption_error", pa.string()), ("audit_reasons", pa.list_(pa.string()))]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / "tables" / "clips" / "0.parquet")
    return Columns(Store(str(folder)), "tables/clips", pa.schema([]))


def test_answers_are_counted_by_what_became_of_them(tmp_path):
    errors = ["cut off: 'A dog'", "malformed JSON: '{'", "refusal: 'I cannot'", "refusal", "empty answer"]
    errors += ["audit: empty", "repeats itself: 'a a a'", "not English: 'Ein Hund'", "the server rejects this clip"]
    rows: list[dict[str, object]] = [{"caption_error": error} for error in errors]
    rows += [{"caption": "A dog runs.", "audit_reasons": ["form: unfinished last sentence removed"]}]
    rows += [{"caption": "A dog runs.", "audit_reasons": []}, {"caption": "A cat sleeps."}, {}]
    health = caption_health(columns(tmp_path, rows))
    assert health is not None
    assert (health.requested, health.captioned, health.distinct) == (12, 3, 2)
    assert list(health.problems) == [
        Problem("truncated", 2, 1),
        Problem("refused", 2, 0),
        Problem("empty", 2, 0),
        Problem("looped", 1, 0),
        Problem("another language", 1, 0),
        Problem("another reason", 1, 0),
    ]
    assert sum(problem.lost for problem in health.problems) == len(errors)


def test_a_dataset_without_captions_has_no_health(tmp_path):
    assert caption_health(columns(tmp_path, [{}, {}])) is None


def test_a_phrase_that_most_captions_share_is_named_once_at_its_longest():
    texts = [f"The video shows a close view of a {SUBJECTS[i % 10]} number {i} over there." for i in range(40)]
    phrases = common_phrases(pa.chunked_array([texts]))
    assert (phrases[0].text, phrases[0].share) == ("the video shows a close view of a", 1.0)
    assert not any("video shows a close" in phrase.text for phrase in phrases[1:])
    varied = [f"A {SUBJECTS[i % 10]} moves {SUBJECTS[i % 7]} {SUBJECTS[i % 9]} {i}." for i in range(40)]
    assert common_phrases(pa.chunked_array([varied])) == []
    assert common_phrases(pa.chunked_array([texts[:5]])) == []


def test_the_page_shows_health_and_prompt(tmp_path):
    finished(tmp_path, footage(tmp_path / "sources", fps=(24,), still=False))
    info = json.loads((tmp_path / "dataset.json").read_text())
    assert info["prompts"] == {}
    info["prompts"] = {"instructions": "Describe <b>all</b>.", "question": "The JSON object:"}
    (tmp_path / "dataset.json").write_text(json.dumps(info))
    page = Path(write_report(tmp_path)).read_text()
    assert '<section id="captions">' in page
    assert "3 of 3 clips that were asked for have a caption, 3 of them different" in page
    assert "Describe &lt;b&gt;all&lt;/b&gt;." in page
