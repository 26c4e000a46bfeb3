"""Bad files of either format, and the shared models."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import random
from pathlib import Path

import numpy as np
import pytest

from edgert.errors import MissingPackage, ModelCorrupt, ModelError, ModelNotFound, ModelUnsupported
from edgert.formats import digest, files, flat, open_model
from edgert.formats.files import unique_names
from tests.formats import models

DTYPES = {"float": "float32"}  # ONNX Runtime's words in the manifest
MODELS = os.environ.get("EDGERT_MODELS", "")
ENTRIES = json.loads(Path(MODELS, "manifest.json").read_text())["entries"] if MODELS else []
needs_models = pytest.mark.skipif(not MODELS, reason="EDGERT_MODELS names no folder of shared models")
GOOD = {
    "onnx": lambda: models.chain().SerializeToString(),
    "tflite": models.tflite_while,
}


@pytest.mark.parametrize("kind", GOOD)
def test_the_format_is_told_by_content_not_by_name(kind, tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(GOOD[kind]())
    assert open_model(path).format == kind


@pytest.mark.parametrize("kind", GOOD)
def test_the_digest_of_a_file_alone_is_its_sha256(kind, tmp_path):
    path = tmp_path / "m"
    path.write_bytes(GOOD[kind]())
    assert digest(path) == open_model(path).digest == hashlib.sha256(GOOD[kind]()).hexdigest()


@pytest.mark.parametrize("suffix", [".onnx", ".tflite", ""])
@pytest.mark.parametrize(
    "content",
    [b"", b"\0", b"hello, world", b"PK\x03\x04" + bytes(50), b"\x89HDF\r\n\x1a\n", bytes(4096),
     b"\x1c\0\0\0TFL3" + b"\xff" * 64, b"\x08\x00\x00\x00TFL3", random.Random(1).randbytes(4096)],
)  # fmt: skip
def test_what_is_no_model_is_corrupt(content, suffix, tmp_path):
    path = tmp_path / f"m{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelCorrupt, match=path.name):
        open_model(path)


def test_an_ort_file_is_unsupported(tmp_path):
    (tmp_path / "m.ort").write_bytes(b"\x1c\0\0\0ORTM" + bytes(64))
    with pytest.raises(ModelUnsupported, match=r"\.ort"):
        open_model(tmp_path / "m.ort")


@pytest.mark.parametrize("action", [open_model, digest])
def test_a_missing_file_a_folder_and_a_pipe_are_not_found(action, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "absent.onnx", tmp_path, tmp_path / "pipe", "nul\0.onnx", tmp_path / ("n" * 300)):
        with pytest.raises(ModelNotFound):
            action(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_not_found(tmp_path):
    (tmp_path / "m.onnx").write_bytes(GOOD["onnx"]())
    (tmp_path / "m.onnx").chmod(0)
    with pytest.raises(ModelNotFound, match="ermission"):
        open_model(tmp_path / "m.onnx")


@pytest.mark.parametrize("kind", GOOD)
def test_every_truncation_is_a_model_error_or_still_a_model(kind, tmp_path):
    content = GOOD[kind]()
    path = tmp_path / f"m.{kind}"
    refused = 0
    for size in range(1, len(content), max(1, len(content) // 60)):
        path.write_bytes(content[:size])
        try:
            open_model(path)
        except ModelError:
            refused += 1
    assert refused > 55  # a protobuf may end between two fields; next to never with what a model needs


@pytest.mark.parametrize("kind", GOOD)
def test_a_flipped_bit_is_a_model_error_or_still_a_model(kind, tmp_path):
    content = GOOD[kind]()
    path = tmp_path / f"m.{kind}"
    rng = random.Random(7)
    for _ in range(150):
        damaged = bytearray(content)
        position = rng.randrange(min(len(content), 1500))
        damaged[position] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            model = open_model(path)
        except ModelError:
            continue
        assert model.graph.nodes is not None


def test_without_the_schema_the_missing_package_is_named(tmp_path, monkeypatch):
    path = tmp_path / "m.tflite"
    path.write_bytes(models.tflite_while())
    flat.schema.cache_clear()
    monkeypatch.setattr(flat.importlib.util, "find_spec", lambda name: None)
    try:
        with pytest.raises(MissingPackage, match="loaded whole"):
            open_model(path)
    finally:
        flat.schema.cache_clear()


def test_unique_names_never_collide_with_given_ones():
    assert unique_names(["x", "x", "x_1", "x"]) == ("x", "x_2", "x_1", "x_3")


@needs_models
@pytest.mark.parametrize("entry", ENTRIES, ids=[entry["id"] for entry in ENTRIES])
def test_a_shared_model_is_read_as_its_manifest_says(entry):
    model = open_model(Path(MODELS, entry["file"]))
    graph = model.graph
    # Constants that the file has as nodes are constants here.
    assert len(graph.nodes) == entry["n_ops"] - entry["ops"].get("Constant", 0)
    assert model.digest == entry["sha256"]
    assert [value.name for value in graph.inputs] == [item["name"] for item in entry["inputs"]]
    assert [value.name for value in graph.outputs] == [item["name"] for item in entry["outputs"]]
    for value, item in zip(graph.inputs, entry["inputs"], strict=True):
        assert value.dtype == DTYPES.get(item["dtype"], item["dtype"])
        assert len(value.shape) == len(item["shape"])
    for constant in graph.constants.values():
        assert constant.read().shape == constant.value.shape
    quantised = entry["id"].endswith(("-i8", "-u8"))
    assert model.precision == ("i8" if quantised else "f32")


@needs_models
@pytest.mark.parametrize("entry", ENTRIES, ids=[entry["id"] for entry in ENTRIES])
def test_a_shared_model_in_three_parts_gives_the_whole_ones_answer(entry, tmp_path):
    from tests.formats.test_onnx import answer as answer_onnx
    from tests.formats.test_onnx import compose
    from tests.formats.test_tflite import answer as answer_tflite

    path = Path(MODELS, entry["file"])
    model = open_model(path)
    run = answer_onnx if model.format == "onnx" else answer_tflite
    case = entry["cases"][0]
    samples = np.load(Path(MODELS, case["feeds"]))
    feed = {  # a recording has one item a time step
        value.name: samples[value.name][0] if samples[value.name].ndim > len(value.shape) else samples[value.name]
        for value in model.graph.inputs
    }
    groups = [3 * index // len(model.graph.nodes) for index in range(len(model.graph.nodes))]
    got = compose(model, groups, feed, tmp_path, run)
    for name, expected in run(path, feed).items():
        np.testing.assert_allclose(got[name], expected, rtol=1e-5, atol=1e-5)


def test_what_lies_across_two_blocks_of_a_mapped_file_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_BLOCK_BYTES", mmap.PAGESIZE)
    path = tmp_path / "model"
    path.write_bytes(b"." * (mmap.PAGESIZE - 3) + b"location" + b"." * mmap.PAGESIZE)
    data = files.map_file(path)
    assert files.contains(data, b"location")
    assert not files.contains(data, b"locations")


def test_a_range_is_copied_to_where_the_other_file_is_at(tmp_path):
    (tmp_path / "source").write_bytes(bytes(range(256)) * 40)
    with open(tmp_path / "copy", "w+b") as file:
        file.write(b"head")
        files.copy_range(tmp_path / "source", 250, 10, file)
        file.write(b"tail")
        file.seek(0)
        assert file.read() == b"head" + bytes(range(250, 256)) + bytes(range(4)) + b"tail"
        with pytest.raises(OSError, match="ended 7 bytes early"):
            files.copy_range(tmp_path / "source", 256 * 40 - 3, 10, file)
