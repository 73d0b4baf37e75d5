"""The README's figures are those of benchmarks/results, each of them, and what it links to is there.

A table counts as one of speed if the head of a column reads like "inference, 2 threads". Such a table may leave results
out, but may not hold a figure that no file has.
"""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))

from benchmarks import table  # noqa: E402

README = (ROOT / "README.md").read_text()
COLUMN = re.compile(r"(inference|training step), \d+ threads?$")


def speed_cells(text):
    """(row, column, figure) of every cell of every table of speed in a Markdown text."""
    columns = None
    for line in text.splitlines():
        if not line.startswith("|"):
            columns = None
            continue
        row, *cells = (cell.strip() for cell in line.strip().strip("|").split("|"))
        if columns is None:
            columns = cells
        elif any(map(COLUMN.match, columns)) and set(line) - set("|-: "):
            yield from ((row, column, cell) for column, cell in zip(columns, cells, strict=True))


def wrong_cells(text, results):
    """The cells that say something else than the results, as (row, column, figure, what it should be)."""
    figures = table.figures(results)
    expected = {key: table.words(ratios) for key, (ratios, _) in figures.items()}
    return [
        (row, column, cell, expected.get((row, column), "nothing: no file has it"))
        for row, column, cell in speed_cells(text)
        if cell and cell != expected.get((row, column))
    ]


def test_every_figure_is_in_a_result_file():
    assert len([cell for *_, cell in speed_cells(README) if cell]) >= 10
    assert not wrong_cells(README, table.load())


def test_a_wrong_or_unfounded_figure_is_found():
    figure = next(cell for *_, cell in speed_cells(README) if cell)
    assert len(wrong_cells(README.replace(figure, "99 (1.0 - 99)", 1), table.load())) == 1
    assert len(wrong_cells(README.replace("| GRU |", "| CuGRU |", 1), table.load())) == 4
    more = "| | inference, 8 threads |\n|---|---|\n| GRU | 3.0 (1.0 - 9.0) |\n"
    assert wrong_cells(more, table.load()) == [
        ("GRU", "inference, 8 threads", "3.0 (1.0 - 9.0)", "nothing: no file has it")
    ]  # fmt: skip


def test_the_printed_table_is_right_in_itself():
    assert not wrong_cells(table.markdown(table.load()), table.load())


def test_the_block_is_of_these_files():
    """Made by `python -m benchmarks.table --readme`."""
    assert table.fill(README, table.load()) == README
    with pytest.raises(ValueError, match="expected one .* found 0"):
        table.fill("no markers", table.load())


def test_slower_cases_are_named():
    (name, result), *_ = table.load()
    cases = [result["cases"][0] | {"ratio": {"median": ratio}} for ratio in (0.5, 0.7, 2.0)]
    text = table.slower([(name, result | {"cases": cases})])
    assert text.startswith("torch.nn was ahead in 2 of the 3 cases: 0.500 (") and text.count("B = 1, T = 100, I = 128") == 2
    assert table.slower([(name, result | {"cases": cases[2:]})]) == "torch.nn was ahead in none of the 1 cases."


def test_dates_are_told_apart():
    (name, result), *_ = table.load()
    later = result | {"date": "2030-01-02T03:04:05", "cases": [case | {"threads": 8} for case in result["cases"]]}
    old, text = result["date"][:10], table.measured([(name, result), ("b.json", later)])
    assert text.endswith(f", 2030-01-02 (1 thread: {old}).")


def test_a_result_of_a_gpu_is_passed_over(tmp_path):
    """`make gpu` leaves its file beside the others."""
    (tmp_path / "gpu_x.json").write_text('{"device": "x", "cases": [], "stages": {}}')
    assert table.load([tmp_path / "gpu_x.json"]) == []


def test_a_figure_has_one_file():
    (name, result), *_ = table.load()
    with pytest.raises(ValueError, match="is both in a.json and in b.json"):
        table.figures([("a.json", result), ("b.json", result)])


@pytest.mark.parametrize(
    ("value", "text"), [(0.987, "0.99"), (0.996, "1.0"), (1, "1.0"), (9.94, "9.9"), (9.96, "10"), (16.8, "17")]
)
def test_two_digits(value, text):
    assert table.two_digits(value) == text


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#\s]+)\)", README)
    local = [link for link in links if not re.match(r"[a-z]+:", link)]
    assert local and not [link for link in local if not (ROOT / link).exists()]


def test_the_plot_shows_these_results():
    """Made by `python docs/pictures.py README`."""
    pytest.importorskip("matplotlib", reason="needs the packages of the extra `docs`")
    pytest.importorskip("tqdm", reason="needs the packages of the extra `docs`")
    sys.path.append(str(ROOT / "docs"))
    import pictures

    _, digest = pictures.speed_result()
    assert f"<!-- results {digest} -->" in pictures.SPEED.read_text()
