"""Who answers while files come, change, break and go."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import edgert
from edgert.bundle import SUFFIX
from edgert.compile import compile_model
from edgert.data import path as data
from edgert.errors import Closed, ModelNotServed, OptionError
from edgert.serving.folder import Folder
from edgert.serving.repository import Repository
from edgert.serving.roster import ModelState, Roster
from tests.serving.conftest import load, put

LATER_S = 1e9
"""Every file rests, seen from then."""


def roster(folder: Path, loader: Callable[[Path], edgert.Model] = load, **clock: Callable[[], float]) -> Roster:
    return Roster(Folder(folder, now_s=lambda: LATER_S), Repository(folder.with_name("store")), loader, **clock)


def state(models: Roster, name: str = "digits") -> ModelState:
    return next(each for each in models.states() if each.name == name)


def answer(models: Roster, name: str = "digits") -> np.ndarray:
    with models.lend(name) as loaded:
        assert loaded.sample is not None
        return np.asarray(next(iter(loaded.model.run(loaded.sample).values())))


def test_a_model_that_does_not_load_takes_no_other_down(folder: Path) -> None:
    put("digits_i8.tflite", folder, "digits.tflite")
    (folder / "broken.tflite").write_bytes(b"\0\0\0\0TFL3 and nothing more")
    models = roster(folder)
    assert models.refresh()
    assert (state(models).condition, state(models, "broken").condition) == ("ready", "refused")
    assert (state(models, "broken").error or {})["type"] == "ModelCorrupt"
    with pytest.raises(ModelNotServed, match="does not load"), models.lend("broken"):
        pass
    assert answer(models).shape == (1, 10)
    models.close()


def test_an_unexpected_error_of_one_model_is_its_refusal_and_others_are_loaded(folder: Path) -> None:
    put("digits_i8.tflite", folder, "digits.tflite")
    put("digits_f32.tflite", folder, "cursed.tflite")

    def fails(path: Path) -> edgert.Model:
        if path.name == "cursed.tflite":
            raise ZeroDivisionError("oops")
        return load(path)

    models = roster(folder, fails)
    assert models.refresh()
    assert (state(models).condition, state(models, "cursed").condition) == ("ready", "refused")
    assert "ZeroDivisionError: oops" in (state(models, "cursed").error or {})["message"]
    models.close()


def test_an_unknown_name_is_told_which_there_are(folder: Path) -> None:
    put("digits_i8.tflite", folder, "digits.tflite")
    models = roster(folder)
    models.refresh()
    with pytest.raises(ModelNotServed, match="Served: digits"), models.lend("digit"):
        pass
    models.close()


def test_the_old_version_answers_until_the_new_one_has(folder: Path) -> None:
    put("digits_i8.tflite", folder, "digits.tflite")
    begun, go_on = threading.Event(), threading.Event()

    def slow(path: Path) -> edgert.Model:
        if path.parent.name == "2":
            begun.set()
            assert go_on.wait(60)
        return load(path)

    models = roster(folder, slow)
    models.refresh()
    put("digits_f32.tflite", folder, "digits.tflite")
    loader = threading.Thread(target=models.refresh)
    loader.start()
    assert begun.wait(60)
    with models.lend("digits") as old:
        assert old.version.number == 1
        go_on.set()
        loader.join()
        with models.lend("digits") as new:
            assert new.version.number == 2
        # A request that began on the old one ends on it.
        assert old.sample is not None
        old.model.run(old.sample)
    with pytest.raises(Closed):
        old.model.run(old.sample)
    models.close()


@pytest.mark.parametrize("kind", [".tflite", ".onnx", SUFFIX])
def test_a_half_written_file_never_answers_wherever_its_writer_died(folder: Path, kind: str, tmp_path: Path) -> None:
    """The folder's file grows in place, as `cp` writes it; after each write its writer may have died for good."""
    if kind == ".onnx":
        pytest.importorskip("onnxruntime", reason="an .onnx file needs ONNX Runtime")
        whole = data("digits_f32.onnx").read_bytes()
    elif kind == SUFFIX:
        made = compile_model(
            data("digits_i8.tflite"), tmp_path / f"made{SUFFIX}", targets=["litert@cpu:0"], budget_s=0.2
        )
        whole = made.path.read_bytes()
    else:
        whole = data("digits_f32.tflite").read_bytes()
    put("digits_i8.tflite", folder, "digits.tflite")

    def plain(path: Path) -> edgert.Model:
        return edgert.load(path, targets=["onnxruntime@cpu:0"], budget_s=0.2) if path.suffix == ".onnx" else load(path)

    models = roster(folder, plain)
    models.refresh()
    before = answer(models)
    (folder / "digits.tflite").unlink()
    file = folder / f"digits{kind}"
    sizes = sorted({0, 1, 8, *range(0, len(whole), len(whole) // 7), *(len(whole) - back for back in (64, 8, 1))})
    for size in sizes:
        file.write_bytes(whole[:size])
        models.refresh()
        assert (state(models).condition, state(models).version) == ("stale", 1), size
        np.testing.assert_array_equal(answer(models), before)
    file.write_bytes(whole)
    models.refresh()
    assert (state(models).condition, state(models).version) == ("ready", 2)
    models.close()


def test_after_a_restart_the_last_good_version_answers_for_a_broken_file(folder: Path) -> None:
    put("digits_i8.tflite", folder, "digits.tflite")
    first = roster(folder)
    first.refresh()
    before = answer(first)
    first.close()
    (folder / "digits.tflite").write_bytes(b"cut off")
    second = roster(folder)
    second.refresh()
    assert (state(second).condition, state(second).version) == ("stale", 1)
    np.testing.assert_array_equal(answer(second), before)
    second.close()


def test_a_file_that_is_gone_twice_answers_no_more(folder: Path) -> None:
    file = put("digits_i8.tflite", folder, "digits.tflite")
    models = roster(folder)
    models.refresh()
    file.unlink()
    models.refresh()
    assert answer(models).shape == (1, 10)  # it may be about to be replaced
    models.refresh()
    with pytest.raises(ModelNotServed), models.lend("digits"):
        pass
    assert Repository(folder.with_name("store")).names() == ()
    models.close()


def test_what_was_refused_is_tried_again_later_and_not_all_the_time(folder: Path) -> None:
    put("digits_i8.tflite", folder, "digits.tflite")
    tries, now_s = [], [0.0]

    def failing(path: Path) -> edgert.Model:
        tries.append(path)
        raise OptionError("not today.", "Come back.")

    models = roster(folder, failing, now_s=lambda: now_s[0])
    for now_s[0] in (0.0, 1.0, 4.9, 5.1, 10.0, 15.2):
        models.refresh()
    assert len(tries) == 3
    models.forgive()
    models.refresh()
    assert len(tries) == 4
    models.close()


def test_a_folder_that_vanishes_leaves_its_models_answering(folder: Path) -> None:
    put("digits_i8.tflite", folder, "digits.tflite")
    models = roster(folder)
    models.refresh()
    folder.rename(folder.with_name("elsewhere"))
    models.refresh()
    models.refresh()
    assert models.folder_error is not None
    assert answer(models).shape == (1, 10)
    models.close()
