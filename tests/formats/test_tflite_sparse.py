"""Sparse constants of a .tflite, against an encoder written the other way round and LiteRT's own DENSIFY."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edgert.errors import ModelCorrupt
from edgert.formats import open_model
from edgert.formats.tflite_sparse import Level, Sparsity, read_sparse
from edgert.graph import Value

models = pytest.importorskip("tests.formats.models")
interpreter = pytest.importorskip("ai_edge_litert.interpreter")
NONE = np.empty(0, np.int64)


def encode(dense, order, blocks, sizes, compressed):
    """Values and sparsity, by walking the tree a node at a time.

    `blocks` are the axes that are cut, `sizes` of the blocks; `compressed` says of each level whether it is CSR.
    """
    rank = dense.ndim
    extents = [size // (sizes[blocks.index(axis)] if axis in blocks else 1) for axis, size in enumerate(dense.shape)]
    extents += list(sizes)

    def value_at(path):
        place = dict(zip(order, path, strict=True))
        index = [place[axis] for axis in range(rank)]
        for number, axis in enumerate(blocks):
            index[axis] = index[axis] * sizes[number] + place[rank + number]
        return dense[tuple(index)]

    def alive(path):
        rest = [range(extents[axis]) for axis in order[len(path) :]]
        return any(value_at((*path, *more)) for more in itertools.product(*rest))

    levels, paths = [], [()]
    for level, axis in enumerate(order):
        children, segments, indices = [], [0], []
        for path in paths:
            kept = [place for place in range(extents[axis]) if not compressed[level] or alive((*path, place))]
            children += [(*path, place) for place in kept]
            indices += kept
            segments.append(len(indices))
        levels.append(Level(0, np.array(segments), np.array(indices, np.int64)) if compressed[level]
                      else Level(extents[axis], NONE, NONE))  # fmt: skip
        paths = children
    return np.array([value_at(path) for path in paths], dense.dtype), Sparsity(
        tuple(order), tuple(blocks), tuple(levels)
    )


@st.composite
def layouts(draw):
    """A dense array with many zeros, and a way to store it."""
    rank = draw(st.integers(1, 3))
    sizes = [draw(st.sampled_from([1, 2, 3])) for _ in range(rank)]
    blocks = sorted(draw(st.sets(st.integers(0, rank - 1), max_size=rank)))
    block_sizes = [draw(st.sampled_from([1, 2])) for _ in blocks]
    for axis, size in zip(blocks, block_sizes, strict=True):
        sizes[axis] *= size
    order = [*draw(st.permutations(range(rank))), *draw(st.permutations(range(rank, rank + len(blocks))))]
    assume(all(block_sizes[order[order[rank + at]] - rank] == size for at, size in enumerate(block_sizes)))
    # The kernel gives each block level all of its places.
    compressed = [draw(st.booleans()) for _ in range(rank)] + [False] * len(blocks)
    numbers = draw(st.lists(st.sampled_from([0, 0, 0, 1, 2, -3]), min_size=int(np.prod(sizes)),
                            max_size=int(np.prod(sizes))))  # fmt: skip
    return np.array(numbers, np.float32).reshape(sizes), order, blocks, block_sizes, compressed


@given(layouts())
def test_what_was_stored_sparse_comes_back_dense(layout):
    dense = layout[0]
    values, sparsity = encode(*layout)
    read = read_sparse(memoryview(values.tobytes()), Value("w", "float32", dense.shape, "sparse"), sparsity)
    np.testing.assert_array_equal(read, dense)
    assert not read.flags.writeable


def written(folder, values, sparsity, shape, kind="FLOAT32"):
    """A model whose output is its sparse constant, made dense by the library."""
    flat = models.Flat()
    graph, s = flat.subgraph(), flat.s
    stored = s.SparsityParametersT()
    stored.traversalOrder, stored.blockMap, stored.dimMetadata = list(sparsity.order), list(sparsity.blocks), []
    for level in sparsity.levels:
        item = s.DimensionMetadataT()
        item.format, item.denseSize = (0, level.size) if not len(level.segments) else (1, 0)
        if len(level.segments):
            for part, content in (("Segments", level.segments), ("Indices", level.indices)):
                vector = s.Int32VectorT() if part == "Segments" else s.Uint8VectorT()
                vector.values = content.tolist()
                setattr(item, f"array{part}", vector)
                kind_of = s.SparseIndexVector.Int32Vector if part == "Segments" else s.SparseIndexVector.Uint8Vector
                setattr(item, f"array{part}Type", kind_of)
        stored.dimMetadata.append(item)
    w = flat.tensor(graph, "w", shape, kind, values, sparsity=stored)
    x, d, y = flat.tensor(graph, "x", shape), flat.tensor(graph, "d", shape, kind), flat.tensor(graph, "y", shape)
    flat.op(graph, "DENSIFY", [w], [d], "DensifyOptions")
    flat.op(graph, "ADD", [x, d], [y], "AddOptions")
    graph.inputs, graph.outputs = [x], [y]
    path = folder / "sparse.tflite"
    path.write_bytes(flat.bytes())
    return path


def made_dense(path):
    """By LiteRT."""
    made = interpreter.Interpreter(str(path), num_threads=1)
    made.allocate_tensors()
    (given,), (gives,) = made.get_input_details(), made.get_output_details()
    made.set_tensor(given["index"], np.zeros(given["shape"], np.float32))
    made.invoke()
    return made.get_tensor(gives["index"])


@given(layouts().filter(lambda layout: any(layout[4]) and layout[0].any()))
@settings(max_examples=25, deadline=None)
def test_it_is_what_litert_makes_of_the_file(tmp_path_factory, layout):
    values, sparsity = encode(*layout)
    path = written(tmp_path_factory.mktemp("sparse"), values, sparsity, layout[0].shape)
    constant = open_model(path).graph.constants["w"]
    assert constant.value.kind == "sparse"
    np.testing.assert_array_equal(constant.read(), made_dense(path))


CSR = Sparsity((0, 1), (), (Level(2, NONE, NONE), Level(0, np.array([0, 1, 3]), np.array([2, 0, 1]))))


@pytest.mark.parametrize(
    ("sparsity", "count", "shape", "what"),
    [
        (CSR, 4, (2, 3), "3 values"),
        (CSR, 3, (2, 2), "beyond axis 1"),
        (CSR, 3, (1 << 20, 1 << 20), "GiB"),
        (Sparsity((0, 1), (), (Level(3, NONE, NONE), CSR.levels[1])), 3, (3, 3), "segments"),
        (Sparsity((0, 1), (), (Level(2, NONE, NONE), Level(0, np.array([0, 1, 9]), np.array([0]))), ), 3, (2, 3),
         "beyond its indices"),
        (Sparsity((0, 1), (), (Level(1 << 40, NONE, NONE), Level(1 << 20, NONE, NONE))), 3, (2, 3), "more values"),
        (Sparsity((0, 1, 2), (1,), (*CSR.levels, Level(2, NONE, NONE))), 6, (2, 3), "blocks of 2"),
        (Sparsity((0, 1, 2, 4, 5, 3), (0, 1, 2), tuple(Level(size, NONE, NONE) for size in (1, 1, 1, 1, 2, 1))), 2,
         (1, 1, 2), "LiteRT takes for another"),
    ],
)  # fmt: skip
def test_a_tree_that_does_not_fit_is_refused_by_name(sparsity, count, shape, what):
    with pytest.raises(ModelCorrupt, match=f"'w' .*{what}"):
        read_sparse(memoryview(bytes(4 * count)), Value("w", "float32", shape, "sparse"), sparsity)


def test_a_sparsity_for_another_rank_is_refused_when_the_file_is_read(tmp_path):
    values, sparsity = encode(np.eye(3, dtype=np.float32), [0, 1], [], [], [False, True])
    path = written(tmp_path, values, Sparsity((0, 0), (), sparsity.levels), (3, 3))
    with pytest.raises(ModelCorrupt, match="'w' has a sparsity that does not fit its 2 axes"):
        open_model(path)
