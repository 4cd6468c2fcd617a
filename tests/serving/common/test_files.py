import pytest

from serving.common.files import write_atomically


def test_write_atomically(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("disk gone")))
    with pytest.raises(OSError, match="disk gone"):
        write_atomically(path, b"three")
    assert [child.name for child in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_bytes() == b"two"
