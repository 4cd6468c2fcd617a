"""Which images a batch job takes, and what it calls their results."""

import io

import pytest
from PIL import Image

from serving.batch.jobs import find_jobs, labeled_among, parse_shard, shard_of


def test_images_with_a_label_map_are_found_by_name(tmp_path):
    names = (
        "images/train/a.jpg",
        "images/train/images/b.jpg",
        "images/val/c.PNG",
        "images/train/\u00e4.jpg",
        "other/d.jpg",
    )
    maps = ("labels/train/a.png", "labels/train/b.jpg", "labels/train/images/b.png", "labels/val/C.png")
    touch(*(tmp_path / name for name in (*names, *maps, "labels/train/a\u0308.png")))
    jobs = find_jobs(str(tmp_path), tmp_path / "out", recursive=True)
    jobs = [job for job in jobs if not job.name.startswith("labels")]
    assert labeled_among(jobs, tmp_path / "out", None) == {name for name in names if name != "other/d.jpg"}
    touch(tmp_path / "maps/other/d.png")
    assert labeled_among(jobs, tmp_path / "out", tmp_path / "maps") == {"other/d.jpg"}
    assert labeled_among(jobs, tmp_path, None) == set()  # what is in labels are the job's own predictions


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize(
    "names",
    [
        ["a.jpg", "a.png", "a.png.jpg", "b.jpg"],
        ["A.jpg", "a.png"],
        ["x/a.jpg", "x/a.gif"],
        ["\u00e4.jpg", "a\u0308.png"],
    ],
)
def test_outputs_never_collide(tmp_path, names):
    touch(*(tmp_path / "photos" / name for name in names))
    jobs = find_jobs(str(tmp_path / "photos"), tmp_path / "out", recursive=True)
    assert sorted(job.name for job in jobs) == sorted(names)
    assert len({job.output_name.casefold() for job in jobs}) == len(names)


def test_names_stay_short_where_they_can(tmp_path):
    touch(*(tmp_path / name for name in ("x/a.jpg", "y/a.png", "b.c.jpeg")))
    jobs = find_jobs(str(tmp_path), tmp_path / "out", recursive=True)
    assert [job.output_name for job in jobs] == ["b.c", "x/a", "y/a"]


def test_a_list_has_paths_from_its_own_folder_on(tmp_path, monkeypatch):
    lists, elsewhere = tmp_path / "lists", tmp_path / "elsewhere" / "c.jpg"
    touch(lists / "x" / "a b.jpg", elsewhere)
    listed = lists / "images.txt"
    listed.write_text(f"x/a b.jpg\r\n\n{elsewhere}\n../elsewhere/c.jpg\nmissing.png\nx/../x/a b.jpg\nno_suffix\n")
    monkeypatch.chdir(tmp_path)
    jobs = find_jobs("lists/images.txt", tmp_path / "out", recursive=False)
    outside = elsewhere.as_posix().lstrip("/")
    assert {job.name: job.source for job in jobs} == {
        "x/a b.jpg": str(lists / "x" / "a b.jpg"),
        outside: str(elsewhere),
        "missing.png": str(lists / "missing.png"),
        "no_suffix": str(lists / "no_suffix"),
    }
    assert {job.output_name for job in jobs} == {"x/a b", outside.removesuffix(".jpg"), "missing", "no_suffix"}


def test_a_list_from_standard_input_starts_at_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"photos/a.jpg\nb.jpg")))
    assert [job.name for job in find_jobs("-", tmp_path / "out", recursive=False)] == ["b.jpg", "photos/a.jpg"]


def test_an_empty_list_is_a_mistake(tmp_path):
    (tmp_path / "none.txt").write_text("\n\n")
    with pytest.raises(ValueError, match="list of images is empty"):
        find_jobs(str(tmp_path / "none.txt"), tmp_path / "out", recursive=False)


@pytest.mark.parametrize("kind", ["labels", "overlays", "confidence", "reliability"])
def test_earlier_results_are_no_images(tmp_path, kind):
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    touch(tmp_path / kind / "a.png")
    assert [job.name for job in find_jobs(str(tmp_path), tmp_path, recursive=True)] == ["a.png"]


def test_two_images_of_one_name_are_a_mistake(tmp_path):
    outside = tmp_path / "x.jpg"
    inside = tmp_path / "lists" / outside.relative_to("/")
    touch(outside, inside)
    (tmp_path / "lists" / "both.txt").write_text(f"{outside}\n{inside}\n")
    with pytest.raises(ValueError, match="would both be called .*x.jpg: use two lists"):
        find_jobs(str(tmp_path / "lists" / "both.txt"), tmp_path / "out", recursive=False)


def test_a_list_from_windows_and_names_that_are_no_text(tmp_path):
    (tmp_path / "list.txt").write_bytes("\ufeffa.jpg\r\n".encode() + b"\xff.jpg\r\n")
    touch(tmp_path / "\udcff.jpg")
    jobs = find_jobs(str(tmp_path / "list.txt"), tmp_path / "out", recursive=False)
    assert [job.name for job in jobs] == ["a.jpg", "\udcff.jpg"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252", "utf-32"])
def test_a_list_in_any_encoding_is_read_or_refused(tmp_path, monkeypatch, encoding):
    contents = "Köln.jpg\nb.jpg\n".encode(encoding)
    (tmp_path / "list.txt").write_bytes(contents)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(contents)))
    monkeypatch.chdir(tmp_path)
    for input, name in ((str(tmp_path / "list.txt"), "list.txt"), ("-", "standard input")):
        if encoding in ("utf-8", "utf-8-sig", "utf-16"):
            jobs = find_jobs(input, tmp_path / "out", recursive=False)
            assert [job.name for job in jobs] == ["Köln.jpg", "b.jpg"]
        else:
            with pytest.raises(ValueError, match=f"{name} .*: save it as UTF-8"):
                find_jobs(input, tmp_path / "out", recursive=False)


def test_a_listed_image_is_found_under_a_name_that_looks_the_same(tmp_path):
    decomposed = "Ko\u0308ln.JPG"
    touch(tmp_path / decomposed, tmp_path / "a.jpg", tmp_path / "A.jpg")
    (tmp_path / "list.txt").write_text("K\u00f6ln.jpg\na.jpg\nA.JPG\n", "utf-8")
    jobs = find_jobs(str(tmp_path / "list.txt"), tmp_path / "out", recursive=False)
    assert {job.name: job.source for job in jobs} == {
        "K\u00f6ln.jpg": str(tmp_path / decomposed),
        "a.jpg": str(tmp_path / "a.jpg"),
        "A.JPG": str(tmp_path / "A.JPG"),  # either could be meant
    }


def test_sources_do_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    touch(tmp_path / "photos" / "a.jpg")
    monkeypatch.chdir(tmp_path)
    for input in ("photos", "photos/a.jpg", "photos/*.jpg"):
        [job] = find_jobs(input, tmp_path / "out", recursive=False)
        assert job.source == str(tmp_path / "photos" / "a.jpg")


def test_shards_divide_the_work_and_new_images_move_none(tmp_path):
    def names(shard):
        return {job.name for job in shard_of(find_jobs(str(tmp_path), tmp_path / "out", recursive=False), (shard, 3))}

    touch(*(tmp_path / f"p{index}.jpg" for index in range(1, 40)))
    before = [names(shard) for shard in (1, 2, 3)]
    assert sum(map(len, before)) == len(set.union(*before)) == 39
    assert min(map(len, before)) > 5
    touch(tmp_path / "p0.jpg")
    after = [names(shard) for shard in (1, 2, 3)]
    assert sorted(len(late - early) for late, early in zip(after, before, strict=True)) == [0, 0, 1]
    assert all(early <= late for late, early in zip(after, before, strict=True))


def test_shards_are_counted_from_one():
    assert [parse_shard(f"{index}/3") for index in (1, 2, 3)] == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("shard", ["0/3", "4/3", "3", "1/0", "a/b", "-1/3", "1/3/5", ""])
def test_other_shards_are_mistakes(shard):
    with pytest.raises(ValueError, match="--shard is i/n"):
        parse_shard(shard)
