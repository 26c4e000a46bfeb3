"""The folder that people put model files into, looked at again and again.

Whoever writes a file there may take his time, or be cut off. So a file is offered only when it rests: when its size
and times are those of the look before, or lie further back than `SETTLE_S`. Files whose names start with a dot or end
in something else than a model's suffix are not looked at: write under such a name and rename, and the model appears
whole or not at all.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from edgert.errors import ModelNotFound

SUFFIXES = (".edgert", ".tflite", ".onnx")
"""Of model files. Where several give one name, the first of these answers: a bundle beside the model that it was made
of, and TFLite, which small boards can run, before ONNX."""
SETTLE_S = 0.5
"""How long a file must have been left alone."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What changes when a file does."""

    size_bytes: int
    modified_ns: int
    """Of the content."""
    changed_ns: int
    """Of the inode: also set by renaming, which keeps `modified_ns`."""
    inode: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """Raises OSError; ValueError when it is no regular file (a pipe would block its reader)."""
        seen = path.stat()
        if not stat.S_ISREG(seen.st_mode):
            raise ValueError(f"{path} is no regular file")
        return cls(seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino)


@dataclass(frozen=True, slots=True)
class Found:
    """One model's file in the folder."""

    file: Path
    stamp: Stamp
    rests: bool
    """Whether nobody seems to be writing it."""
    shadowed: tuple[str, ...] = ()
    """Names of other files that would give a model of the same name."""


class Folder:
    """Looks at a folder; remembers the last look."""

    def __init__(self, path: Path, *, now_s: Callable[[], float] = time.time) -> None:
        """Args:
        path: the folder.
        now_s: the clock that the file times come from; one that jumps costs one look at most.
        """
        self.path = path
        self._now_s = now_s
        self._before: dict[Path, Stamp] = {}

    def look(self) -> dict[str, Found]:
        """Every model's file, by model name (the file's name without its suffix).

        Raises:
            ModelNotFound: the folder cannot be read; what it held is not known then, which is not the same as empty.
        """
        try:
            files = [self.path / entry.name for entry in os.scandir(self.path) if _is_model(entry.name)]
        except OSError as error:
            raise ModelNotFound(
                f"model folder {self.path} cannot be read: {error.strerror or error}.",
                "Make it, or mend its permissions; the models that were loaded go on answering.",
            ) from error
        stamps = dict(_stamps(files))
        before, self._before = self._before, stamps
        found: dict[str, Found] = {}
        for file in sorted(stamps, key=lambda file: SUFFIXES.index(file.suffix.lower())):
            name = file.stem
            if name in found:
                known = found[name]
                found[name] = Found(known.file, known.stamp, known.rests, (*known.shadowed, file.name))
            else:
                found[name] = Found(file, stamps[file], self._rests(stamps[file], before.get(file)))
        return found

    def _rests(self, stamp: Stamp, before: Stamp | None) -> bool:
        # A clock that was set may put a file into the future: that is no sign of a writer.
        age_s = self._now_s() - max(stamp.modified_ns, stamp.changed_ns) / 1e9
        return stamp == before or abs(age_s) > SETTLE_S


def _is_model(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def _stamps(files: Iterable[Path]) -> Iterable[tuple[Path, Stamp]]:
    for file in files:
        try:
            yield file, Stamp.of(file)
        except (OSError, ValueError):  # gone since, or a folder
            continue
