"""Filter expressions: DuckDB accepts one expression over a clip's columns, and nothing else."""

from __future__ import annotations

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.explore.catalog import ExpressionError, filtered


@pytest.fixture(scope="module")
def clips() -> duckdb.DuckDBPyRelation:
    connection = duckdb.connect()
    columns = "motion_object FLOAT, keep BOOLEAN, caption TEXT, rejected_by TEXT[], camera_label TEXT"
    connection.execute(f"CREATE TABLE clips ({columns})")
    connection.execute("INSERT INTO clips VALUES (0.5, true, 'A dog', [], 'static')")
    connection.execute("SET enable_external_access = false")
    return connection.table("clips")


@pytest.mark.parametrize(
    "text",
    [
        "motion_object > 0.1 AND keep",
        "NOT keep OR caption ILIKE '%dog%'",
        "NOT list_contains(rejected_by, 'text_overlay')",
        "camera_label IN ('static', 'pan_left') -- a comment",
        "motion_object BETWEEN 0.1 AND 2 AND rejected_by[1] IS NULL",
        "CASE WHEN keep THEN length(caption) < 20 ELSE motion_object IS NULL END",
        "regexp_matches(\"caption\", '^A (dog|cat)') AND CAST(motion_object AS INTEGER) = 0",
        "",
    ],
)
def test_conditions_on_columns_are_accepted(clips, text):
    assert len(filtered(clips, text).fetchall()) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("motion_objekt > 1", 'Candidate bindings: "motion_object"'),
        ("motion_object >", "syntax error"),
        ("(keep", "syntax error"),
        ("keep)", "syntax error"),
        ("keep; DROP TABLE clips", "modifiers"),
        ("keep) UNION SELECT 1 WHERE (true", "syntax error"),
        ("true UNION SELECT 1", "modifiers"),
        ("keep ORDER BY caption", "modifiers"),
        ("true LIMIT 1", "modifiers"),
        ("true, false", "single expression"),
        ("EXISTS (FROM read_text('/etc/passwd'))", "file system operations are disabled"),
        ("row_number() OVER () = 1", "window"),
        ("count(*) > 1", "aggregates"),
        ("motion_object = $1", "prepared parameter"),
    ],
)
def test_anything_else_is_refused_with_a_reason(clips, text, message):
    with pytest.raises(ExpressionError, match=message):
        filtered(clips, text).fetchall()


@given(st.text(alphabet="()'\";-/* \nSELECTunionkeep01,.", max_size=40))
def test_no_text_breaks_out_of_its_expression(text):
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE clips (keep BOOLEAN)")
        connection.execute("INSERT INTO clips VALUES (true)")
        try:
            rows = filtered(connection.table("clips"), text).fetchall()
        except (ExpressionError, duckdb.Error):
            return
        assert rows in ([], [(True,)])
