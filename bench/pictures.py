"""`python -m bench.pictures`: plan six models on this machine; their pictures and explanations for docs/plan.md.

Writes docs/pictures/NAME.svg, and docs/plan.md from its marker to its end; with `--only` these models' parts of it. The
face detector is left out where EDGERT_MODELS does not name a folder that has it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import edgert
from bench.zoo import build
from edgert.data import path as data_path
from edgert.formats import open_model
from edgert.partitioner.draw import draw_svg
from edgert.partitioner.explain import explain

MARKER = "<!-- written by `python -m bench.pictures` from here on -->"
_LARGEST_BYTES = 300_000


@dataclass(frozen=True, slots=True)
class Subject:
    """One model of the page."""

    name: str
    """Of the picture's file."""
    about: str
    """One line for the page."""
    path: Path
    precision: str = "own"


def subjects(folder: Path | None) -> Iterator[Subject]:
    """The models, small to large, and one that is worth splitting; built where they are not there yet."""
    yield Subject("digits", "The network of `edgert demo`: each node is a box.", data_path("digits_f32.onnx"))
    yield Subject("kws", "A keyword spotter (the zoo's depthwise-separable network).", build("kws", "f32", folder))
    yield Subject("mobilenet_v2", "MobileNetV2 at 224x224: stages are boxes.", build("mobilenet_v2", "f32", folder))
    models = os.environ.get("EDGERT_MODELS")
    face = Path(models) / "ultraface_rfb_320.onnx" if models else None
    if face is not None and face.is_file():
        yield Subject("ultraface", "A face detector with branches to eight heads.", face)
    about = "A BERT of four layers: one is drawn, in its frame."
    yield Subject("bert_4x256", about, build("bert_4x256", "f32", folder))
    about = "A U-Net that ends in an operation that OpenVINO refuses, with `--precision any`: a split that pays."
    yield Subject("unet_sequence", about, with_sequence(build("unet", "f32", folder)), "any")


def with_sequence(body: Path) -> Path:
    """The same network, its output as a sequence of one tensor; written beside it."""
    import onnx

    path = body.with_name(f"sequence-{body.name}")
    model = onnx.load(body)
    output = model.graph.output[0].name
    model.graph.node.append(onnx.helper.make_node("SequenceConstruct", [output], ["parts"], name="as_sequence"))
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_sequence_value_info("parts", onnx.TensorProto.FLOAT, None))
    onnx.save(model, path)
    return path


def picture_of(subject: Subject, budget_s: float) -> tuple[str, str]:
    """Its plan on this machine as a picture and in words."""
    with edgert.load(subject.path, budget_s=budget_s, precision=subject.precision) as model:
        plan = model.plan
    graph = open_model(subject.path).graph
    return draw_svg(plan, graph, subject.path.name) + "\n", explain(plan, graph)


def section(subject: Subject, words: str) -> str:
    """Its part of the page."""
    return "\n".join([
        f"## {subject.path.name}", "", subject.about, "", f"![{subject.path.name}](pictures/{subject.name}.svg)", "",
        "<details><summary>--explain</summary>", "", "```", words, "```", "", "</details>", "",
    ])  # fmt: skip


def page_with(page: str, sections: Sequence[str]) -> str:
    """The page with new sections below its marker.

    Raises:
        ValueError: it has no marker.
    """
    head, marker, _ = page.partition(MARKER)
    if not marker:
        raise ValueError(f"the page has no line {MARKER!r}")
    return head + "\n".join([MARKER, "", *sections])


def sections_of(page: str) -> dict[str, str]:
    """What stands below the marker, by heading."""
    parts = page.partition(MARKER)[2].split("\n## ")[1:]
    return {part.partition("\n")[0]: f"## {part.rstrip()}\n" for part in parts}


def main() -> None:
    """Plan, draw, write."""
    parser = argparse.ArgumentParser(prog="python -m bench.pictures", description="Draws the plans of docs/plan.md.")
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these models; the others' parts stay")
    parser.add_argument("--zoo", type=Path, help="where the zoo is built; default: the cache")
    parser.add_argument("--budget", type=float, default=30.0, help="seconds of measuring for each model")
    options = parser.parse_args()
    pictures = options.docs / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    page = options.docs / "plan.md"
    known = sections_of(page.read_text(encoding="utf-8"))
    sections = []
    for subject in subjects(options.zoo):
        if options.only and subject.name not in options.only:
            sections.append(known[subject.path.name])
            continue
        picture, words = picture_of(subject, options.budget)
        if len(picture) > _LARGEST_BYTES:
            raise ValueError(f"the picture of {subject.name} has {len(picture)} bytes")
        (pictures / f"{subject.name}.svg").write_text(picture, encoding="utf-8")
        sections.append(section(subject, words))
        sys.stdout.write(f"{subject.name}: {len(picture)} bytes\n")
    page.write_text(page_with(page.read_text(encoding="utf-8"), sections), encoding="utf-8")


if __name__ == "__main__":
    main()
