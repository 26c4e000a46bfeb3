"""A bundle: a plan and all that it takes to run it, in one file with checksums.

    model.edgert            a zip archive, nothing in it compressed
    ├── edgert.json         the manifest, first: format, every member's size and SHA-256, which file is which
    ├── plan.json           `Plan`
    ├── machine.json        `Machine` that it was made for
    ├── profile.json        `Profile` that it was chosen by
    ├── model/model.onnx    the source model, what the fallbacks run; its external data beside it
    ├── artefact/...        what was compiled from it for one accelerator, if the plan was made with such a file
    └── segments/0.onnx     one file for each segment that is not the whole model

Equal content makes equal bytes. Nothing is compressed, so that no member can be larger than the file. `read` checks
every member before anything in it is used. The checksums find damage, not forgers: whoever can write the file can write
its checksums too, so take bundles from where you would take programs.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

from edgert import formats, typed
from edgert.bundle.archive import (
    BLOCK_BYTES,
    DAMAGE,
    MACHINE,
    MANIFEST,
    NAME_AT,
    PLAN,
    PROFILE,
    Member,
    corrupt,
    described,
    document,
    entries,
    entry,
    extract,
    has_magic,
    is_safe,
    is_same,
    opened,
    verify,
)
from edgert.bundle.layout import check_layout
from edgert.bundle.sense import check_plan
from edgert.errors import EdgertError, ModelError, ModelUnsupported
from edgert.formats.artefacts import ARTEFACT, Artefact
from edgert.formats.files import digest_of, map_file, replacing, sha256
from edgert.machine import Machine
from edgert.plan import Plan
from edgert.profile import Profile

__all__ = ["FORMAT", "SUFFIX", "Bundle", "Member", "is_bundle", "read", "write"]

FORMAT = 2
"""Of the archive; a reader refuses a later one. What has no artefact is written in format 1, which older ones read."""
SUFFIX = ".edgert"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle that was read and checked, or written."""

    path: Path
    """Absolute."""
    plan: Plan
    machine: Machine
    profile: Profile
    members: Mapping[str, Member]
    model: str
    """Name of the source model's member."""
    segments: tuple[str, ...]
    """Name of each segment's member; the source model's for a segment that is all of it."""
    artefact: Artefact | None = None
    """What was compiled from the source model; its path is the member's name."""

    @property
    def files(self) -> tuple[Member, ...]:
        """The members that backends read: models and their external data."""
        return tuple(member for name, member in sorted(self.members.items()) if "/" in name)

    @property
    def key(self) -> str:
        """32 hex digits over names and content of `files`."""
        lines = [f"{member.name}\0{member.sha256}" for member in self.files]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]

    def extract(self, folder: Path) -> None:
        """Lay `files` down in a folder. What is there already is checked, and replaced where it is damaged.

        Raises:
            ModelCorrupt: the bundle changed since it was read.
            OSError: the folder cannot be written.
        """
        wanted = [member for member in self.files if not is_same(folder / member.name, member)]
        if not wanted:
            return
        with opened(self.path) as archive:
            for member in wanted:
                extract(archive, member, folder / member.name, self.path)


def is_bundle(path: Path) -> bool:
    """Whether a file is, or calls itself, a bundle; False when it cannot be read."""
    if path.suffix == SUFFIX:
        return True
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would block
            return False
        with open(path, "rb") as file:
            return has_magic(file.read(NAME_AT + len(MANIFEST)))
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return False


# ---- writing


def write(
    path: Path, model: Path, plan: Plan, machine: Machine, profile: Profile, *, tidied: Path | None = None,
    artefact: Artefact | None = None,
) -> Bundle:  # fmt: skip
    """Make a bundle; `path` appears whole or not at all.

    Args:
        path: where to; replaced if it exists.
        model: the model file that the plan is for.
        plan: what to run.
        machine: what it was made for.
        profile: what it was chosen by.
        tidied: the tidied-up model, where `plan.tidied` says that its segments are cut from one.
        artefact: what was compiled from the model, where the plan was made with it.

    Raises:
        ModelError: the model cannot be read, or is not the plan's; nor is `tidied`.
        OptionError: `path` cannot be written.
    """
    path, model = path.absolute(), model.absolute()
    with tempfile.TemporaryDirectory(prefix="edgert-") as scratch:
        files, beside = _files(model, "model", f".{plan.format}")
        source = next(iter(files))
        kept, compiled = _packed(artefact)
        files |= kept
        _check_digest(model, plan, _digest_of(files, source, beside, compiled))
        segments = []
        cut_from = _cut_from(model, plan, tidied)
        for number, segment in enumerate(plan.segments):
            if not segment.nodes:
                segments.append(source)
                continue
            name = f"segments/{number}.{plan.format}"
            written = Path(scratch) / f"{number}.{plan.format}"
            formats.open_model(cut_from).write(segment.nodes, written)
            files[name] = written
            data = written.with_name(f"{written.name}.data")
            if data.exists():
                files[f"{name}.data"] = data
            segments.append(name)
        texts = {
            PLAN: _json(plan.to_json()), MACHINE: _json(machine.to_json()), PROFILE: _json(profile.to_json())
        }  # fmt: skip
        members = {name: Member(name, len(text), hashlib.sha256(text).hexdigest()) for name, text in texts.items()}
        members |= {name: described(name, file) for name, file in files.items()}
        made = Bundle(path, plan, machine, profile, members, source, tuple(segments))
        manifest = _json(_manifest(made, beside, compiled))
        _write(path, {MANIFEST: manifest, **texts}, files, members)
    return made


def _cut_from(model: Path, plan: Plan, tidied: Path | None) -> Path:
    """The file that has the nodes which the plan's segments name."""
    if not plan.tidied:
        return model
    if tidied is None or formats.digest(tidied) != plan.tidied:
        raise ModelError(
            f"plan {plan.id} cuts its segments from a tidied-up {model.name}, and {tidied or 'none'} is not that.",
            "Plan the model anew.",
        )
    return tidied


def _files(model: Path, folder: str, suffix: str, locations: bool = True) -> tuple[dict[str, Path], dict[str, str]]:
    """Members of a model, itself first; and location in the model -> member of what it refers to."""
    companions = formats.companions(model) if locations else ()
    beside = {location: f"{folder}/{PurePosixPath(location)}" for location, _ in companions}
    source = f"{folder}/model{suffix}"
    while source in beside.values():
        source = source.replace("/model", "/model_", 1)
    files = {source: model, **{beside[location]: file for location, file in companions}}
    for name in files:
        if not is_safe(name):
            where = name.partition("/")[2]
            raise ModelUnsupported(f"{model}: external data in {where!r} has no portable name.", "Rename that file.")
    return files, beside


def _packed(artefact: Artefact | None) -> tuple[dict[str, Path], dict[str, Any]]:
    """Members of an artefact, and its entry in the manifest."""
    if artefact is None:
        return {}, {}
    files, beside = _files(artefact.path, "artefact", artefact.path.suffix.lower(), locations=bool(artefact.readers))
    name = next(iter(files))
    return files, {"file": name, "beside": beside, "what": artefact.what, "readers": artefact.readers}


def _digest_of(files: Mapping[str, Path], source: str, beside: Mapping[str, str], compiled: Mapping[str, Any]) -> str:
    """Content hash of a model and its artefact, from their files."""
    return _digest(lambda name: sha256(map_file(files[name])), source, beside, compiled)


def _digest(
    hashed: Callable[[str], str], source: str, beside: Mapping[str, str], compiled: Mapping[str, Any]
) -> str:  # fmt: skip
    """As `Plan.model` has it: the model with its external data, and the artefact with what it refers to."""
    found = digest_of(hashed(source), {place: hashed(name) for place, name in beside.items()})
    if not compiled:
        return found
    own = digest_of(hashed(compiled["file"]), {place: hashed(name) for place, name in compiled["beside"].items()})
    return digest_of(found, {ARTEFACT: own})


def _check_digest(model: Path, plan: Plan, digest: str) -> None:
    if digest != plan.model:
        raise ModelError(
            f"{model} is not the model of plan {plan.id} (it is {digest[:16]}, not {plan.model[:16]}).",
            "Plan it anew: the file has changed.",
        )


def _manifest(made: Bundle, beside: Mapping[str, str], compiled: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "format": FORMAT if compiled else 1,
        "edgert": metadata.version("edgert"),
        "plan": made.plan.id,
        "machine": made.machine.fingerprint,
        "model": {"file": made.model, "beside": dict(beside), "digest": made.plan.model},
        **({"artefact": compiled} if compiled else {}),
        "segments": list(made.segments),
        "members": {
            name: {"size_bytes": member.size_bytes, "sha256": member.sha256} for name, member in made.members.items()
        },
    }


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, sort_keys=True, indent=1) + "\n").encode()


def _write(
    path: Path, texts: Mapping[str, bytes], files: Mapping[str, Path], members: Mapping[str, Member]
) -> None:  # fmt: skip
    with replacing(path) as out, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, text in texts.items():
            archive.writestr(entry(name, len(text)), text)
        for name in sorted(files):
            digest = hashlib.sha256()
            with open(files[name], "rb") as file, archive.open(entry(name, members[name].size_bytes), "w") as member:
                while block := file.read(BLOCK_BYTES):
                    digest.update(block)
                    member.write(block)
            if digest.hexdigest() != members[name].sha256:
                raise ModelError(f"{files[name]} changed while it was read.", "Leave it alone and try again.")


# ---- reading


def read(path: str | os.PathLike[str]) -> Bundle:
    """A bundle, every member of it checked.

    Raises:
        ModelNotFound: there is no such file, or it cannot be read.
        ModelCorrupt: it is truncated, damaged or hostile; names the member.
        ModelUnsupported: a later edgert made it.
    """
    path = Path(path).absolute()
    size_bytes = len(map_file(path))
    with opened(path) as archive:
        infos = entries(archive, path, size_bytes)
        manifest = document(archive, infos[MANIFEST], path)
        _check_format(manifest, path)
        members = _members(manifest, infos, path)
        for member in members.values():
            verify(archive, member, path)
        check_layout(archive, infos, path)
        texts = {name: document(archive, infos[name], path) for name in (PLAN, MACHINE, PROFILE)}
    return _assemble(path, manifest, members, texts)


def _check_format(manifest: Mapping[str, Any], path: Path) -> None:
    version = manifest.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise ModelUnsupported(
            f"bundle {path}: {MANIFEST!r} has format {version}, made by edgert {manifest.get('edgert')}; "
            f"this edgert reads {FORMAT}.",
            "pip install --upgrade edgert",
        )
    if version not in (1, FORMAT):
        raise corrupt(path, f"member {MANIFEST!r}", f"format {version!r} is unknown")


def _members(manifest: Mapping[str, Any], infos: Mapping[str, zipfile.ZipInfo], path: Path) -> dict[str, Member]:
    """The manifest's members, which must be the archive's."""
    try:
        listed = {name: Member(name, item["size_bytes"], item["sha256"]) for name, item in manifest["members"].items()}
    except DAMAGE as error:
        raise corrupt(path, f"member {MANIFEST!r}", f"its list of members: {error!r}") from error
    for name in sorted(listed.keys() ^ (infos.keys() - {MANIFEST})):
        where = "is not in the archive" if name in listed else "is not in the manifest"
        raise corrupt(path, f"member {name!r}", f"it {where}")
    for name, member in listed.items():
        if infos[name].file_size != member.size_bytes:
            raise corrupt(path, f"member {name!r}", f"{infos[name].file_size} bytes, not {member.size_bytes}")
    return listed


def _assemble(
    path: Path, manifest: Mapping[str, Any], members: Mapping[str, Member], texts: Mapping[str, dict[str, Any]]
) -> Bundle:
    """The parts as what they describe, each checked against the others."""
    part = PLAN
    try:
        plan = Plan.from_json(texts[PLAN])
        typed.check(plan)
        check_plan(plan)
        part = MACHINE
        machine = Machine.from_json(texts[MACHINE])
        typed.check(machine)
        part = PROFILE
        profile = Profile.from_json(texts[PROFILE])
        typed.check(profile)
        part = MANIFEST
        model, segments = str(manifest["model"]["file"]), tuple(map(str, manifest["segments"]))
        bundle = Bundle(path, plan, machine, profile, members, model, segments, _artefact(manifest.get("artefact")))
        _check_parts(bundle, manifest)
    except (*DAMAGE, EdgertError) as error:
        reason = error.message if isinstance(error, EdgertError) else f"{type(error).__name__}: {error}"
        raise corrupt(path, f"member {part!r}", reason) from error
    return bundle


def _artefact(entry: Mapping[str, Any] | None) -> Artefact | None:
    """What the manifest says of an artefact. Raises KeyError, TypeError or ValueError."""
    if entry is None:
        return None
    name, what, readers = (entry[field] for field in ("file", "what", "readers"))
    if not all(isinstance(text, str) for text in (name, what, readers)) or "/" not in name:
        raise ValueError(f"artefact {name!r} is not described")
    return Artefact(Path(name), what, readers)


def _check_parts(bundle: Bundle, manifest: Mapping[str, Any]) -> None:
    """That plan, machine, profile and files belong together. Raises ValueError, KeyError or TypeError."""
    plan, members = bundle.plan, bundle.members
    beside: Mapping[str, str] = manifest["model"]["beside"]
    compiled: Mapping[str, Any] = manifest.get("artefact") or {}
    digest = _digest(lambda name: members[name].sha256, bundle.model, beside, compiled)
    pairs = {
        "plan": (manifest["plan"], plan.id),
        "machine": (manifest["machine"], bundle.machine.fingerprint),
        "plan's machine": (plan.machine, bundle.machine.fingerprint),
        "profile's machine": (bundle.profile.machine, bundle.machine.fingerprint),
        "model": (manifest["model"]["digest"], digest),
        "plan's model": (plan.model, digest),
        "profile's model": (bundle.profile.model, digest),
        "number of segments": (len(bundle.segments), len(plan.segments)),
    }
    for what, (said, found) in pairs.items():
        if said != found:
            raise ValueError(f"{what}: {said!r}, but {found!r} is here")
    owners = [(bundle.model, beside), *([(compiled["file"], compiled["beside"])] if compiled else [])]
    for owner, others in owners:
        for place, name in others.items():
            if PurePosixPath(name) != PurePosixPath(owner).parent / place:
                raise ValueError(f"external data {place!r} is not beside the model")
    for segment, name in zip(plan.segments, bundle.segments, strict=True):
        if name not in members or "/" not in name or bool(segment.nodes) == (name == bundle.model):
            raise ValueError(f"segment {name!r} has no file")
