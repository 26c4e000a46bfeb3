"""What a box has: devices, links and backends, as `probe` found them. Plain data with JSON of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from edgert.errors import OptionError, UnknownTarget

DeviceKind: TypeAlias = Literal["cpu", "gpu", "npu"]
Health: TypeAlias = Literal["ok", "wrong", "failed", "untested"]
"""Outcome of the conformance run: right numbers; wrong numbers; it crashed, hung or refused; not run yet."""

FORMAT = 1
"""Version of the JSON form."""


@dataclass(frozen=True, slots=True)
class Device:
    """One processor that can run nodes."""

    id: str
    """`cpu:0`, `gpu:0`, `npu:0`: kind and number. A cluster of a big.LITTLE or hybrid CPU is a device of its own."""
    kind: DeviceKind
    name: str
    """For people: 'AMD EPYC 9R14', 'llvmpipe (LLVM 19.1.7, 256 bits)'."""
    memory_bytes: int
    """Memory that it can use: for a CPU what the cgroup and the kernel leave, for others their own (0 if unknown)."""
    cores: tuple[int, ...] = ()
    """CPU only: logical CPUs that this process may use, one per physical core first."""
    features: tuple[str, ...] = ()
    """Those that matter to kernels: 'avx512_vnni', 'amx_bf16', 'asimddp', 'i8mm', 'sve', 'fp16', ..."""
    driver: str = ""
    """Name and version of the driver or library that reaches it; part of the fingerprint."""
    software: bool = False
    """True for an emulation (llvmpipe, Qualcomm's x86 library): right numbers, meaningless speed."""
    bandwidth_bytes_per_s: float | None = None
    """Measured: large copy in its memory (bytes read + written). None when not measured."""
    peak_ops_per_s: Mapping[str, float] = field(default_factory=dict)
    """Measured: dtype -> multiply-adds x 2 per second of a large matrix product through its best backend."""
    attributes: Mapping[str, str] = field(default_factory=dict)
    """What a backend needs to find it again: 'pci', 'node' (/dev/...), 'ep', ..."""


@dataclass(frozen=True, slots=True)
class Link:
    """Measured path between two devices."""

    source: str
    sink: str
    latency_s: float
    bandwidth_bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Reach:
    """That a backend drives a device, and whether it gave the right numbers there."""

    backend: str
    device: str
    """Device id."""
    variant: str = ""
    """Which way of the backend: '' for its plain one, else as in `Target.variant` ('webgpu', 'qnn', 'xnnpack')."""
    health: Health = "untested"
    detail: str = ""
    """Why not ok: the numbers or the error, and what would fix it."""


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """One backend: there, or not there and why."""

    name: str
    version: str = ""
    """Version of its library; '' when it is not usable."""
    reason: str = ""
    """Why it is not usable; '' when it is."""
    remedy: str = ""
    """The command that would fix that."""

    @property
    def usable(self) -> bool:
        return not self.reason


@dataclass(frozen=True, slots=True)
class Machine:
    """Devices, links and backends of one box."""

    architecture: str
    """What programs run as: x86_64, aarch64, armv7l (also on a 64-bit kernel, where the programs are 32-bit)."""
    devices: tuple[Device, ...]
    backends: tuple[BackendInfo, ...]
    reaches: tuple[Reach, ...]
    links: tuple[Link, ...] = ()
    system: str = ""
    """For people: kernel and distribution."""

    @property
    def fingerprint(self) -> str:
        """16 hex digits over what decides speed and numerics: devices, cores, features, drivers. Not the versions
        of backends (they are keys of their own in the profile) and nothing measured (it varies), but for how good, very
        roughly, the link to another host's device is. What a device on paper declares is what it is.
        """
        parts: list[tuple[object, ...]] = [
            (device.id, device.name, device.cores, device.features, device.driver, device.memory_bytes >> 30)
            for device in self.devices
        ]
        parts += [(dict(device.attributes),) for device in self.devices if device.driver == "simulated"]
        parts += [(device.attributes["link"],) for device in self.devices if "link" in device.attributes]
        return hashlib.sha256(json.dumps([self.architecture, parts]).encode()).hexdigest()[:16]

    def device(self, name: str) -> Device:
        """The device with that id.

        Raises:
            UnknownTarget: it is not on this machine; says which are.
        """
        for device in self.devices:
            if device.id == name:
                return device
        known = ", ".join(device.id for device in self.devices)
        raise UnknownTarget(f"device {name!r} is not on this machine.", f"It has: {known}. See `edgert probe`.")

    def backend(self, name: str) -> BackendInfo | None:
        """What is known of a backend, or None."""
        return next((backend for backend in self.backends if backend.name == name), None)

    def reached(self) -> tuple[Reach, ...]:
        """The ways to run that passed, or have not had, their conformance run."""
        return tuple(reach for reach in self.reaches if reach.health in ("ok", "untested"))

    def to_json(self) -> dict[str, Any]:
        """JSON-able form; `from_json` reads it back."""
        return {"format": FORMAT, "fingerprint": self.fingerprint, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Machine:
        """The machine that `to_json` described.

        Raises:
            OptionError: the data is not a machine of this format.
        """
        if data.get("format") != FORMAT:
            raise OptionError(
                f"machine description has format {data.get('format')!r}, this edgert reads {FORMAT}.",
                "Make it again with `edgert probe --json`.",
            )
        try:
            return cls(
                architecture=data["architecture"],
                devices=tuple(device_from_json(item) for item in data["devices"]),
                backends=tuple(BackendInfo(**item) for item in data["backends"]),
                reaches=tuple(Reach(**item) for item in data["reaches"]),
                links=tuple(Link(**item) for item in data["links"]),
                system=data["system"],
            )
        except (KeyError, TypeError) as error:
            raise OptionError(
                f"machine description is malformed: {error}.", "Make it again with `edgert probe --json`."
            ) from error


def device_from_json(item: Mapping[str, Any]) -> Device:
    """The device that `dataclasses.asdict` described."""
    return Device(**{**item, "cores": tuple(item["cores"]), "features": tuple(item["features"])})
