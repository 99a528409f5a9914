"""What benchmarks share: statistics, tables, the JSON that is kept."""

import argparse
import json

import pytest

from penstock.bench import report
from penstock.bench.report import Result, Table, median, percentile, processor_class, shown, spread


def test_percentile_lies_between_neighbours():
    assert percentile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert percentile([1.0, 2.0, 3.0], 0.0) == 1.0
    assert percentile([1.0, 2.0, 3.0], 1.0) == 3.0
    assert percentile(list(range(101)), 0.99) == 99.0
    assert percentile([7.0], 0.99) == 7.0
    assert percentile([], 0.5) is None


def test_median_ignores_what_is_not_there():
    assert median([3.0, None, 1.0]) == 2.0
    assert median([None]) is None
    assert median(value for value in (5.0, 1.0, 3.0)) == 3.0


@pytest.mark.parametrize(
    "cell, text",
    [
        (None, "-"),
        ("local", "local"),
        (12000, "12000"),
        (12000.4, "12000"),
        (123.45, "123"),
        (12.345, "12.3"),
        (1.2345, "1.23"),
        (0.12345, "0.123"),
        (0.0012345, "0.00123"),
        (0.0, "0.00"),
        (-1.5, "-1.50"),
    ],
)
def test_cells_have_three_figures(cell, text):
    assert shown(cell) == text


def test_spread_names_both_ends():
    assert spread([3.0, 1.0, 2.0], 1000.0) == "1000..3000"
    assert spread([]) == ""


def test_columns_are_aligned():
    table = Table("Title", ["name", "ms"], [["a", 1.0], ["longer", 100.0]], ["A note."])
    title, _, head, _, first, second, _, note = table.text().splitlines()
    assert title == "Title"
    assert head == "name      ms"
    assert first == "a       1.00"
    assert second == "longer   100"
    assert note == "  A note."


def test_a_result_is_kept_whole_and_printed_again(tmp_path, capsys):
    file = report.result_file(str(tmp_path / "results" / "some.json"))
    result = Result("some", {"rounds": 1})
    result.rounds.append({"round": 0, "seconds": 0.5})
    result.finish([Table("Times", ["what", "s"], [["start", 0.5]])], file)
    kept = json.loads(file.read_text())
    assert set(kept) == {
        *("benchmark", "arguments", "machine", "commit"),
        *("load_before", "load_after", "rounds", "tables"),
    }
    assert kept["rounds"] == [{"round": 0, "seconds": 0.5}]
    assert kept["tables"][0]["rows"] == [["start", 0.5]]
    printed = capsys.readouterr().out
    assert report.main([str(file)]) == 0
    assert printed.startswith(capsys.readouterr().out.rstrip())


def test_a_place_that_cannot_be_written_is_refused_before_measuring(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(argparse.ArgumentTypeError, match="cannot be written"):
        report.result_file(str(tmp_path / "taken" / "some.json"))


def test_the_machine_is_told_in_general_terms():
    told = report.machine()
    assert set(told) == {"cores", "memory_gib", "processor", "system", "python", "torch"}
    assert "(" not in processor_class(), "no model name"
