"""The Dockerfile's steps without Docker: `sudo python tests/clean_root.py FOLDER` (Debian).

Makes a Debian root of the base image's release in FOLDER, has every stage of a target run its
Dockerfile's own instructions there, each in namespaces of its own, starts what results as the image
would be started, asks it, and stops it. What it takes of this machine: apt's sources, pip's
configuration and certificates, and a Python, which stands where the base image has one. It needs
root, util-linux and mmdebstrap, and leaves FOLDER behind.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from dockerfile import Stage, read_dockerfile

ROOT = Path(__file__).parents[1]
APT_SOURCES = (Path("/etc/apt/sources.list"), Path("/etc/apt/sources.list.d/debian.sources"))
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
LIBRARIES = (
    *("ca-certificates", "netbase", "tzdata"),  # what the base image has beside its Python
    *("libbz2-1.0", "libffi8", "liblzma5", "libncursesw6", "libreadline8", "libsqlite3-0"),
    *("libssl3", "libuuid1", "zlib1g"),
)
BASE_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"}
KEY = "a-key-of-this-run"


def say(*told: object) -> None:
    """Print with the time, so that a log shows what took long."""
    print(time.strftime("%H:%M:%S"), *told, flush=True)


def bare_root(root: Path, release: str, python: Path) -> None:
    """A root as the base image's, with what is in the prefix ``python`` in /usr/local."""
    configuration = root.with_name("apt.conf")
    dump = subprocess.run(["apt-config", "dump", "Acquire"], capture_output=True, check=True).stdout
    configuration.write_bytes(dump)
    sources = [str(path) for path in APT_SOURCES if path.is_file() and path.stat().st_size]
    command = ["mmdebstrap", "--variant=minbase", f"--include={','.join(LIBRARIES)}"]
    command += [f"--aptopt={configuration}", release, str(root), *sources]
    subprocess.run(command, check=True)
    unwanted = shutil.ignore_patterns("site-packages", "__pycache__", "test", "*.a")
    library = root / "usr/local/lib"
    shutil.copytree(python / "lib", library, symlinks=True, ignore=unwanted, dirs_exist_ok=True)
    for program in python.glob("bin/python*"):
        shutil.copy(program, root / "usr/local/bin", follow_symlinks=False)
    subprocess.run(["chroot", root, "/sbin/ldconfig"], check=True)
    shutil.copy(CERTIFICATES, root / CERTIFICATES.relative_to("/"))


def pip_settings() -> tuple[dict[str, str], list[Path]]:
    """This machine's configuration of pip as variables, and the folders of what it names."""
    told = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    found = {}
    for line in told.splitlines():
        name, _, value = line.partition("=")
        key = name.rpartition(".")[2].replace("-", "_").upper()
        found[f"PIP_{key}"] = value.strip("'").replace("\\n", " ").strip()
    words = " ".join(found.values()).replace("file://", "").split()
    named = [Path(word) for word in words if Path(word).exists() and Path(word) != CERTIFICATES]
    folders = {Path("/", *path.parts[1:3]) for path in named if path.is_absolute()}
    return found, sorted(folders)


class Builder:
    """Stages of a Dockerfile as folders, made when they are first needed."""

    def __init__(self, folder: Path, python: Path) -> None:
        self._folder = folder
        self._python = python
        self._arguments, self._stages = read_dockerfile()
        self._pip, self._pip_folders = pip_settings()
        self._made: dict[str, tuple[Path, dict[str, str], str]] = {}

    def stage(self, name: str) -> tuple[Path, dict[str, str], str]:
        """The folder of a stage, its environment and its working directory."""
        if name not in self._made:
            found = self._stages.get(name)
            self._made[name] = self._base(name) if found is None else self._build(name, found)
        return self._made[name]

    def last(self, name: str) -> dict[str, str]:
        """The last instruction of each word in a stage and those that it starts from."""
        stage = self._stages.get(name)
        return {} if stage is None else {**self.last(stage.base), **dict(stage.instructions)}

    def _base(self, named: str) -> tuple[Path, dict[str, str], str]:
        image = self._arguments[named.strip("${}")]
        root = self._folder / "base"
        if not root.exists():
            say(f"{image}: a root of {image.rpartition('-')[2]} with {self._python}")
            bare_root(root, image.rpartition("-")[2], self._python)
        return root, dict(BASE_ENVIRONMENT), "/"

    def _build(self, name: str, stage: Stage) -> tuple[Path, dict[str, str], str]:
        below, inherited, place = self.stage(stage.base)
        root, environment, arguments = self._folder / name, dict(inherited), {}
        shutil.rmtree(root, ignore_errors=True)
        subprocess.run(["cp", "--archive", "--reflink=auto", below, root], check=True)
        for word, rest in stage.instructions:
            say(f"{name}: {word} {' '.join(rest.split())[:90]}")
            if word == "ENV":
                for pair in shlex.split(rest):
                    key, _, value = pair.partition("=")
                    environment[key] = expand(value, environment | arguments)
            elif word == "ARG":
                key, _, value = rest.partition("=")
                arguments[key] = os.environ.get(key, value)
            elif word == "WORKDIR":
                place = rest
                (root / place.strip("/")).mkdir(parents=True, exist_ok=True)
            elif word == "COPY":
                self._copy(rest.split(), root, place)
            elif word == "RUN":
                self._run(rest, root, place, environment | arguments)
        return root, environment, place

    def _copy(self, words: list[str], root: Path, place: str) -> None:
        source = ROOT
        if words[0].startswith("--from="):
            source, *_ = self.stage(words.pop(0).removeprefix("--from="))
        *names, target = words
        to = root / os.path.normpath(os.path.join(place, target)).strip("/")
        for name in names:
            one = source / name.strip("/")
            into = to / one.name if target.endswith("/") else to
            into.parent.mkdir(parents=True, exist_ok=True)
            if one.is_dir():
                unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
                ignore = unwanted if source == ROOT else None  # as .dockerignore says
                shutil.copytree(one, into, symlinks=True, ignore=ignore, dirs_exist_ok=True)
            else:
                shutil.copy(one, into)

    def _run(self, rest: str, root: Path, place: str, environment: Mapping[str, str]) -> None:
        binds = {str(folder): str(folder) for folder in self._pip_folders}
        while found := re.match(r"--mount=(\S+)\s+(.*)", rest, re.DOTALL):
            mount = dict(part.split("=", 1) for part in found[1].split(","))
            rest = found[2]
            if mount["type"] == "cache":
                cache = self._folder / "cache"
                cache.mkdir(exist_ok=True)
                binds[mount["target"]] = str(cache)
            else:
                source, *_ = self.stage(mount["from"])
                binds[mount["target"]] = str(source / mount["source"].strip("/"))
        inside = f"cd {shlex.quote(place)} && {rest}"
        within(root, ["/bin/sh", "-c", inside], {**self._pip, **environment}, binds)


def expand(value: str, known: Mapping[str, str]) -> str:
    """``$NAME`` and ``${NAME}``."""
    return re.sub(r"\$\{?(\w+)\}?", lambda match: known.get(match[1], ""), value)


def command_within(
    root: Path,
    command: list[str],
    environment: Mapping[str, str],
    binds: Mapping[str, str],
    user: str,
) -> list[str]:
    """A command line that runs ``command`` in ``root``, its mounts gone with it."""
    script = [f"mount --rbind /dev {root}/dev", f"mount -t proc proc {root}/proc"]
    script += [f"mount --bind {source} {root}{target}" for target, source in binds.items()]
    given = [f"{key}={value}" for key, value in environment.items()]
    chroot = ["chroot", f"--userspec={user}", str(root), "/usr/bin/env", "-i", *given, *command]
    script += [f"exec {shlex.join(chroot)}"]
    namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
    return [*namespaces, "/bin/sh", "-ec", "\n".join(script)]


def within(
    root: Path, command: list[str], environment: Mapping[str, str], binds: Mapping[str, str]
) -> None:
    """Run as root, with this machine's names of hosts. Raises CalledProcessError."""
    names = root / "etc/resolv.conf"
    shutil.copy("/etc/resolv.conf", names)
    made = [root / target.strip("/") for target in binds if not (root / target.strip("/")).exists()]
    for target in binds:
        (root / target.strip("/")).mkdir(parents=True, exist_ok=True)
    line = command_within(root, command, environment, binds, "0:0")
    subprocess.run(line, check=True)
    for target in made:
        target.rmdir()
    names.unlink()


def sizes(root: Path, base: Path) -> None:
    """What takes the room: files of the base, of all of it, and of what is installed, MB."""
    packages = sorted((root / "opt/innerloop").glob("lib/python*/site-packages/*"))
    for part in (base, root, *packages):
        told = subprocess.run(["du", "-smx", part], capture_output=True, text=True, check=True)
        megabytes = int(told.stdout.split()[0])
        if megabytes >= 20:
            say(f"{megabytes:6} MB {part.name}")


def try_out(root: Path, environment: dict[str, str], place: str, said: Mapping[str, str]) -> None:
    """Start the image as Docker would, ask it, stop it; ``said`` are its last instructions."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**environment, "INNERLOOP_PORT": port, "INNERLOOP_API_KEYS": f"shop:{KEY}"}
    entry = shlex.join([*json.loads(said["ENTRYPOINT"]), *json.loads(said["CMD"])])
    command = ["/bin/sh", "-c", f"cd {place} && exec {entry}"]
    line = command_within(root, command, environment, {}, said["USER"])
    begin_s = time.monotonic()
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    say(process.stdout.readline().strip() or "it did not start")
    say(f"after {time.monotonic() - begin_s:.1f} s")
    (server,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    try:
        users = [line for line in status(server) if line.startswith(("Uid", "Gid", "CapEff"))]
        say("the process:", *users)
        health = said["HEALTHCHECK"]
        check = json.loads(health[health.index("CMD") + 3 :])
        subprocess.run(command_within(root, check, environment, {}, said["USER"]), check=True)
        say("the image's health check: healthy")
        body = json.dumps({"session_id": "first", "prompt": "hello", "max_tokens": 8}).encode()
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        asked = urllib.request.Request(f"http://127.0.0.1:{port}/generate", body, headers)
        with urllib.request.urlopen(asked, timeout=600) as answer:
            say("POST /generate:", answer.status, answer.read()[:200].decode())
    finally:
        begin_s = time.monotonic()
        os.kill(int(server), signal.SIGTERM)
        say(f"SIGTERM: exit code {process.wait()} after {time.monotonic() - begin_s:.1f} s")


def status(pid: str) -> list[str]:
    """What /proc says of a process, blanks as one."""
    return [" ".join(line.split()) for line in Path(f"/proc/{pid}/status").read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the roots go; some GB")
    parser.add_argument("--target", default="cpu", help="stage of the Dockerfile (default: cpu)")
    parser.add_argument(
        "--python", type=Path, default=Path(sys.base_prefix), help="prefix of the Python to take"
    )
    args = parser.parse_args()
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    builder = Builder(folder, args.python.resolve())
    root, environment, place = builder.stage(args.target)
    sizes(root, folder / "base")
    try_out(root, environment, place, builder.last(args.target))


if __name__ == "__main__":
    main()
