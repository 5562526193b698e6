from __future__ import annotations

from editkit_docs.docstrings import body, first_line, items, section
from editkit_docs.markdown import page, table


def sample() -> None:
    """Do a thing with :func:`other`
    on two lines.

    More about ``it``.

    Args:
        left: One side,
            which goes on: here.
        right: The other.

    Returns:
        What came
        of it.
    """


def test_the_first_paragraph_becomes_one_line_of_markdown() -> None:
    assert first_line(sample) == "Do a thing with `other` on two lines."


def test_the_body_ends_where_the_sections_begin() -> None:
    assert body(sample).endswith("More about `it`.")


def test_an_item_goes_on_over_indented_lines() -> None:
    assert items(sample, "Args") == {
        "left": "One side, which goes on: here.",
        "right": "The other.",
    }


def test_a_section_becomes_one_line_and_a_missing_one_nothing() -> None:
    assert section(sample, "Returns") == "What came of it."
    assert section(sample, "Raises") == ""
    assert items(lambda: None, "Args") == {}


def test_a_table_without_rows_is_left_out_of_a_page() -> None:
    made = page("Title", table(("a", "b"), []), "text")
    assert made.startswith("# Title\n\n<!-- ")
    assert made.endswith("-->\n\ntext\n")
