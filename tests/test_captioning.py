"""What the caption pass makes of captions: the text of a clip."""

import pyarrow as pa

from pipeline.passes.caption_worker import chosen_text

ROWS = pa.table(
    {
        "clip_id": [f"{i * 2654435761 % 2**64:016x}" for i in range(400)],
        "caption_short": [f"short {i}" if i % 7 else None for i in range(400)],
        "caption_dense": [f"dense {i}" if i % 7 else None for i in range(400)],
    }
)


def test_a_mix_of_short_and_dense_is_drawn_by_clip_and_the_same_every_time():
    told = chosen_text(ROWS, "mix").to_pylist()
    kinds = [text.split()[0] for text in told if text]
    assert 0.35 < kinds.count("short") / len(kinds) < 0.65
    assert [text is None for text in told] == [i % 7 == 0 for i in range(400)]
    assert chosen_text(ROWS.slice(100), "mix").to_pylist() == told[100:], "whatever else is in the table"


def test_short_or_dense_is_what_the_recipe_names_and_the_other_where_there_is_one_only():
    only = ROWS.set_column(2, "caption_dense", pa.array([None] * 400, pa.string()))
    assert chosen_text(ROWS, "short")[1].as_py() == "short 1"
    assert chosen_text(ROWS, "dense")[1].as_py() == "dense 1"
    assert chosen_text(only, "dense")[1].as_py() == "short 1"
