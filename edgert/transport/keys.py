"""Who may talk to whom over TCP: key pairs of Curve25519 and a list of peers.

A folder (`Keyring`) holds this machine's own pair and one file for each peer that it knows:

    own.json            {"public": ..., "secret": ...}, 0600: the secret never leaves the machine
    peers/NAME.pub      the public key of another machine, 40 characters of Z85

A peer whose key is there may connect; one that is connected to must prove that it holds the secret of the key that it
is known by. The protocol is CurveZMQ (rfc.zeromq.org/spec/26), the handler of its question "may this key?" is ZAP
(rfc.zeromq.org/spec/27).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgert.errors import OptionError

_log = logging.getLogger(__name__)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_Z85 = frozenset("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#")
_KEY_LENGTH = 40


@dataclass(frozen=True, slots=True)
class KeyPair:
    """One machine's identity."""

    public: str
    """40 characters of Z85 (rfc.zeromq.org/spec/32); to be told to peers."""
    secret: str = field(repr=False)

    @classmethod
    def random(cls) -> KeyPair:
        """A new one, whose public key does not look like an option of a command."""
        import zmq

        public, secret = zmq.curve_keypair()
        while public.startswith(b"-"):
            public, secret = zmq.curve_keypair()
        return cls(public.decode(), secret.decode())


class Keyring:
    """A folder of keys. Reads the disk each time, so what is allowed or forgotten counts at the next connection."""

    def __init__(self, folder: Path | None = None) -> None:
        """Args:
        folder: where; None for `EDGERT_KEYS`, else the user's own configuration folder. Made when first written.
        """
        self.folder = folder or _default_folder()

    def own(self) -> KeyPair:
        """The pair of this machine.

        Raises:
            OptionError: there is none, it is damaged, or others may read it.
        """
        path = self.folder / "own.json"
        try:
            if stat.S_IMODE(path.stat().st_mode) & 0o077:
                raise OptionError(f"the secret key {path} can be read by others.", f"chmod 600 {path}")
            content = json.loads(path.read_text(encoding="ascii"))
            return KeyPair(checked(content["public"]), checked(content["secret"]))
        except FileNotFoundError:
            raise OptionError(f"there is no key pair in {self.folder}.", "Make one: edgert keys make") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OptionError(
                f"the key pair {path} cannot be read: {error!r}.", "Remove it and make one: edgert keys make"
            ) from error

    def make(self) -> KeyPair:
        """A new pair for this machine, on disk whole or not at all.

        Raises:
            OptionError: there is one already, or the folder cannot be written.
        """
        path = self.folder / "own.json"
        pair = KeyPair.random()
        text = json.dumps({"public": pair.public, "secret": pair.secret})
        if not self._write(path, text, 0o600, replace=False):
            raise OptionError(
                f"there is a key pair already: {path}.", "Peers know it; remove it by hand to make another."
            )
        return pair

    def peers(self) -> Mapping[str, str]:
        """Name -> public key of those that may connect; a file that holds no key is reported and counts as none."""
        found: dict[str, str] = {}
        for path in sorted((self.folder / "peers").glob("*.pub")):
            try:
                found[path.stem] = checked(path.read_text(encoding="ascii").strip())
            except (OSError, ValueError, OptionError) as error:
                _log.warning("key of peer %s is ignored: %s", path, error)
        return found

    def allow(self, name: str, public: str) -> None:
        """Let the holder of a key connect, and know it by a name.

        Raises:
            OptionError: the name or the key is malformed, another key has that name, or the folder cannot be written.
        """
        path = self._peer(name)
        known = self.peers().get(name)
        if known not in (None, public):
            raise OptionError(f"peer {name!r} has another key already.", f"First: edgert keys remove {name}")
        self._write(path, checked(public) + "\n", 0o644, replace=True)

    def remove(self, name: str) -> None:
        """Forget a peer; connections that it has stay until they break.

        Raises:
            OptionError: there is no such peer.
        """
        try:
            self._peer(name).unlink()
        except FileNotFoundError:
            known = ", ".join(self.peers()) or "none"
            raise OptionError(f"there is no peer {name!r}.", f"Known: {known}.") from None
        except OSError as error:
            raise OptionError(f"peer {name!r} cannot be removed: {error.strerror}.") from error

    def key_of(self, peer: str) -> str:
        """The public key of a peer, by its name or as the key itself.

        Raises:
            OptionError: it is neither.
        """
        known = self.peers()
        if peer in known:
            return known[peer]
        if len(peer) == _KEY_LENGTH:
            return checked(peer)
        raise OptionError(
            f"there is no key for peer {peer!r}.",
            f"Ask its owner for `edgert keys list`, then: edgert keys allow {peer} KEY",
        )

    def _peer(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise OptionError(f"{name!r} is no name for a peer.", "Use letters, digits, '_', '-' and '.'.")
        return self.folder / "peers" / f"{name}.pub"

    def _write(self, path: Path, text: str, mode: int, *, replace: bool) -> bool:
        """Whole or not at all; False when it is there and must not be replaced."""
        temporary = ""
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="ascii") as file:
                temporary = file.name  # made 0600
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, mode)
            if replace:
                os.replace(temporary, path)
            else:
                os.link(temporary, path)
                os.unlink(temporary)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            if isinstance(error, FileExistsError) and temporary:
                return False
            raise OptionError(
                f"{path} cannot be written: {error.strerror or error}.", "Mend the folder, or set EDGERT_KEYS."
            ) from error
        return True


def checked(key: str) -> str:
    """A key in Z85, as it is.

    Raises:
        OptionError: it is none.
    """
    if not isinstance(key, str) or len(key) != _KEY_LENGTH or not _Z85.issuperset(key):
        raise OptionError(f"{str(key)[:60]!r} is no key.", "A key is 40 characters; copy it from `edgert keys list`.")
    return key


def _default_folder() -> Path:
    chosen = os.environ.get("EDGERT_KEYS")
    if chosen:
        return Path(chosen).expanduser().absolute()
    # Not Path.home(), which raises for the users of services, who have none: then there is no such file.
    return Path(os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")) / "edgert" / "keys"
