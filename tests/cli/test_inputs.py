"""What `--input` names becomes what a model takes."""

from __future__ import annotations

import wave

import numpy as np
import pytest

from edgert.cli.inputs import ImageOptions, fit, read, read_image, read_wav
from edgert.errors import InputError, OptionError, ShapeMismatch, UnknownInput
from edgert.graph import Quantization, Value

IMAGE = Value("image", "float32", ("N", 3, 8, 6))
TWO = (Value("a", "float32", (2,)), Value("b", "int64", (3,)))


def nothing():
    raise AssertionError("nobody asked for random inputs")


def write_wav(path, samples, width=2, channels=1):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(16000)
        file.writeframes(samples)
    return path


@pytest.fixture
def picture(tmp_path):
    image_module = pytest.importorskip("PIL.Image", reason="pictures need pillow")
    path = tmp_path / "picture.png"
    pixels = np.zeros((16, 12, 3), np.uint8)
    pixels[:, :, 0] = 255
    image_module.fromarray(pixels).save(path)
    return path


def test_an_npy_goes_to_the_input_it_names(tmp_path):
    np.save(tmp_path / "x.npy", np.array([1.0, 2.0], np.float32))
    inputs, lines = fit(read([f"a={tmp_path / 'x.npy'}"]), TWO, ImageOptions(), nothing)
    assert inputs["a"].tolist() == [1.0, 2.0]
    assert lines[0].startswith("a: ")


def test_an_npz_feeds_every_input_it_names(tmp_path):
    np.savez(tmp_path / "all.npz", a=np.zeros(2, np.float32), b=np.ones(3, np.int64))
    inputs, _ = fit(read([str(tmp_path / "all.npz")]), TWO, ImageOptions(), nothing)
    assert set(inputs) == {"a", "b"}


def test_one_array_of_an_npz_can_be_chosen(tmp_path):
    np.savez(tmp_path / "all.npz", a=np.zeros(2, np.float32), b=np.ones(3, np.int64))
    given = read([f"b={tmp_path / 'all.npz'}"])
    assert [item.name for item in given] == ["b"]


def test_an_npz_without_the_array_says_what_it_has(tmp_path):
    np.savez(tmp_path / "all.npz", x=np.zeros(2), y=np.ones(3))
    with pytest.raises(InputError, match=r"no array 'b'.*x, y"):
        read([f"b={tmp_path / 'all.npz'}"])


def test_the_only_input_needs_no_name(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 8, 6), np.float32))
    assert set(fit(read([str(tmp_path / "x.npy")]), [IMAGE], ImageOptions(), nothing)[0]) == {"image"}


def test_a_file_name_may_hold_an_equals_sign(tmp_path):
    np.save(tmp_path / "x=1.npy", np.zeros(2))
    assert read([str(tmp_path / "x=1.npy")])[0].name == ""


def test_several_inputs_need_names(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(2))
    with pytest.raises(UnknownInput, match="a, b"):
        fit(read([str(tmp_path / "x.npy")]), TWO, ImageOptions(), nothing)


def test_a_misspelt_input_is_corrected(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(2))
    with pytest.raises(UnknownInput, match="Did you mean 'image'"):
        fit(read([f"imgae={tmp_path / 'x.npy'}"]), [IMAGE, *TWO], ImageOptions(), nothing)


def test_an_input_given_twice_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(2))
    with pytest.raises(OptionError, match="twice"):
        fit(read([f"a={tmp_path / 'x.npy'}"] * 2), TWO, ImageOptions(), nothing)


def test_random_fills_what_is_not_given(tmp_path):
    np.save(tmp_path / "x.npy", np.array([5.0, 5.0], np.float32))
    made = {"a": np.zeros(2, np.float32), "b": np.array([1, 2, 3])}
    inputs, _ = fit(read([f"a={tmp_path / 'x.npy'}", "random"]), TWO, ImageOptions(), lambda: made)
    assert inputs["a"].tolist() == [5.0, 5.0]
    assert inputs["b"].tolist() == [1, 2, 3]


def test_one_input_can_be_random():
    inputs, _ = fit(read(["b=random"]), TWO, ImageOptions(), lambda: {"a": np.zeros(2), "b": np.ones(3)})
    assert set(inputs) == {"b"}


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".png", ".wav"])
@pytest.mark.parametrize(
    "content", [b"", b"garbage" * 30, b"\x93NUMPY\x01\x00\xff\xff{", b"PK\x03\x04", b"\x89PNG\r\n\x1a\n"]
)
def test_a_damaged_file_is_an_input_error(tmp_path, suffix, content):
    if suffix == ".png":
        pytest.importorskip("PIL", reason="pictures need pillow")
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match="bad"):
        read([str(path)])


def test_python_objects_in_an_npy_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="without Python objects"):
        read([str(tmp_path / "x.npy")])


def test_a_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="not there"):
        read([f"a={tmp_path / 'absent.npy'}"])


def test_an_unknown_kind_of_file_says_what_is_read(tmp_path):
    (tmp_path / "x.doc").write_bytes(b"x")
    with pytest.raises(InputError, match=r"\.npz"):
        read([str(tmp_path / "x.doc")])


def test_a_picture_is_resized_and_laid_out_as_the_model_says(picture):
    inputs, lines = fit(read([str(picture)]), [IMAGE], ImageOptions(), nothing)
    assert inputs["image"].shape == (1, 3, 8, 6)
    assert inputs["image"].dtype == np.float32
    assert inputs["image"][0, :, 0, 0].tolist() == [1.0, 0.0, 0.0]
    assert "stretch to 8x6 → pixel/255 → nchw" in lines[0]


@pytest.mark.parametrize(
    ("value", "red"),
    [
        (Value("x", "uint8", (1, 8, 6, 3)), 255),
        (Value("x", "int8", (1, 8, 6, 3), quantization=Quantization((0.5,), (0,))), 127),
        (Value("x", "float16", (1, 8, 6, 3)), 1.0),
    ],
)
def test_the_dtype_says_how_a_picture_is_scaled(picture, value, red):
    inputs, _ = fit(read([str(picture)]), [value], ImageOptions(), nothing)
    assert inputs["x"].dtype == value.dtype
    assert inputs["x"][0, 0, 0, 0] == red


def test_a_normalised_picture_is_quantised_as_the_model_says(picture):
    value = Value("x", "int8", (1, 8, 6, 3), quantization=Quantization((1 / 128,), (-1,)))
    options = ImageOptions(scale=1 / 255, mean=(0.5,), std=(0.5,))
    inputs, _ = fit(read([str(picture)]), [value], options, nothing)
    assert inputs["x"][0, 0, 0].tolist() == [127, -128, -128]


def test_mean_and_std_are_one_a_channel(picture):
    options = ImageOptions(mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))
    inputs, _ = fit(read([str(picture)]), [IMAGE], options, nothing)
    assert inputs["image"][0, :, 0, 0].tolist() == [1.0, -1.0, 0.0]


def test_a_model_of_one_channel_gets_a_grey_picture(picture):
    inputs, lines = fit(read([str(picture)]), [Value("x", "uint8", (1, 8, 6, 1))], ImageOptions(), nothing)
    assert inputs["x"].shape == (1, 8, 6, 1)
    assert inputs["x"][0, 0, 0, 0] == 76
    assert "grey" in lines[0]


def test_an_unclear_layout_has_to_be_said(picture):
    value = Value("x", "float32", (1, 3, 6, 3))
    with pytest.raises(InputError, match="--layout nchw or --layout nhwc"):
        fit(read([str(picture)]), [value], ImageOptions(), nothing)
    assert fit(read([str(picture)]), [value], ImageOptions(layout="nhwc"), nothing)[0]["x"].shape == (1, 3, 6, 3)


def test_free_sizes_keep_the_picture_as_it_is(picture):
    inputs, _ = fit(read([str(picture)]), [Value("x", "float32", ("N", 3, "H", "W"))], ImageOptions(), nothing)
    assert inputs["x"].shape == (1, 3, 16, 12)


def test_a_picture_for_an_input_that_takes_none_is_refused(picture):
    with pytest.raises(InputError, match="not one for a picture"):
        fit(read([str(picture)]), [Value("x", "float32", (10,))], ImageOptions(), nothing)


def test_a_picture_is_turned_as_the_camera_was_held(tmp_path):
    image_module = pytest.importorskip("PIL.Image", reason="pictures need pillow")
    image = image_module.new("RGB", (20, 10))
    exif = image.getexif()
    exif[0x0112] = 6  # orientation: a quarter turn
    image.save(tmp_path / "x.jpg", exif=exif)
    assert read_image(tmp_path / "x.jpg").shape == (20, 10, 3)


def test_a_picture_too_large_to_unpack_is_refused(tmp_path, monkeypatch):
    image_module = pytest.importorskip("PIL.Image", reason="pictures need pillow")
    image_module.new("L", (100, 100)).save(tmp_path / "x.png")
    monkeypatch.setattr(image_module, "MAX_IMAGE_PIXELS", 99)
    with pytest.raises(InputError, match="too large"):
        read_image(tmp_path / "x.png")


@pytest.mark.parametrize(
    ("width", "raw", "expected"),
    [
        (1, bytes([0, 128, 255]), [-1.0, 0.0, 127 / 128]),
        (2, np.array([-32768, 0, 16384], "<i2").tobytes(), [-1.0, 0.0, 0.5]),
        (3, b"\x00\x00\x80\x00\x00\x00\x00\x00\x40", [-1.0, 0.0, 0.5]),
        (4, np.array([-(2**31), 0, 2**30], "<i4").tobytes(), [-1.0, 0.0, 0.5]),
    ],
)
def test_samples_of_every_width_are_between_minus_one_and_one(tmp_path, width, raw, expected):
    samples, rate = read_wav(write_wav(tmp_path / "x.wav", raw, width))
    assert samples.tolist() == pytest.approx(expected)
    assert rate == 16000


def test_a_sound_takes_the_shape_of_the_input(tmp_path):
    path = write_wav(tmp_path / "x.wav", np.zeros(100, "<i2").tobytes())
    inputs, lines = fit(read([str(path)]), [Value("x", "float32", (1, 100))], ImageOptions(), nothing)
    assert inputs["x"].shape == (1, 100)
    assert "16000 Hz" in lines[0]


def test_a_sound_of_the_wrong_length_is_not_cut_in_silence(tmp_path):
    path = write_wav(tmp_path / "x.wav", np.zeros(100, "<i2").tobytes())
    with pytest.raises(ShapeMismatch, match="takes 64 samples"):
        fit(read([str(path)]), [Value("x", "float32", (1, 64))], ImageOptions(), nothing)


def test_stereo_for_one_channel_is_refused(tmp_path):
    path = write_wav(tmp_path / "x.wav", np.zeros(100, "<i2").tobytes(), channels=2)
    with pytest.raises(InputError, match="one channel"):
        fit(read([str(path)]), [Value("x", "float32", (1, 50))], ImageOptions(), nothing)
