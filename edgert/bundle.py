"""A bundle: a plan and all that it takes to run it, in one file with checksums.

    model.edgert            a zip archive, nothing in it compressed
    ├── edgert.json         the manifest, first: format, every member's size and SHA-256, which file is which
    ├── plan.json           `Plan`
    ├── machine.json        `Machine` that it was made for
    ├── profile.json        `Profile` that it was chosen by
    ├── model/model.onnx    the source model, what the fallbacks run; its external data beside it
    └── segments/0.onnx     one file for each segment that is not the whole model

Equal content makes equal bytes. Nothing is compressed, so that no member can be larger than the file. `read` checks
every member before anything in it is used. The checksums find damage, not forgers: whoever can write the file can write
its checksums too, so take bundles from where you would take programs.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import IO, Any

from edgert import formats, typed
from edgert.errors import EdgertError, ModelCorrupt, ModelError, ModelNotFound, ModelUnsupported
from edgert.formats.files import digest_of, map_file, replacing, sha256
from edgert.machine import Machine
from edgert.plan import Plan
from edgert.profile import Profile
from edgert.tensor import BITS

__all__ = ["FORMAT", "SUFFIX", "Bundle", "is_bundle", "read", "write"]

FORMAT = 1
"""Of the archive; a reader refuses a later one."""
SUFFIX = ".edgert"
_MANIFEST, _PLAN, _MACHINE, _PROFILE = "edgert.json", "plan.json", "machine.json", "profile.json"
_MAGIC = b"PK\x03\x04"
_NAME_AT = 30
"""Where the first member's name begins in any zip archive."""
_LARGEST_JSON_BYTES = 1 << 26
_BLOCK_BYTES = 1 << 22
_MOST_CORES = 1 << 16
_DATE = (1980, 1, 1, 0, 0, 0)
_FILE_MODE = stat.S_IFREG | 0o644
_PART = re.compile(r"[^/\\:]{1,255}")
_REMEDY = "Copy it again, or make it again with `edgert compile`."
_DAMAGE = (  # what zipfile and json raise on damaged bytes
    zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, ValueError, KeyError, IndexError, TypeError,
    AttributeError, RuntimeError, OverflowError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Member:
    """One file in a bundle."""

    name: str
    """With '/' between folders; never absolute, never with '..'."""
    size_bytes: int
    sha256: str


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
        wanted = [member for member in self.files if not _same(folder / member.name, member)]
        if not wanted:
            return
        with _opened(self.path) as archive:
            for member in wanted:
                _extract(archive, member, folder / member.name, self.path)


def is_bundle(path: Path) -> bool:
    """Whether a file is, or calls itself, a bundle; False when it cannot be read."""
    if path.suffix == SUFFIX:
        return True
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would block
            return False
        with open(path, "rb") as file:
            return _has_magic(file.read(_NAME_AT + len(_MANIFEST)))
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return False


def _has_magic(start: bytes) -> bool:
    return start.startswith(_MAGIC) and start[_NAME_AT:] == _MANIFEST.encode()


# ---- writing


def write(path: Path, model: Path, plan: Plan, machine: Machine, profile: Profile) -> Bundle:
    """Make a bundle; `path` appears whole or not at all.

    Args:
        path: where to; replaced if it exists.
        model: the model file that the plan is for.
        plan: what to run.
        machine: what it was made for.
        profile: what it was chosen by.

    Raises:
        ModelError: the model cannot be read, or is not the plan's.
        OptionError: `path` cannot be written.
    """
    path, model = path.absolute(), model.absolute()
    with tempfile.TemporaryDirectory(prefix="edgert-") as scratch:
        files, beside = _model_files(model, plan)
        source = next(iter(files))
        segments = []
        for number, segment in enumerate(plan.segments):
            if not segment.nodes:
                segments.append(source)
                continue
            name = f"segments/{number}.{plan.format}"
            written = Path(scratch) / f"{number}.{plan.format}"
            formats.open_model(model).write(segment.nodes, written)
            files[name] = written
            data = written.with_name(f"{written.name}.data")
            if data.exists():
                files[f"{name}.data"] = data
            segments.append(name)
        texts = {
            _PLAN: _json(plan.to_json()), _MACHINE: _json(machine.to_json()), _PROFILE: _json(profile.to_json())
        }  # fmt: skip
        members = {name: Member(name, len(text), hashlib.sha256(text).hexdigest()) for name, text in texts.items()}
        for name, file in files.items():
            view = map_file(file)
            members[name] = Member(name, len(view), sha256(view))
        made = Bundle(path, plan, machine, profile, members, source, tuple(segments))
        manifest = _json(_manifest(made, beside))
        _write(path, {_MANIFEST: manifest, **texts}, files, members)
    return made


def _model_files(model: Path, plan: Plan) -> tuple[dict[str, Path], dict[str, str]]:
    """Members of the source model, itself first; and location in the model -> member of its external data."""
    companions = formats.companions(model)
    beside = {location: f"model/{PurePosixPath(location)}" for location, _ in companions}
    source = f"model/model.{plan.format}"
    while source in beside.values():
        source = source.replace("/model", "/model_", 1)
    files = {source: model, **{beside[location]: file for location, file in companions}}
    for name in files:
        if not _safe(name):
            raise ModelUnsupported(f"{model}: external data in {name[6:]!r} has no portable name.", "Rename that file.")
    digests = {location: sha256(map_file(file)) for location, file in companions}
    digest = digest_of(sha256(map_file(model)), digests)
    if digest != plan.model:
        raise ModelError(
            f"{model} is not the model of plan {plan.id} (it is {digest[:16]}, not {plan.model[:16]}).",
            "Plan it anew: the file has changed.",
        )
    return files, beside


def _manifest(made: Bundle, beside: Mapping[str, str]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "edgert": metadata.version("edgert"),
        "plan": made.plan.id,
        "machine": made.machine.fingerprint,
        "model": {"file": made.model, "beside": dict(beside), "digest": made.plan.model},
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
            archive.writestr(_info(name, len(text)), text)
        for name in sorted(files):
            digest = hashlib.sha256()
            with open(files[name], "rb") as file, archive.open(_info(name, members[name].size_bytes), "w") as member:
                while block := file.read(_BLOCK_BYTES):
                    digest.update(block)
                    member.write(block)
            if digest.hexdigest() != members[name].sha256:
                raise ModelError(f"{files[name]} changed while it was read.", "Leave it alone and try again.")


def _info(name: str, size_bytes: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _DATE)
    info.compress_type, info.create_system, info.external_attr = zipfile.ZIP_STORED, 3, _FILE_MODE << 16
    info.file_size = size_bytes  # above 4 GiB the header must have room for it from the start
    return info


# ---- reading


def read(path: Path) -> Bundle:
    """A bundle, every member of it checked.

    Raises:
        ModelNotFound: there is no such file, or it cannot be read.
        ModelCorrupt: it is truncated, damaged or hostile; names the member.
        ModelUnsupported: a later edgert made it.
    """
    path = path.absolute()
    size_bytes = len(map_file(path))
    with _opened(path) as archive:
        infos = _infos(archive, path, size_bytes)
        manifest = _parse(archive, infos[_MANIFEST], path)
        _check_format(manifest, path)
        members = _members(manifest, infos, path)
        for member in members.values():
            _verify(archive, member, path)
        texts = {name: _parse(archive, infos[name], path) for name in (_PLAN, _MACHINE, _PROFILE)}
    return _assemble(path, manifest, members, texts)


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below, where zipfile could not be made of it too
    except OSError as error:
        raise ModelNotFound(
            f"bundle {path} cannot be read: {error.strerror or error}.", "Check the path and its permissions."
        ) from error
    with file:
        if not _has_magic(file.read(_NAME_AT + len(_MANIFEST))):
            raise ModelCorrupt(f"{path} is no edgert bundle: {_MANIFEST!r} is not its first member.", _REMEDY)
        try:
            archive = zipfile.ZipFile(file)
        except _DAMAGE as error:
            raise _corrupt(path, "the archive's directory", f"{type(error).__name__}: {error}") from error
        with archive:
            yield archive


def _corrupt(path: Path, member: str, reason: str) -> ModelCorrupt:
    return ModelCorrupt(f"bundle {path}: {member} is damaged ({reason}).", _REMEDY)


def _safe(name: str) -> bool:
    """Whether a member's name is relative, has no '..', and means the same everywhere."""
    parts = name.split("/")
    return (
        len(name) < 1024
        and name.isprintable()
        and all(_PART.fullmatch(part) and part not in (".", "..") for part in parts)
    )


def _infos(archive: zipfile.ZipFile, path: Path, size_bytes: int) -> dict[str, zipfile.ZipInfo]:
    """The archive's entries by name: plain stored files with safe names, no larger together than the file."""
    infos: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        wrong = (
            "its name is not relative and plain" if not _safe(info.filename)
            else "it is there twice" if info.filename in infos
            else "it is a link or a folder" if kind not in (0, stat.S_IFREG) or info.is_dir()
            else "it is compressed or encrypted" if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 0x1
            else "its sizes differ" if info.compress_size != info.file_size
            else "it is larger than the whole" if info.file_size > size_bytes
            else ""
        )  # fmt: skip
        if wrong:
            raise _corrupt(path, f"member {info.filename!r}", wrong)
        infos[info.filename] = info
    if sum(info.file_size for info in infos.values()) > size_bytes:
        raise _corrupt(path, "the archive's directory", "its members are larger together than the file")
    for name in (_MANIFEST, _PLAN, _MACHINE, _PROFILE):
        if name not in infos:
            raise _corrupt(path, f"member {name!r}", "it is missing")
    return infos


def _parse(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> dict[str, Any]:
    """A member that is a JSON object."""
    if info.file_size > _LARGEST_JSON_BYTES:
        raise _corrupt(path, f"member {info.filename!r}", f"{info.file_size} bytes are too many")
    try:
        content = json.loads(archive.read(info).decode())
    except (*_DAMAGE, RecursionError) as error:
        raise _corrupt(path, f"member {info.filename!r}", f"{type(error).__name__}: {error}") from error
    if not isinstance(content, dict):
        raise _corrupt(path, f"member {info.filename!r}", "it is no JSON object")
    return content


def _check_format(manifest: Mapping[str, Any], path: Path) -> None:
    version = manifest.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise ModelUnsupported(
            f"bundle {path}: {_MANIFEST!r} has format {version}, made by edgert {manifest.get('edgert')}; "
            f"this edgert reads {FORMAT}.",
            "pip install --upgrade edgert",
        )
    if version != FORMAT:
        raise _corrupt(path, f"member {_MANIFEST!r}", f"format {version!r} is unknown")


def _members(manifest: Mapping[str, Any], infos: Mapping[str, zipfile.ZipInfo], path: Path) -> dict[str, Member]:
    """The manifest's members, which must be the archive's."""
    try:
        listed = {name: Member(name, item["size_bytes"], item["sha256"]) for name, item in manifest["members"].items()}
    except _DAMAGE as error:
        raise _corrupt(path, f"member {_MANIFEST!r}", f"its list of members: {error!r}") from error
    for name in sorted(listed.keys() ^ (infos.keys() - {_MANIFEST})):
        where = "is not in the archive" if name in listed else "is not in the manifest"
        raise _corrupt(path, f"member {name!r}", f"it {where}")
    for name, member in listed.items():
        if infos[name].file_size != member.size_bytes:
            raise _corrupt(path, f"member {name!r}", f"{infos[name].file_size} bytes, not {member.size_bytes}")
    return listed


def _verify(archive: zipfile.ZipFile, member: Member, path: Path) -> None:
    digest = hashlib.sha256()
    for block in _blocks(archive, member, path):
        digest.update(block)
    if digest.hexdigest() != member.sha256:
        raise _corrupt(path, f"member {member.name!r}", "its SHA-256 does not match")


def _blocks(archive: zipfile.ZipFile, member: Member, path: Path) -> Iterator[bytes]:
    """A member's bytes; only what reading raises becomes `ModelCorrupt`, not what is done with them."""
    file: IO[bytes] | None = None
    try:
        file = archive.open(member.name)
        while block := file.read(_BLOCK_BYTES):
            yield block
    except _DAMAGE as error:
        raise _corrupt(path, f"member {member.name!r}", f"{type(error).__name__}: {error}") from error
    finally:
        if file is not None:
            file.close()


def _extract(archive: zipfile.ZipFile, member: Member, to: Path, path: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=to.parent, prefix=".part-")
    digest = hashlib.sha256()
    try:
        with os.fdopen(handle, "wb") as out:
            for block in _blocks(archive, member, path):
                digest.update(block)
                out.write(block)
        if digest.hexdigest() != member.sha256:
            raise _corrupt(path, f"member {member.name!r}", "it changed since it was checked")
        os.replace(temporary, to)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def _same(file: Path, member: Member) -> bool:
    """Whether a file is there and is that member, byte for byte."""
    try:
        status = os.lstat(file)
        if not stat.S_ISREG(status.st_mode) or status.st_size != member.size_bytes:
            return False
        return (sha256(map_file(file)) if member.size_bytes else hashlib.sha256().hexdigest()) == member.sha256
    except (OSError, ModelError):
        return False


def _assemble(
    path: Path, manifest: Mapping[str, Any], members: Mapping[str, Member], texts: Mapping[str, dict[str, Any]]
) -> Bundle:
    """The parts as what they describe, each checked against the others."""
    part = _PLAN
    try:
        plan = Plan.from_json(texts[_PLAN])
        typed.check(plan)
        _check_plan(plan)
        part = _MACHINE
        machine = Machine.from_json(texts[_MACHINE])
        typed.check(machine)
        part = _PROFILE
        profile = Profile.from_json(texts[_PROFILE])
        typed.check(profile)
        part = _MANIFEST
        model, segments = str(manifest["model"]["file"]), tuple(map(str, manifest["segments"]))
        bundle = Bundle(path, plan, machine, profile, members, model, segments)
        _check_parts(bundle, manifest)
    except (*_DAMAGE, EdgertError) as error:
        reason = error.message if isinstance(error, EdgertError) else f"{type(error).__name__}: {error}"
        raise _corrupt(path, f"member {part!r}", reason) from error
    return bundle


def _check_plan(plan: Plan) -> None:
    """What types alone leave open. Raises ValueError."""
    if not plan.instances or any(instance.segment not in range(len(plan.segments)) for instance in plan.instances):
        raise ValueError("an instance names no segment of it")
    if any(core not in range(_MOST_CORES) for instance in plan.instances for core in instance.cores):
        raise ValueError("an instance's cores are no numbers of cores")
    for value in (*plan.inputs, *plan.values, *plan.outputs):
        if value.dtype is not None and value.dtype not in BITS:
            raise ValueError(f"value {value.name!r} has an unknown element type, {value.dtype!r}")
        if any(isinstance(size, int) and size < 0 for size in value.shape or ()):
            raise ValueError(f"value {value.name!r} has a negative size")
    if unknown := set(plan.optional_inputs) - {value.name for value in plan.inputs}:
        raise ValueError(f"optional input {min(unknown)!r} is no input")
    _check_segments(plan)


def _check_segments(plan: Plan) -> None:
    """That each segment reads what is there by then, and that the outputs are made. Raises ValueError."""
    described = {value.name for value in (*plan.inputs, *plan.values, *plan.outputs)}
    known = {value.name for value in plan.inputs}
    for number, segment in enumerate(plan.segments):
        unknown = [name for name in segment.inputs if name not in known]
        unknown += [name for name in segment.outputs if name not in described]
        if unknown or not (segment.nodes or len(plan.segments) == 1):
            raise ValueError(f"segment {number} reads or makes {unknown[:1] or 'the whole model'} out of order")
        known.update(segment.outputs)
    if missing := [value.name for value in plan.outputs if value.name not in known]:
        raise ValueError(f"no segment makes output {missing[0]!r}")


def _check_parts(bundle: Bundle, manifest: Mapping[str, Any]) -> None:
    """That plan, machine, profile and files belong together. Raises ValueError, KeyError or TypeError."""
    plan, members = bundle.plan, bundle.members
    beside: Mapping[str, str] = manifest["model"]["beside"]
    digest = digest_of(members[bundle.model].sha256, {place: members[name].sha256 for place, name in beside.items()})
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
    for place, name in beside.items():
        if PurePosixPath(name) != PurePosixPath(bundle.model).parent / place:
            raise ValueError(f"external data {place!r} is not beside the model")
    for segment, name in zip(plan.segments, bundle.segments, strict=True):
        if name not in members or "/" not in name or bool(segment.nodes) == (name == bundle.model):
            raise ValueError(f"segment {name!r} has no file")
