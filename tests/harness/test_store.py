"""The run's folder: a full disk is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import store
from harness.errors import UserError


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path}: the disk is full"), store.disk_space(tmp_path):
        Path("/dev/full").write_text("x")


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), store.disk_space(tmp_path):
        (tmp_path / "absent").read_text()


def test_a_failed_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    store.write_text(path, "old")

    def cut(self: Path, text: str, **options: object) -> int:
        with self.open("w") as file:
            file.write(text[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", cut)
    with pytest.raises(OSError, match="No space"):
        store.write_text(path, "new")
    assert path.read_text() == "old"
