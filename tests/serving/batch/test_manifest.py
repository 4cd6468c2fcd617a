"""What a batch job remembers, whatever befell the one before it."""

import json
import os

import pytest

from serving.batch.manifest import EarlierRecords, JsonLines, Manifest, read_lines


def record(name, **fields):
    return {"input": name, "status": "ok", "model_sha256": "a"} | fields


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_are_in_order_and_the_last_of_a_name_counts(tmp_path):
    path = tmp_path / "manifest.jsonl"
    with JsonLines(path) as lines:
        for name, value in [("b", 1), ("a", 2), ("b", 3), ("ä", 4)]:
            lines.append(record(name, value=value))
    assert lines_of(path) == [record("a", value=2), record("b", value=3), record("ä", value=4)]


@pytest.mark.parametrize(
    "cut", ['{"input": "b", "sta', '{"input": "b"}', "[]\n", '"b"\n', '{"input": 3}\n', "\n", "\0\0"]
)
def test_a_killed_jobs_last_words_are_left_out(tmp_path, cut):
    path = tmp_path / "manifest.jsonl"
    path.write_text(json.dumps(record("a")) + "\n" + cut)
    with JsonLines(path) as lines:
        lines.append(record("c"))
    assert [line["input"] for line in lines_of(path)] == ["a", "c"]


def test_a_file_in_order_is_not_written_again(tmp_path):
    path = tmp_path / "manifest.jsonl"
    path.write_text("".join(json.dumps(record(name)) + "\n" for name in "abc"))
    before = path.stat()
    with JsonLines(path):
        pass
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_leftovers_may_be_those_of_a_shard_at_work(tmp_path):
    (tmp_path / "labels").mkdir()
    (tmp_path / "manifest.jsonl").touch()
    half = tmp_path / "labels" / ".a.png.17-4.tmp"

    def write():
        half.write_text("half")
        os.utime(half, (0, 0))

    write()
    with Manifest(tmp_path, (1, 2), runs=False):
        assert not half.exists()
        write()
        with Manifest(tmp_path, (2, 2), runs=False):
            assert half.exists()
    with Manifest(tmp_path, (2, 2), runs=False):
        assert not half.exists()


def test_records_of_all_shards_and_the_last_finished_counts(tmp_path):
    def write(name, *records):
        (tmp_path / name).write_text("".join(json.dumps(each) + "\n" for each in records))

    write("manifest.jsonl", record("a", finished=2.0, key="new"), record("b", finished=1.0, key="old"))
    write("manifest-1-of-2.jsonl", record("a", finished=1.0, key="old"), record("c", finished=1.0, key="one"))
    write("manifest-2-of-2.jsonl", record("b", finished=3.0, key="new"))
    with EarlierRecords(tmp_path) as records:
        assert {name: records.find(name).get("key") for name in "abcd"} == {
            "a": "new",
            "b": "new",
            "c": "one",
            "d": None,
        }
        assert records.find("d") == {}


def test_run_lengths_have_a_file_of_their_own(tmp_path):
    with Manifest(tmp_path / "out", (2, 8), runs=True) as manifest:
        manifest.append(record("a"), {"input": "a", "classes": []})
        manifest.append(record("b") | {"status": "error"})
    assert [line["input"] for _, line in read_lines(tmp_path / "out" / "manifest-2-of-8.jsonl")] == ["a", "b"]
    assert lines_of(tmp_path / "out" / "rle-2-of-8.jsonl") == [{"input": "a", "classes": []}]


def test_one_process_at_a_time_but_for_shards(tmp_path):
    with Manifest(tmp_path, (1, 2), runs=False):
        second = Manifest(tmp_path, (1, 2), runs=False)
        with pytest.raises(ValueError, match="in use by another batch job .*: wait for it, or choose another"), second:
            pass
        with Manifest(tmp_path, (2, 2), runs=False):
            pass
    with Manifest(tmp_path, (1, 2), runs=False):
        pass
