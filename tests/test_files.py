"""Files that are complete or not there, whatever happens while they are written."""

from __future__ import annotations

import json
import os
import stat
import time
from contextlib import suppress
from pathlib import Path

import pytest

from reward_models.files import STALE_SECONDS, complete_file, remove_leftovers, share, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestCompleteFile:
    def test_the_target_changes_when_the_block_ends(self, tmp_path: Path) -> None:
        target = tmp_path / "scores.txt"
        target.write_text("old")
        with complete_file(target) as temporary:
            assert temporary.parent == tmp_path and not temporary.exists()
            temporary.write_text("new")
            assert target.read_text() == "old"
        assert target.read_text() == "new"
        assert names(tmp_path) == ["scores.txt"]

    def test_parent_folders_are_made(self, tmp_path: Path) -> None:
        with complete_file(str(tmp_path / "a" / "b" / "c.bin")) as temporary:
            temporary.write_bytes(b"1")
        assert (tmp_path / "a" / "b" / "c.bin").read_bytes() == b"1"

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_an_error_leaves_the_old_file_and_nothing_else(self, tmp_path: Path, error: type[BaseException]) -> None:
        target = tmp_path / "scores.txt"
        target.write_text("old")
        with pytest.raises(error), complete_file(target) as temporary:
            temporary.write_text("half")
            raise error
        assert target.read_text() == "old"
        assert names(tmp_path) == ["scores.txt"]

    def test_a_target_that_cannot_be_replaced_leaves_nothing_else(self, tmp_path: Path) -> None:
        (tmp_path / "scores.txt" / "inside").mkdir(parents=True)
        with pytest.raises(OSError), complete_file(tmp_path / "scores.txt") as temporary:
            temporary.write_text("new")
        assert names(tmp_path) == ["scores.txt"]

    def test_a_block_that_writes_nothing_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError), complete_file(tmp_path / "scores.txt"):
            pass
        assert names(tmp_path) == []

    def test_a_writer_that_keeps_files_to_their_owner_is_overruled(self, tmp_path: Path) -> None:
        """As safetensors does: colleagues could not read a shared cache."""
        (tmp_path / "plain").touch()
        with complete_file(tmp_path / "shard") as temporary:
            temporary.touch(mode=0o600)
        assert stat.S_IMODE((tmp_path / "shard").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
        assert names(tmp_path) == ["plain", "shard"]

    def test_share_takes_folders_as_they_are_and_every_file_in_them(self, tmp_path: Path) -> None:
        (tmp_path / "plain").touch()
        inside = tmp_path / "export" / "unet"
        inside.mkdir(parents=True)
        (inside / "weights").touch(mode=0o600)
        before = inside.stat().st_mode
        share(tmp_path / "export")
        assert (inside / "weights").stat().st_mode == (tmp_path / "plain").stat().st_mode
        assert inside.stat().st_mode == before

    def test_two_writers_at_once_never_mix(self, tmp_path: Path) -> None:
        """As two processes: the second begins before the first has finished, and each file is whole."""
        target = tmp_path / "scores.txt"
        with complete_file(target) as first:
            first.write_text("fir")
            with complete_file(target) as second:
                assert second != first
                second.write_text("second")
            assert target.read_text() == "second"
            with first.open("a") as stream:
                stream.write("st")
        assert target.read_text() == "first"
        assert names(tmp_path) == ["scores.txt"]

    def test_no_reader_looks_for_what_is_unfinished(self, tmp_path: Path) -> None:
        with complete_file(tmp_path / "part-0.parquet") as temporary:
            temporary.write_bytes(b"half")
            assert temporary.name.startswith(".")
            assert [*tmp_path.rglob("*.parquet"), *tmp_path.glob("part-*")] == []

    def test_permissions_are_those_of_any_new_file(self, tmp_path: Path) -> None:
        (tmp_path / "plain").write_text("")
        write_text(tmp_path / "ours", "")
        plain, ours = ((tmp_path / name).stat().st_mode for name in ("plain", "ours"))
        assert stat.S_IMODE(ours) == stat.S_IMODE(plain)


class TestTextAndJson:
    def test_text_is_utf8(self, tmp_path: Path) -> None:
        write_text(tmp_path / "words.txt", "één\n")
        assert (tmp_path / "words.txt").read_bytes() == "één\n".encode()

    @pytest.mark.parametrize("indent", [None, 1, 2])
    def test_json_ends_with_a_line_break(self, tmp_path: Path, indent: int | None) -> None:
        content = {"a": [1, None], "b": "é"}
        write_json(tmp_path / "c.json", content, indent=indent)
        assert (tmp_path / "c.json").read_text() == json.dumps(content, indent=indent) + "\n"

    def test_what_json_cannot_hold_leaves_the_old_file(self, tmp_path: Path) -> None:
        write_json(tmp_path / "c.json", 1)
        with pytest.raises(TypeError):
            write_json(tmp_path / "c.json", {1, 2})
        assert (tmp_path / "c.json").read_text() == "1\n"


class TestLeftovers:
    def leftover(self, target: Path) -> Path:
        """What a killed process leaves, which cleans nothing up."""
        with suppress(RuntimeError), complete_file(target) as temporary:
            raise RuntimeError
        temporary.write_bytes(b"half")
        return temporary

    def test_only_old_ones_are_removed(self, tmp_path: Path) -> None:
        old, busy = (self.leftover(tmp_path / f"{word}.bin") for word in ("old", "busy"))
        (tmp_path / "index.1.tmp").mkdir()
        (tmp_path / "index.1.tmp" / "half.npy").write_bytes(b"half")
        (tmp_path / "data.bin").write_bytes(b"whole")
        for path in (old, tmp_path / "index.1.tmp", tmp_path / "data.bin"):
            long_ago = time.time() - STALE_SECONDS - 60
            os.utime(path, (long_ago, long_ago))
        remove_leftovers(tmp_path)
        assert names(tmp_path) == sorted([busy.name, "data.bin"])

    def test_the_next_writer_is_not_disturbed(self, tmp_path: Path) -> None:
        self.leftover(tmp_path / "c.json")
        write_json(tmp_path / "c.json", 1)
        assert (tmp_path / "c.json").read_text() == "1\n"
