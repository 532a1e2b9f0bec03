# SPDX-License-Identifier: Apache-2.0
"""Kernels of Debian releases, fetched by apt from the machine's own mirror and kept under build/vm.

apt runs with sources, lists, state and cache of its own, so that nothing of the machine's changes; what it
fetches is checked against Debian's keyring as ever.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

CACHE = Path(__file__).parents[2] / "build/vm"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
DESCRIPTION = "kernel.json"
TIMEOUT = 180
#: Debian releases and the kernel that each came with.
SUITES = {"bullseye": "5.10", "bookworm": "6.1"}

# Read after the machine's own settings (apt.conf(5): -c), of which a proxy stays in force.
_APT_CONF = """\
Dir::Etc::SourceList "{folder}/sources.list";
Dir::Etc::SourceParts "-";
Dir::State "{folder}/state";
Dir::State::Status "{folder}/state/status";
Dir::Cache "{folder}/cache";
APT::Architecture "amd64";
#clear APT::Architectures;
Acquire::Languages "none";
Acquire::Retries "3";
APT::Update::Error-Mode "any";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
"""


class KernelUnavailableError(Exception):
    """A kernel can't be had here; says what was expected and what was found."""


class Kernel(msgspec.Struct, frozen=True):
    """What lies in a folder of the cache: the package, and the image that is of it."""

    package: str
    version: str
    image: str
    sha256: str


def kernel(suite: str, cache: Path = CACHE) -> Path:
    """Return the image of a Debian release's newest cloud kernel; from the cache, if a whole one is there."""
    if (image := kept(cache / suite)) is not None:
        return image
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{suite}.", dir=cache) as temporary:
        Path(temporary).chmod(0o755)  # apt fetches as a user of its own
        folder = Path(temporary, suite)
        try:
            found = _fetch(suite, folder)
        except (OSError, subprocess.SubprocessError) as error:
            raise KernelUnavailableError(f"{suite}: no kernel fetched: {error}") from error
        (folder / DESCRIPTION).write_bytes(msgspec.json.encode(found))
        # The folder comes to its place when all is in it: half a download is never taken for a kernel.
        shutil.rmtree(cache / suite, ignore_errors=True)
        folder.rename(cache / suite)
    return cache / suite / found.image


def kept(folder: Path) -> Path | None:
    """Return the image in a folder of the cache if it is the one that was fetched."""
    try:
        found = msgspec.json.decode((folder / DESCRIPTION).read_bytes(), type=Kernel)
        return folder / found.image if sha256(folder / found.image) == found.sha256 else None
    except (OSError, msgspec.MsgspecError):
        return None


def sha256(path: Path) -> str:
    """Return a file's digest in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sources(targets: Sequence[str], codename: str, suite: str) -> str:
    """Return the sources of ``suite`` from the machine's own ones.

    ``targets`` are lines "address release" of all its sources; those of its own Debian release ``codename``
    are taken, with their updates and security releases.
    """
    own = []
    for uri, release in (line.split() for line in targets):
        if release.removesuffix("-updates").removesuffix("-security") == codename:
            own.append((uri, suite + release.removeprefix(codename)))
    return "".join(f"deb [signed-by={KEYRING}] {uri} {release} main\n" for uri, release in dict.fromkeys(own))


def newest_first(packages: Sequence[str], release: str) -> list[str]:
    """Return the cloud kernels of ``release``, the highest ABI number first."""
    # Backports of other kernels, named like 6.1.0-0.deb11.25, stand beside the release's own.
    own = re.compile(rf"linux-image-{re.escape(release)}\.0-(\d+)-cloud-amd64-unsigned")
    found = [(int(match[1]), name) for name in packages if (match := own.fullmatch(name))]
    return [name for _, name in sorted(found, reverse=True)]


def _fetch(suite: str, folder: Path) -> Kernel:
    apt = folder / "apt"
    text = sources(_targets(), _codename(), suite)
    folder.mkdir()
    _prepare(apt, text)
    settings = ("-c", apt / "apt.conf", "-q")
    tried = []
    try:
        _run("apt-get", *settings, "update")
    except KernelUnavailableError as error:  # a release may be gone from one address and be at the other
        tried.append(str(error))
    packages = _run("apt-cache", *settings, "pkgnames", "linux-image-").split()
    for package in newest_first(packages, SUITES[suite]):
        try:
            _run("apt-get", *settings, "download", package, folder=apt)
        except KernelUnavailableError as error:  # listed but gone, as happens to a release that has ended
            tried.append(str(error))
            continue
        return _unpack(package, apt)
    expected = f"linux-image-{SUITES[suite]}.0-*-cloud-amd64-unsigned"
    raise KernelUnavailableError(
        "\n".join(
            (f"{suite}: no package {expected} could be had from apt's mirror of this machine:", text, *tried)
        )
    )


def _unpack(package: str, apt: Path) -> Kernel:
    (deb,) = apt.glob("*.deb")
    _run("dpkg-deb", "-x", deb, apt / "unpacked")
    (image,) = (apt / "unpacked/boot").glob("vmlinuz-*")
    version = _run("dpkg-deb", "-f", deb, "Version").strip()
    image.rename(apt.parent / image.name)
    shutil.rmtree(apt)
    return Kernel(package, version, image.name, sha256(apt.parent / image.name))


def _prepare(apt: Path, text: str) -> None:
    for name in ("state/lists/partial", "cache/archives/partial"):
        (apt / name).mkdir(parents=True)
    (apt / "state/status").touch()
    (apt / "sources.list").write_text(text, "utf-8")
    (apt / "apt.conf").write_text(_APT_CONF.format(folder=apt), "utf-8")


def _targets() -> list[str]:
    return _run(
        "apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"
    ).splitlines()


def _codename() -> str:
    # os-release(5): the variables may be quoted as in a shell.
    lines = Path("/etc/os-release").read_text("utf-8").splitlines()
    found = dict(line.split("=", 1) for line in lines if "=" in line)
    return found.get("VERSION_CODENAME", "").strip("\"'")


def _run(*command: str | Path, folder: Path | None = None) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        errors="backslashreplace",
    )
    if done.returncode:
        raise KernelUnavailableError(
            f"{' '.join(map(str, command))}: exit code {done.returncode}: {done.stderr.strip()}"
        )
    return done.stdout
