import difflib

from hypothesis import given, settings
from hypothesis import strategies as st

from tunekeeper.diffs.patch import parse_patch
from tunekeeper.diffs.tables import Page, normal, page_tables, plain, read_tables, split_row, table_changes


def patch_of(old: str, new: str, context: int = 3) -> str:
    return "\n".join(list(difflib.unified_diff(old.split("\n"), new.split("\n"), n=context, lineterm=""))[2:])


def page(old: str, new: str, *, name: str = "page.md", context: int = 3, whole: bool = False) -> Page:
    texts = (old, new) if whole else (None, None)
    return Page(name, parse_patch(patch_of(old, new, context)), *texts)


def told(*pages: Page) -> list[tuple[str, ...]]:
    return [(c.kind, c.key, c.column, plain(c.old), plain(c.new)) for c in table_changes(pages)]


TABLE = """# Fruit

Intro.

## Prices

| Name | Colour | Price |
|------|:------:|------:|
| apple | red | 1 |
| pear | green | 2 |
| plum | blue | 3 |
| fig | green | 4 |
| lime | green | 5 |
"""


def test_a_table_is_read_with_its_header_its_headings_and_its_lines():
    (table,) = read_tables(TABLE)
    assert table.columns == ("Name", "Colour", "Price")
    assert table.headings == ("Fruit", "Prices")
    assert [(row.line, row.cells[0]) for row in table.rows][:2] == [(9, "apple"), (10, "pear")]


def test_a_changed_cell_is_named_by_row_and_column():
    assert told(page(TABLE, TABLE.replace("| 4 |", "| 40 |"))) == [("cell_changed", "fig", "Column 3", "4", "40")]
    whole = page(TABLE, TABLE.replace("| 4 |", "| 40 |"), whole=True)
    assert told(whole) == [("cell_changed", "fig", "Price", "4", "40")]


def test_either_whole_text_is_enough_to_know_the_header():
    new = TABLE.replace("| 4 |", "| 40 |")
    hunks = parse_patch(patch_of(TABLE, new))
    for sides in ((TABLE, None), (None, new)):
        old_tables, new_tables = page_tables(Page("page.md", hunks, *sides))
        assert old_tables == read_tables(TABLE, filename="page.md")
        assert new_tables == read_tables(new, filename="page.md")


def test_a_text_that_the_hunks_do_not_fit_is_not_trusted():
    new = TABLE.replace("| 4 |", "| 40 |")
    _, tables = page_tables(Page("page.md", parse_patch(patch_of(TABLE, new)), None, "another text"))
    assert tables[0].header == "inferred"


def test_realignment_and_another_order_are_no_change():
    realigned = """# Fruit

Intro.

## Prices

| Name      | Colour    | Price |
| :-------- | --------- | ----: |
| lime      | green     | 5     |
| apple     | red       | 1     |
| plum      | blue      | 3     |
| pear      | green     | 2     |
| fig       | green     | 4     |
"""
    assert told(page(TABLE, realigned)) == []
    assert told(page(TABLE, realigned, whole=True)) == []


def test_a_column_added_removed_or_renamed_is_told_once_and_not_by_cell():
    old = "| A | B |\n|---|---|\n| x | 1 |\n| y | 2 |"
    assert told(page(old, "| A | N | B |\n|---|---|---|\n| x | p | 1 |\n| y | q | 2 |")) == [
        ("column_added", "", "N", "", "N")
    ]
    assert told(page(old, "| A |\n|---|\n| x |\n| y |")) == [("column_removed", "", "B", "B", "")]
    assert told(page(old, "| A | Size |\n|---|---|\n| x | 1 |\n| y | 2 |")) == [
        ("column_renamed", "", "Size", "B", "Size")
    ]


def test_columns_in_another_order_are_no_change_of_cells():
    assert told(page("| A | B |\n|---|---|\n| x | 1 |", "| B | A |\n|---|---|\n| 1 | x |")) == []


def test_a_row_moves_to_another_table_and_to_another_file():
    other = "## Old\n\n| Name | Price |\n|---|---|\n| kiwi | 9 |\n"
    moved = other.replace("| kiwi | 9 |", "| kiwi | 9 |\n| fig | 4 |")
    gone = TABLE.replace("| fig | green | 4 |\n", "")
    assert told(page(TABLE + other, gone + moved)) == [("row_moved", "fig", "", "", "")]
    apart = told(page(TABLE, gone, name="a.md", whole=True), page(other, moved, name="b.md", whole=True))
    assert apart == [("row_moved", "fig", "", "", "")]


def test_a_row_that_changes_as_it_moves_tells_its_cells_too():
    other = "## Old\n\n| Name | Price |\n|---|---|\n| kiwi | 9 |\n"
    gone = TABLE.replace("| fig | green | 4 |\n", "")
    moved = other.replace("| kiwi | 9 |", "| kiwi | 9 |\n| fig | 5 |")
    assert told(page(TABLE + other, gone + moved, whole=True)) == [
        ("row_moved", "fig", "", "", ""),
        ("cell_changed", "fig", "Price", "4", "5"),
    ]


def test_pipes_within_cells_do_not_split_them():
    assert split_row(r"| a \| b | `c|d` | e |", width=3) == ("a | b", "`c|d`", "e")
    assert split_row("| a | `c|d` |", width=3) == ("a", "`c", "d`")  # as GFM reads it
    assert split_row(r"| `x \| y` |") == ("`x | y`",)
    assert split_row(r"a | b\|") == ("a", "b|")


def test_rows_with_too_few_or_too_many_cells_are_kept_as_they_are():
    (table,) = read_tables("| A | B |\n|---|---|\n| x |\n| y | 1 | more |")
    assert [row.cells for row in table.rows] == [("x",), ("y", "1", "more")]
    assert table.rows[0].cell(1) == ""
    change = told(page("| A | B |\n|---|---|\n| x |", "| A | B |\n|---|---|\n| x | 2 |"))
    assert change == [("cell_changed", "x", "B", "", "2")]


def test_a_table_without_outer_pipes_needs_its_delimiter():
    (table,) = read_tables("A | B\n--- | ---\nx | 1\n\nprose | with a pipe")
    assert (table.columns, [row.cells for row in table.rows]) == (("A", "B"), [("x", "1")])


def test_tables_in_code_and_in_comments_are_no_tables():
    inner = "| A | B |\n|---|---|\n| x | 1 |\n"
    assert read_tables(f"```\n{inner}```\n") == ()
    assert read_tables(f"~~~~ md\n```\n{inner}```\n~~~~\n") == ()
    assert read_tables(f"<!--\n{inner}-->\n") == ()
    assert len(read_tables(f"```\ncode\n```\n\n{inner}")) == 1


def test_a_hunk_that_starts_in_a_code_block_does_not_hide_the_table_behind_it():
    patch = "@@ -5,5 +5,6 @@\n code\n ```\n \n | A | B |\n |---|---|\n+| x | 1 |"
    assert told(Page("p.md", parse_patch(patch))) == [("row_added", "x", "", "", "")]


def test_a_header_outside_the_hunk_is_borrowed_from_the_same_kind_of_table_of_the_page():
    patch = (
        "@@ -1,3 +1,4 @@\n | Model | Version | Ends |\n |---|---|---|\n+| a | 1 | May 1, 2026 |\n"
        " | b | 2 | May 1, 2026 |\n"
        "@@ -40,2 +41,2 @@\n-| c | 3 | May 1, 2026 |\n+| c | 3 | May 2, 2026 |\n | d | 4 | May 1, 2026 |"
    )
    _, new = page_tables(Page("p.md", parse_patch(patch)))
    assert [(table.header, table.columns) for table in new] == [
        ("read", ("Model", "Version", "Ends")),
        ("page", ("Model", "Version", "Ends")),
    ]


def test_a_provider_does_not_name_a_row_alone():
    old = "| Provider | Model | Price |\n|---|---|---|\n| Acme | one | 1 |\n| Acme | two | 2 |"
    assert told(page(old, old.replace("| 2 |", "| 3 |"))) == [("cell_changed", "Acme · two", "Price", "2", "3")]


def test_a_cell_as_people_read_it():
    assert (
        plain("**`gpt-4o` version: `2024-11-20`**, starting **<sup>1</sup>**") == "gpt-4o version: 2024-11-20, starting"
    )
    assert plain("[**Auto-update**](/a/b?tabs=x#y) a<br><br>b ![icon](i.png) &amp; _c_ snake_case_name") == (
        "Auto-update a b icon & c snake_case_name"
    )
    assert plain("2027-04-01¹") == plain("2027-04-01^1^") == plain("2027-04-01[^1]") == "2027-04-01"
    assert plain("10 m²") == "10 m²"
    assert normal(" a  <br/> b ") == normal("a<br>b")


cells = st.text(st.characters(codec="utf-8", exclude_characters="\n\r|\\`<>"), max_size=8).map(
    lambda s: " ".join(s.split())
)


@st.composite
def tables(draw) -> tuple[list[str], list[list[str]]]:
    width = draw(st.integers(2, 5))
    names = draw(st.lists(st.integers(0, 999), min_size=1, max_size=12, unique=True))
    rows = [[f"key {name}", *draw(st.lists(cells, min_size=width - 1, max_size=width - 1))] for name in names]
    return [f"Column {chr(65 + n)}" for n in range(width)], rows


def test_a_header_is_not_borrowed_where_dates_would_stand_under_the_name_of_something_else():
    far = "\n".join(["| `x` | 0301 | May 1, 2026 | `y` |"] * 5)
    dates = "\n\n| Model | Begin | End | Next |\n|---|---|---|---|\n| a | May 1, 2023 | May 1, 2024 | b |"
    old = "| Model | Version | End | Next |\n|---|---|---|---|\n" + far + dates
    new = old.replace("| `y` |\n\n", "| `z` |\n\n").replace("2024 | b", "2025 | b")
    _, tables = page_tables(page(old, new, context=2))
    assert [table.header for table in tables] == ["inferred", "read"]


def test_both_sides_of_a_hunk_are_understood_alike():
    far = "\n".join(["| x | - | ok |"] * 5)
    row = "| y | May 1, 2026 | ok |\n"
    old = "| Model | End | State |\n|---|---|---|\n" + far + "\n" + row + "| z | - | ok |"
    before, after = page_tables(page(old, old.replace(row, "")))
    assert before[0].columns == after[0].columns
    assert before[0].evidence == after[0].evidence
    assert len(after[0].rows) == len(before[0].rows) - 1


def written(header: list[str], rows: list[list[str]], pad: int) -> str:
    def line(row: list[str]) -> str:
        return "|" + "|".join(f" {cell}{' ' * pad} " for cell in row) + "|"

    return "\n".join(["## Table", "", line(header), line(["---"] * len(header)), *map(line, rows), ""])


@settings(max_examples=40, deadline=None)
@given(tables(), st.randoms(), st.integers(0, 9))
def test_rewriting_a_table_changes_nothing(table, random, pad):
    header, rows = table
    shuffled = random.sample(rows, len(rows))
    for whole in (False, True):
        assert told(page(written(header, rows, 0), written(header, shuffled, pad), whole=whole)) == []


@settings(max_examples=40, deadline=None)
@given(tables(), st.data())
def test_one_changed_cell_is_one_change_whatever_the_order(table, data):
    header, rows = table
    at = data.draw(st.integers(0, len(rows) - 1))
    column = data.draw(st.integers(1, len(header) - 1))
    changed = [list(row) for row in rows]
    changed[at][column] += " changed"
    new = written(header, list(reversed(changed)), 3)
    (change,) = table_changes([page(written(header, rows, 0), new, whole=True)])
    assert (change.kind, change.column, plain(change.new)) == (
        "cell_changed",
        header[column],
        plain(changed[at][column]),
    )
    assert change.key.startswith(f"{rows[at][0]}")


@settings(max_examples=40, deadline=None)
@given(st.text("|-` \\ab\n#>~<!", max_size=200), st.text("|-` \\ab\n#>~<!", max_size=200))
def test_no_text_is_too_odd(old, new):
    table_changes([page(old, new), page(old, new, whole=True)])
