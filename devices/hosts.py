"""Which other hosts have devices for this one: the hosts file.

    {"hosts": {"boxb": {"endpoints": ["tcp://192.168.7.2:5599"], "key": "boxb"}}}

It is `EDGERT_HOSTS`, else `hosts.json` in the user's configuration folder of edgert. Each endpoint is an
`edgert executor --listen` there; a key is the name of a peer in the keyring, or the key itself. The device `npu:0` of
the host `boxb` is `boxb.npu:0` here.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from edgert.errors import OptionError
from edgert.machine import Device

_NAME = re.compile(r"[a-z][a-z0-9-]*")


@dataclass(frozen=True, slots=True)
class Far:
    """An executor on another host."""

    endpoint: str
    key: str
    """Its public key, or the name of a peer in the keyring; '' where the endpoint is not tcp."""

    @classmethod
    def of(cls, device: Device) -> Far | None:
        """Where a device is, if it is not of this box."""
        endpoint = device.attributes.get("executor", "")
        return cls(endpoint, device.attributes.get("executor_key", "")) if endpoint else None


def named(path: Path | None = None) -> dict[str, tuple[Far, ...]]:
    """Host -> its executors, from the hosts file; empty without one.

    Raises:
        OptionError: the file is not what the module's page says.
    """
    path = path or _default_path()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = {
            host: tuple(Far(str(endpoint), str(facts.get("key", ""))) for endpoint in facts["endpoints"])
            for host, facts in content["hosts"].items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OptionError(
            f"the hosts file {path} cannot be read: {error!r}.",
            'Write {"hosts": {"boxb": {"endpoints": ["tcp://192.168.7.2:5599"], "key": "boxb"}}}.',
        ) from error
    for host in found:
        if not _NAME.fullmatch(host):
            raise OptionError(f"{host!r} in {path} is no name of a host.", "Use small letters, digits and '-'.")
    return found


def _default_path() -> Path:
    chosen = os.environ.get("EDGERT_HOSTS")
    if chosen:
        return Path(chosen).expanduser().absolute()
    # Not Path.home(), which raises for the users of services, who have none: then there is no such file.
    return Path(os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")) / "edgert" / "hosts.json"
