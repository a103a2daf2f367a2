"""Caption health: counts of captions that failed or were repaired, by reason, and phrases that many captions share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from captioners.text.text_quality import tokens
from pipeline.tables.columns import Columns

PROBLEMS = {  # label: regular expression for a caption's error or audit reason
    "truncated": "cut off|malformed JSON|unfinished last sentence",
    "refused": "refusal",
    "empty": "^(audit: )?empty|no text in its column|no frames",
    "looped": "repeats itself|repeated sentence",
    "repeats the prompt": "repeats the prompt",
    "another language": "not English",
    "not text": "markup in the text|not words",
    "contradicts what was measured": "^audit: (camera|direction|still|motion|scenes|order|action)",
}
OTHER = "another reason"
LOOKED_AT = 2_000  # captions, evenly spread over the table, in which phrases are counted
FEWEST = 20  # captions: with fewer, no phrase counts as common
SHARED = 0.2  # share of captions from which a phrase counts as common
SIZES = (8, 6, 4)  # words of a phrase, longest first
PHRASES = 12


@dataclass(frozen=True)
class Problem:
    """A reason: `lost` clips have no caption because of it, `mended` clips have a caption that was repaired for it."""

    label: str
    lost: int
    mended: int


@dataclass(frozen=True)
class Phrase:
    """A phrase in `share` of all captions, 0..1."""

    text: str
    share: float


@dataclass(frozen=True)
class CaptionHealth:
    """`requested` clips went to the captioner, `captioned` have a caption, `distinct` captions are different."""

    requested: int
    captioned: int
    distinct: int
    problems: Sequence[Problem]
    phrases: Sequence[Phrase]


def caption_health(clips: Columns) -> CaptionHealth | None:
    """Return statistics of a dataset's captions; None where no clip was captioned."""
    captions = clips["caption"].drop_null()
    nothing = pa.chunked_array([pa.array([], pa.string())])
    errors = clips["caption_error"].drop_null() if "caption_error" in clips else nothing
    if not len(captions) + len(errors):
        return None
    notes = nothing
    if "audit_reasons" in clips:
        table = clips.table("audit_reasons", "caption")
        table = table.filter(pc.is_valid(table["caption"]))
        notes = pc.fill_null(pc.binary_join(table["audit_reasons"], "\n"), "")
    problems, unclassified = [], errors
    for label, pattern in PROBLEMS.items():
        hits = pc.match_substring_regex(unclassified, pattern)
        mended = pc.sum(pc.match_substring_regex(notes, pattern)).as_py() or 0
        problems.append(Problem(label, pc.sum(hits).as_py() or 0, mended))
        unclassified = unclassified.filter(pc.invert(hits))
    problems.append(Problem(OTHER, len(unclassified), 0))
    return CaptionHealth(
        requested=len(captions) + len(errors),
        captioned=len(captions),
        distinct=pc.count_distinct(captions).as_py(),
        problems=[problem for problem in problems if problem.lost or problem.mended],
        phrases=common_phrases(
            captions.take(pa.array(range(0, len(captions), len(captions) // LOOKED_AT + 1), pa.int64()))
        ),
    )


def common_phrases(captions: pa.ChunkedArray) -> list[Phrase]:
    """Return phrases that at least SHARED of the captions contain, most frequent first; of overlapping phrases the
    longest. A trigger word is a wanted one; an opening that all captions share teaches a model nothing."""
    if len(captions) < FEWEST:
        return []
    counts: dict[int, Counter[tuple[str, ...]]] = {size: Counter() for size in SIZES}
    for text in captions.to_pylist():
        words = tokens(text)
        for size in SIZES:
            counts[size].update({tuple(words[i : i + size]) for i in range(len(words) - size + 1)})
    phrases: list[tuple[tuple[str, ...], int]] = []
    for size in SIZES:
        for phrase, count in sorted(counts[size].items(), key=lambda item: (-item[1], item[0])):
            if count < SHARED * len(captions):
                break
            if not any(_holds(longer, phrase) for longer, _ in phrases):
                phrases.append((phrase, count))
    phrases.sort(key=lambda item: (-item[1], item[0]))
    return [Phrase(" ".join(phrase), count / len(captions)) for phrase, count in phrases[:PHRASES]]


def _holds(longer: Sequence[str], phrase: Sequence[str]) -> bool:
    """Return whether `phrase` is inside `longer`, or overlaps it by all but one word."""
    inside = range(len(longer) - len(phrase) + 1)
    if any(tuple(longer[i : i + len(phrase)]) == tuple(phrase) for i in inside):
        return True
    most = len(phrase) - 1
    return tuple(longer[-most:]) == tuple(phrase[:most]) or tuple(longer[:most]) == tuple(phrase[-most:])
