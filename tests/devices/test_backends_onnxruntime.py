from __future__ import annotations

import threading

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgert import devices
from edgert.devices.ortproviders import PROVIDERS
from edgert.errors import PrepareRefused, RunFailed
from edgert.machine import Device
from edgert.profile import Target
from tests.devices.sources import CPU, GPU, NPU, prepared, reached, source, source_of
from tests.formats.models import chain, info, model, weights


def conv():
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]), helper.make_node("Relu", ["c"], ["y"])]
    return model(nodes, [info("x", shape=(1, 3, 8, 8))], [info("y", shape=(1, 4, 8, 8))], [weights("w", 4, 3, 3, 3)])


def conv_and_text():
    """A convolution, and beside it an op on strings that only the CPU has."""
    made = conv()
    made.graph.node.append(helper.make_node("StringConcat", ["s", "s"], ["t"]))
    made.graph.input.append(info("s", TensorProto.STRING, (1,)))
    made.graph.output.append(info("t", TensorProto.STRING, (1,)))
    return made


def test_the_plain_way_and_the_variants_of_the_wheel_are_reached_and_no_others():
    import onnxruntime

    wheel = onnxruntime.get_available_providers()
    found = {reach.variant for reach in devices.backend("onnxruntime").reaches([CPU]) if reach.health == "untested"}
    carried = {name for name, provider in PROVIDERS.items() if not provider.plugin and provider.ep in wheel}
    assert found == {name for name in carried if PROVIDERS[name].drives(CPU) and not PROVIDERS[name].lean}
    assert "" in found


def test_the_lean_way_gives_the_plain_ones_numbers(line, x):
    backend, lean = devices.backend("onnxruntime"), Target.parse("onnxruntime+lean@cpu:0/f32/1t")
    runnable = backend.prepare(source_of(line), lean, CPU)
    np.testing.assert_array_equal(runnable.run({"x": x})["y"], 2 * x + 1)
    runnable.close()


def test_a_gpu_whose_package_is_not_there_is_reported_with_the_command():
    nvidia = Device("gpu:0", "gpu", "NVIDIA T4", 0, driver="nvidia 570")
    found = {reach.variant: reach for reach in devices.backend("onnxruntime").reaches([nvidia])}
    assert found["cuda"].health == "failed"
    assert "CUDAExecutionProvider" in found["cuda"].detail
    assert "migraphx" not in found


def test_bfloat16_is_offered_where_the_cpu_has_it_and_never_instead_of_float32(tmp_path):
    made = source(chain(), tmp_path)
    arm = Device("cpu:0", "cpu", "Cortex-X2", 0, features=("bf16",))
    offered = devices.backend("onnxruntime").targets(made, arm, "", [1, 2])
    assert [str(target) for target in offered] == [
        "onnxruntime@cpu:0/f32/1t",
        "onnxruntime@cpu:0/f32/2t",
        "onnxruntime@cpu:0/bf16/1t",
        "onnxruntime@cpu:0/bf16/2t",
    ]
    x86 = Device("cpu:0", "cpu", "Xeon", 0, features=("avx512_bf16",))
    (only,) = devices.backend("onnxruntime").targets(made, x86, "", [1])
    assert only.precision == "f32"


def test_what_ran_is_read_back_from_the_session(tmp_path):
    # four nodes, of which the sum joins the product
    assert prepared("onnxruntime", source(chain(), tmp_path)).ran_on == {"cpu:0": 3}
    efficient = Device("cpu:1", "cpu", "efficient cores", 0)
    assert prepared("onnxruntime", source(chain(), tmp_path), device=efficient).ran_on == {"cpu:1": 3}


def test_a_variant_that_the_wheel_lacks_is_refused_at_prepare(tmp_path):
    nvidia = Device("gpu:0", "gpu", "NVIDIA T4", 0, driver="nvidia 570")
    with pytest.raises(PrepareRefused, match=r"onnxruntime\+cuda@gpu:0/f32.*pip install onnxruntime-gpu"):
        prepared("onnxruntime", source(chain(), tmp_path), device=nvidia, variant="cuda")


def test_a_folder_of_compiled_models_and_threads_reach_the_providers_options():
    from pathlib import Path

    from edgert.devices.onnxruntime import _settings

    nvidia = Device("gpu:1", "gpu", "NVIDIA T4", 0, attributes={"index": "0"})
    target = Target("onnxruntime", "gpu:1", "f16", variant="tensorrt")
    settings, options = _settings(PROVIDERS["tensorrt"], target, nvidia, Path("/cache"))
    assert options == {
        "device_id": "0", "trt_fp16_enable": "1", "trt_engine_cache_enable": "1", "trt_engine_cache_path": "/cache",
    }  # fmt: skip
    assert settings["session.disable_cpu_ep_fallback"] == "1"


def test_one_runnable_serves_several_threads(tmp_path):
    runnable = prepared("onnxruntime", source(chain(), tmp_path))
    feeds = [np.full((1, 4), value, np.float32) for value in range(8)]
    alone = [runnable.run({"x": feed})["y"] for feed in feeds]
    together = [None] * len(feeds)

    def work(index):
        for _ in range(50):
            together[index] = runnable.run({"x": feeds[index]})["y"]

    workers = [threading.Thread(target=work, args=(index,)) for index in range(len(feeds))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def with_default_bias():
    """A convolution and a sum whose second term is an input with a default."""
    made = conv()
    made.graph.node[1].input[0] = "s"
    made.graph.node.insert(1, helper.make_node("Add", ["c", "b"], ["s"]))
    made.graph.input.append(info("b", shape=(1, 4, 1, 1)))
    made.graph.initializer.append(numpy_helper.from_array(np.full((1, 4, 1, 1), 9, np.float32), "b"))
    return made


def test_an_input_with_a_default_may_be_given_or_left_out(tmp_path):
    runnable = prepared("onnxruntime", source(with_default_bias(), tmp_path))
    x = np.zeros((1, 3, 8, 8), np.float32)
    ones = np.ones((1, 4, 1, 1), np.float32)
    assert (runnable.run({"x": x})["y"] == 9).all()
    assert (runnable.run({"x": x, "b": ones})["y"] == 1).all()
    assert (runnable.run({"x": x})["y"] == 9).all()
    fresh = prepared("onnxruntime", source(with_default_bias(), tmp_path))
    for closed in (runnable, fresh):
        closed.close()
        for feed in ({"x": x}, {"x": x, "b": ones}):
            with pytest.raises(RunFailed, match="closed"):
                closed.run(feed)


def test_a_default_that_nobody_gives_is_a_constant_to_the_optimiser(tmp_path):
    made = source(with_default_bias(), tmp_path)
    plain = prepared("onnxruntime", source(conv(), tmp_path, "conv.onnx"))
    assert prepared("onnxruntime", made).ran_on == plain.ran_on  # the sum became the convolution's bias


def test_defaults_beside_the_file_are_found(tmp_path):
    path = tmp_path / "external.onnx"
    onnx.save_model(with_default_bias(), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    runnable = prepared("onnxruntime", source_of(path))
    assert (runnable.run({"x": np.zeros((1, 3, 8, 8), np.float32)})["y"] == 9).all()


@pytest.mark.parametrize(("kind", "variant"), [("gpu", "webgpu"), ("npu", "qnn")])
def test_a_plugin_runs_every_node_on_its_device_with_the_cpus_numbers(kind, variant, tmp_path):
    device = reached(kind, variant)
    x = np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)
    runnable = prepared("onnxruntime", source(conv(), tmp_path), device=device, variant=variant)
    assert list(runnable.ran_on) == [device.id]
    assert runnable.ran_on[device.id] >= 2  # and what the provider adds, such as changes of layout
    expected = prepared("onnxruntime", source(conv(), tmp_path)).run({"x": x})["y"]
    first = runnable.run({"x": x})["y"]
    kept = first.copy()
    np.testing.assert_allclose(first, expected, atol=1e-4 * np.ptp(expected))
    runnable.run({"x": -x})
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(("kind", "variant"), [("gpu", "webgpu"), ("npu", "qnn")])
def test_a_plugin_that_would_leave_nodes_to_the_cpu_is_refused(kind, variant, tmp_path):
    device = reached(kind, variant)
    with pytest.raises(PrepareRefused, match="fallback to CPU"):
        prepared("onnxruntime", source(conv_and_text(), tmp_path), device=device, variant=variant)


def test_a_second_gpu_that_a_plugin_does_not_list_is_reported():
    reached("gpu", "webgpu")
    second = Device("gpu:7", "gpu", "another", 0)
    found = devices.backend("onnxruntime").reaches([GPU, NPU, second])
    assert {reach.device: reach.health for reach in found if reach.variant == "webgpu"} == {
        "gpu:0": "untested", "gpu:7": "failed",
    }  # fmt: skip
