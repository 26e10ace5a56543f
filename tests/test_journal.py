import pytest

from vlad.journal import Journal, read_journals


def rows(folder):
    return [row["n"] for row in read_journals(sorted(folder.glob("*.jsonl")), "key")]


def test_what_was_appended_is_there_before_the_file_is_closed(tmp_path):
    journal = Journal(tmp_path / "deep/a.jsonl")
    assert not (tmp_path / "deep").exists()
    journal.append([{"key": "x", "n": 1}, {"key": "y", "n": 2}])
    assert rows(tmp_path / "deep") == [1, 2]
    journal.close()
    journal.append([{"key": "z", "n": 3}])
    assert rows(tmp_path / "deep") == [1, 2, 3]


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_line_that_a_kill_has_cut_off_is_left_out_and_harms_no_other(tmp_path, cut):
    journal = Journal(tmp_path / "a.jsonl")
    journal.append([{"key": "x", "n": 1}, {"key": "y", "n": 2}])
    journal.close()
    content = (tmp_path / "a.jsonl").read_bytes()
    (tmp_path / "a.jsonl").write_bytes(content[:-cut])
    again = Journal(tmp_path / "a.jsonl")
    again.append([{"key": "z", "n": 3}])
    expected = [1, 2, 3] if cut == 1 else [1, 3]  # the line break alone was lost: the line is whole
    assert rows(tmp_path) == expected


def test_of_two_rows_of_one_image_one_counts(tmp_path):
    for name, number in (("a", 1), ("b", 2)):
        Journal(tmp_path / f"{name}.jsonl").append([{"key": "x", "n": number}])
    assert rows(tmp_path) == [1]
