"""The page, Markdown and CSV: what they show, and that nothing foreign becomes markup."""

from __future__ import annotations

import builtins
import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from run_folders import failed_unit, row, unit, write_run, write_sequence, write_story

from editkit_core.errors import MissingExtraError
from editkit_core.report.csv_rows import COLUMNS, render_csv
from editkit_core.report.document import make_document
from editkit_core.report.html import render_html
from editkit_core.report.intervals import Interval
from editkit_core.report.markdown import render_markdown
from editkit_core.report.runs import read_runs
from editkit_core.report.wording import interval_text, number

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'`|{{7*7}}\u202e\x00 ="
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """What a browser would see: elements, attributes, text; and whether elements nest."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.ids: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes += attrs
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def page_of(*folders: Path, **options: Any) -> tuple[str, Page]:
    text = render_html(make_document(read_runs(folders), **options))
    return text, Page(text)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_story(folder / "rome", "rome", edits=24, skill=0.9, damage=0.1)
    write_story(folder / "ft", "ft", edits=24, skill=0.99, damage=0.3)
    write_sequence(folder / "seq", "rome", edits=12, skill=0.9, loss=0.5)
    return folder


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which every text that comes from elsewhere tries to be markup."""
    folder = tmp_path_factory.mktemp("evil")
    said = {"prompt": EVIL, "expected": EVIL, "text_before": EVIL, "text_after": EVIL}
    rows = [
        row(i, metric, probe=EVIL, protocol=protocol, after=0.0, **said)
        for i in range(2)
        for metric in ("reliability", EVIL)
        for protocol in ("gen_em", EVIL)
    ]
    stages = [
        unit(n, rows, stage=stage, relations=[EVIL, f"{EVIL}2"], requests=[EVIL, f"{EVIL}2"])
        for n, stage in enumerate(("after_edit", "checkpoint:1", "after_all", EVIL))
    ]
    return write_run(
        folder / "<b>run&amp;'",
        [*stages, {**failed_unit(7, EVIL), "requests": [EVIL]}],
        plan={"method": EVIL, "scenario": "sequential", EVIL: EVIL},
        dataset={"name": EVIL, "digest": EVIL, "source": EVIL, "skipped": {EVIL: 3}},
        model={"name": EVIL, "fingerprint": EVIL},
        method={"preset": EVIL, "params": {EVIL: EVIL}},
        versions={EVIL: EVIL},
        command=EVIL,
        created=EVIL,
        plan_digest=EVIL,
    )


# -- the page --


def test_every_section_is_there(story: Path) -> None:
    _, page = page_of(story)
    for words in (
        "editkit:demo on demo, single",
        "editkit:demo on demo, sequential",
        "Teacher-forced tokens",
        "Free generation, exact match",
        "Scores: after all edits",
        "Efficiency",
        "Retention",
        "By relation",
        "The worst failures",
        "What was run",
        "What the numbers mean",
        "1 edit (4.2 %) could not be made (EK-E02 once)",
    ):
        assert words in page.text
    assert page.elements.count("svg") > 8


def test_elements_nest_and_ids_are_unlike(story: Path, evil: Path) -> None:
    for folder in (story, evil):
        _, page = page_of(folder)
        assert page.open == []
        assert len(page.ids) == len(set(page.ids))


def test_every_link_leads_somewhere_on_the_page(story: Path) -> None:
    _, page = page_of(story)
    links = {value for name, value in page.attributes if name in ("href", "xlink:href")}
    assert links
    assert {f"#{name}" for name in page.ids} >= links


def test_the_page_loads_nothing(story: Path, evil: Path) -> None:
    for folder in (story, evil):
        text, page = page_of(folder)
        assert not {"script", "link", "img", "iframe", "object", "base"} & set(page.elements)
        names = {name for name, _ in page.attributes}
        assert not {"src", "srcset", "data", "action"} & names
        assert not [name for name in names if name.startswith("on")]
        assert not re.search(r"url\((?!#)", text)
        assert "@import" not in text
        assert "default-src 'none'" in text


def test_foreign_text_is_shown_as_it_is(evil: Path) -> None:
    text, page = page_of(evil, title=EVIL)
    escaped = EVIL.replace("\u202e\x00", "\\u202e\\x00")
    assert page.text.count(escaped) > 20
    assert "49" not in re.findall(r"\d+", page.text)  # {{7*7}} is no template
    assert "\u202e" not in text
    assert "\x00" not in text


def test_equal_runs_give_equal_pages(story: Path) -> None:
    assert page_of(story)[0] == page_of(story)[0]


def test_no_path_of_this_machine_is_on_the_page(story: Path) -> None:
    assert str(story) not in page_of(story)[0]


def test_pictures_take_their_colours_from_the_page(story: Path) -> None:
    text, _ = page_of(story)
    pictures = re.findall(r"<svg .*?</svg>", text, re.DOTALL)
    for picture in pictures:
        assert not re.search(r"#[0-9a-f]{6}\b", re.sub(r'(href="|url\()#[^")]*', "", picture))
        assert "var(--series-1)" in picture
        assert 'role="img"' in picture
    style = text[: text.index("</style>")]
    light, dark = style.split("@media (prefers-color-scheme: dark)", 1)
    for name in set(re.findall(r"var\(--([a-z0-9-]+)\)", "".join(pictures))) - {"sans"}:
        assert f"--{name}:" in light
        assert f"--{name}:" in dark


def contrast(one: str, two: str) -> float:
    """WCAG 2's contrast ratio of two colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_colours_are_readable_in_light_and_in_dark(story: Path) -> None:
    text, _ = page_of(story)
    schemes = re.findall(r":root \{(.*?)\}", text, re.DOTALL)
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6});", scheme))
        for ink in ("ink", "muted", "accent", "bad"):
            for ground in ("paper", "card", "wash"):
                assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
        assert contrast(colours["warn-ink"], colours["warn-wash"]) >= 4.5
        for series in range(1, 9):
            assert contrast(colours[f"series-{series}"], colours["card"]) >= 3.0, series


def test_intervals_without_width_and_without_pairs_are_not_shown_as_certain(tmp_path: Path) -> None:
    units = [unit(i, [row(i)]) for i in range(5)]
    units[0]["rows"].append(row(0, "generalization"))
    _, page = page_of(write_run(tmp_path / "r", units))
    assert "all 5 the same" in page.text
    assert "one request: no interval" in page.text


def test_a_papers_number_is_shown_with_its_source_and_note(tmp_path: Path) -> None:
    folder = write_run(
        tmp_path / "r",
        [unit(0, [row(0)])],
        dataset={"name": "zsre", "form": "mend"},
        model={"name": "meta-llama/Llama-2-7b-hf", "fingerprint": "f"},
    )
    _, page = page_of(folder)
    assert re.search(r"paper 92\.[45] %", page.text)  # 92.45 lies between two
    assert "EasyEdit (Wang et al. 2023, arXiv:2308.07269), Table 2" in page.text
    assert "Teacher-forced token accuracy with the target given" in page.text
    markdown = render_markdown(make_document(read_runs([folder])))
    assert re.search(r"paper 92\.[45] % \(EasyEdit", markdown)


def test_without_matplotlib_the_page_names_the_remedy(
    story: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return original(name, *rest)

    document = make_document(read_runs([story / "rome"]))
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingExtraError, match="pip install"):
        render_html(document)
    assert render_markdown(document)
    assert render_csv(document)


# -- Markdown and CSV --


def test_markdown_tables_have_equal_columns_whatever_the_texts(story: Path, evil: Path) -> None:
    for folder in (story, evil):
        text = render_markdown(make_document(read_runs([folder])))
        for table in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE):
            bars = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
            assert len(bars) == 1, table


def test_markdown_of_foreign_text_is_no_markup(evil: Path) -> None:
    text = render_markdown(make_document(read_runs([evil])))
    outside_code = re.sub(r"`[^`\n]*`", "", text.replace("\\`", ""))
    assert not re.search(r"(?<!\\)<(script|img)", outside_code)
    assert "\u202e" not in text


def test_csv_holds_every_score_in_full(story: Path) -> None:
    document = make_document(read_runs([story / "rome"]))
    lines = list(csv.DictReader(io.StringIO(render_csv(document))))
    (member,) = document.members
    whole = [line for line in lines if not line["relation"]]
    assert len(whole) == sum(map(len, member.scores.values()))
    assert len(lines) > len(whole)
    by_key = {(line["metric"], line["probe"], line["protocol"]): line for line in whole}
    for key, score in member.scores["after_edit"].items():
        line = by_key[tuple(key)]
        assert float(line["after"]) == score.after.value
        assert float(line["after_low"]) == score.after.low
        assert int(line["n"]) == score.after.n
    assert tuple(lines[0]) == COLUMNS


def test_csv_has_no_cell_that_a_spreadsheet_would_run(tmp_path: Path) -> None:
    folder = write_run(
        tmp_path / "r",
        [unit(0, [row(0, probe="+1", before=-1.5)], relations=["@SUM(A1)"])],
        plan={"method": '=HYPERLINK("x")'},
    )
    lines = list(csv.reader(io.StringIO(render_csv(make_document(read_runs([folder]))))))
    for cell in (cell for line in lines for cell in line):
        assert not cell.startswith(("=", "+", "@")), cell
        if cell.startswith("-"):
            float(cell)


# -- numbers --


@pytest.mark.parametrize(
    ("value", "unit_", "text"),
    [
        (0.9685, "share", "96.9 %"),
        (1.0, "share", "100.0 %"),
        (6.0123, "bits", "6.012 bits"),
        (-0.25, "nat", "-0.250 nat"),
        (88.04, "points", "88.0"),
        (0.01234, "s", "0.0123 s"),
        (12345.6, "s", "12,346 s"),
        (2_500_000_000, "bytes", "2.5 GB"),
        (12, "bytes", "12 B"),
    ],
)
def test_numbers_carry_their_unit(value: float, unit_: str, text: str) -> None:
    assert number(value, unit_) == text


def test_an_interval_says_its_unit_once() -> None:
    ends = Interval(value=0.5, low=0.25, high=0.75, n=9)
    assert interval_text(ends, "share") == "25.0 to 75.0 %"
    assert interval_text(ends, "share", signed=True) == "+25.0 to +75.0 %"
    assert interval_text(ends, "points") == "0.2 to 0.8"
