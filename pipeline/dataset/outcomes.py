"""What became of the decisions by hand in a build: each is a row of tables/decisions, also where its clip is gone."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

OUTCOMES = pa.schema(
    [
        ("clip_id", pa.string()),
        ("source_uri", pa.string()),
        ("start", pa.float64()),  # seconds in the source, when it was decided
        ("end", pa.float64()),
        ("decision", pa.string()),  # keep, reject, or null: an edited caption alone
        ("caption", pa.string()),  # the edited one
        ("outcome", pa.string()),  # kept, rejected, not kept or vanished
        ("rejected_by", pa.list_(pa.string())),  # of the clip, after the decision
    ]
)
KEPT, REJECTED, NOT_KEPT, VANISHED = "kept", "rejected", "not kept", "vanished"


def outcomes(decisions: pa.Table, clips: pa.Table) -> pa.Table:
    """Return rows of OUTCOMES in order of clip_id. `decisions` are rows of DECISIONS; `clips` are the selected ones,
    with `keep` and `rejected_by`.

    `not kept` is a clip that is to be kept and cannot be: too small for a bucket, without a caption, or not decodable.
    `vanished` is a clip that this build does not have: its source is gone, or is now cut at other times.
    """
    at = pc.index_in(decisions["clip_id"], clips["clip_id"].combine_chunks())
    keep = clips["keep"].take(at)
    not_kept = pc.if_else(pc.fill_null(pc.equal(decisions["decision"], "keep"), False), NOT_KEPT, REJECTED)
    outcome = pc.if_else(pc.is_null(keep), VANISHED, pc.if_else(keep, KEPT, not_kept))
    reasons = clips["rejected_by"].cast(OUTCOMES.field("rejected_by").type).take(at)
    columns = {name: decisions[name] for name in ("clip_id", "source_uri", "start", "end", "decision", "caption")}
    return pa.table({**columns, "outcome": outcome, "rejected_by": reasons}, schema=OUTCOMES)


def outcome_counts(rows: pa.Table) -> dict[str, int]:
    """Return numbers for dataset.json, of rows of OUTCOMES: clips kept and rejected by hand, edited captions of clips
    that are there, decisions to keep that could not be followed, and decisions of clips that have vanished."""
    present = rows.filter(pc.not_equal(rows["outcome"], VANISHED))

    def count(decision: str, outcome: str) -> int:
        both = pc.and_(pc.equal(present["decision"], decision), pc.equal(present["outcome"], outcome))
        return pc.sum(both).as_py() or 0

    return {
        "kept_by_hand": count("keep", KEPT),
        "rejected_by_hand": count("reject", REJECTED),
        "captions_by_hand": present.num_rows - present["caption"].null_count,
        "decisions_not_followed": count("keep", NOT_KEPT),
        "decisions_vanished": rows.num_rows - present.num_rows,
    }
