"""Build the wheel and the source archive, and install both where no compiler is.

    make check-wheel

The clean place is a new environment with an empty home, a PATH of its own and no pip configuration;
where the system allows it, compilers and build tools are also hidden from who looks in /usr/bin all
the same, as CMake does. Packages come from the index, so a network is needed. Linux alone.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = "bluejay/kernels/_kernels.so"
NOT_BUILT = "not built: install a C++ compiler (Debian and Ubuntu: apt install g++)"
REFERENCE = "everything runs on the reference implementation"
TOOLS = re.compile(r"([\w.]+-)*(cc|c\+\+|gcc|g\+\+|c89|c99|clang|clang\+\+|cmake|ninja)(-[\d.]+)?")
KEPT = re.compile(r"\w*(CERT|CA_BUNDLE)\w*|https?_proxy|no_proxy|LANG", re.IGNORECASE)
SYSTEM_FOLDERS = (b"/proc", b"/sys", b"/dev", b"/lib", b"/usr/lib")
# Those that pip and a shell script of an environment call; no compiler among them.
COMMANDS = ("sh", "env", "uname", "ls", "cat", "rm", "mkdir", "getconf")


class Miss(Exception):  # noqa: N818  # what this script says instead of a traceback
    """A promise about the package that does not hold."""


def require(condition: object, promise: str, found: object = "") -> None:
    """Say that the promise holds, or raise Miss with what was found instead."""
    if not condition:
        raise Miss(f"{promise}: no. {found}".strip())
    print(f"ok   {promise}", flush=True)


# ---- building, and what the wheel holds ----


def build(out: Path) -> tuple[Path, Path]:
    """Source archive and, made from it, the wheel."""
    # Neither flags of this shell nor debugging information get into what others install.
    kept = {k: v for k, v in os.environ.items() if not k.endswith("FLAGS")}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(
        [Path(sys.executable).parent / "uv", "build", "--quiet", "--no-build-isolation", "--python",
         sys.executable, "--out-dir", out, ROOT],
        env=kept | {"PATH": path}, check=True,
    )  # fmt: skip
    return one(out, "*.tar.gz"), one(out, "*.whl")


def one(folder: Path, pattern: str) -> Path:
    """The only file of the pattern."""
    found = sorted(folder.glob(pattern))
    require(len(found) == 1, f"one {pattern} is built", [path.name for path in found])
    return found[0]


def check_wheel_file(wheel: Path, scratch: Path) -> Path:
    """Tag, members, paths, libraries and symbols; gives the library, unpacked."""
    machine = os.uname().machine
    tag = re.search(rf"-py3-none-((many)?linux_[\w.]*{machine})\.whl$", wheel.name)
    require(tag, "the wheel's tag is py3-none and Linux's, of this machine", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        require(LIBRARY in archive.namelist(), "the wheel holds the library", wheel.name)
        missing = sources() - set(archive.namelist())
        require(not missing, "it holds every file of the package", sorted(missing)[:10])
        paths = {str(ROOT).encode(), str(Path.home()).encode() + b"/", b"/site-packages/"}
        for name in archive.namelist():
            content = archive.read(name)
            found = [path.decode() for path in paths if path in content]
            if found:
                raise Miss(f"{name} holds the path {found[0]} of the machine that built it")
        library = Path(archive.extract(LIBRARY, scratch))
    check_library(library)
    return library


def sources() -> set[str]:
    """What git knows below src, by its name in a wheel."""
    command = ["git", "-C", ROOT / "src", "ls-files", "-z"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return set(listed.split("\0")) - {""}


def check_library(library: Path) -> None:
    """No path of the machine that built it; libraries and symbols that other systems have."""
    content = library.read_bytes()
    paths = set(re.findall(rb"(?:/[\w.+-]+){2,}", b"\n".join(printable(content))))
    foreign = sorted(path.decode() for path in paths if not path.startswith(SYSTEM_FOLDERS))
    require(not foreign, "the library holds no path of the machine that built it", foreign)
    dynamic = read_elf("-d", library)
    require(not re.search(r"R(UN)?PATH", dynamic), "it has no RPATH", dynamic)
    print("     it needs", ", ".join(re.findall(r"NEEDED.*\[(.*)\]", dynamic)))
    for prefix in ("GLIBC", "GLIBCXX", "CXXABI", "GCC"):
        versions = set(re.findall(rf"\b{prefix}_([\d.]+)", read_elf("-V", library)))
        print(f"     newest symbol of {prefix}: {max(versions, key=numbers, default='none')}")


def printable(content: bytes) -> Iterator[bytes]:
    """Runs of six and more printable characters, from the slash of a path on."""
    for run in re.findall(rb"[\x20-\x7e]{6,}", content):
        # Names of C++ functions and messages have slashes in the middle of words.
        yield from re.findall(rb"(?:^|(?<=[\s\"'=:]))/.*", run)


def numbers(version: str) -> list[int]:
    """For comparing versions."""
    return [int(number) for number in version.split(".")]


def read_elf(what: str, library: Path) -> str:
    """What readelf says."""
    done = subprocess.run(["readelf", "-W", what, library], capture_output=True, text=True)
    return done.stdout


def check_old_processor(library: Path) -> None:
    """The library on an emulated processor of 2008, which has no AVX: -march was not native."""
    emulator = shutil.which("qemu-x86_64")
    if os.uname().machine != "x86_64" or emulator is None:
        print("     not tried on an older processor: qemu-x86_64 is not here")
        return
    code = (
        "import ctypes, sys; f = ctypes.CDLL(sys.argv[1]).bluejay_instruction_set;"
        "f.restype = ctypes.c_char_p; print(f().decode())"
    )
    python = Path(sys.executable).resolve()
    command = [emulator, "-cpu", "Nehalem", python, "-I", "-S", "-c", code, library]
    done = subprocess.run(command, capture_output=True, text=True)
    require(done.stdout.strip() == "portable", "it loads on a processor without AVX", done)


# ---- the clean place ----


class CleanPlace:
    """An environment in which no compiler is found."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder / "env" / "bin"
        (folder / "bin").mkdir(parents=True)
        (folder / "home").mkdir()
        for name in COMMANDS:
            (folder / "bin" / name).symlink_to(shutil.which(name) or f"/bin/{name}")
        subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
        self._environment = {k: v for k, v in os.environ.items() if KEPT.fullmatch(k)} | {
            "HOME": str(folder / "home"),
            "PATH": f"{self.bin}:{folder / 'bin'}",
            "PIP_CONFIG_FILE": "/dev/null",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        self._hide = self._hiding_prefix()

    def _hiding_prefix(self) -> list[str]:
        """What comes before a command so that it sees no compiler, not even by its full path."""
        folders = [Path("/usr/bin"), Path("/usr/local/bin"), Path("/bin")]
        found = {p.resolve() for f in folders for p in f.iterdir() if TOOLS.fullmatch(p.name)}
        hide = "".join(f"mount --bind /dev/null '{p}' && " for p in sorted(found) if p.is_file())
        prefix = ["/usr/bin/unshare", "-rm", "/bin/sh", "-c", f'{hide}exec "$@"', "sh"]
        environment = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
        if subprocess.run([*prefix, "/bin/true"], env=environment, capture_output=True).returncode:
            # CMake, which looks in /usr/bin whatever PATH says, is told a name that is not there.
            self._environment["CXX"] = "/no/compiler"
            print("     compilers are hidden by PATH and CXX: this system lets nobody mount")
            return []
        print(f"     hidden: {len(found)} compilers and build tools")
        return prefix

    def run(self, *command: object) -> subprocess.CompletedProcess[str]:
        """The command in the clean place; what it prints is kept."""
        inner = ["/usr/bin/env", "-i", *(f"{k}={v}" for k, v in self._environment.items())]
        words = [*self._hide, *inner, *map(str, command)]
        environment = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
        return subprocess.run(
            words, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=3600
        )

    def require(self, *command: object) -> str:
        """What the command printed; Miss if it fails."""
        done = self.run(*command)
        if done.returncode:
            words = " ".join(map(str, command))
            raise Miss(
                f"{words} ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}"
            )
        return done.stdout

    def pip(self, *words: object) -> None:
        """Install into it."""
        print(f"     pip install {' '.join(Path(str(w)).name for w in words)} ...", flush=True)
        self.require(self.bin / "python", "-m", "pip", "install", "--quiet", *words)


def check_no_compiler(place: CleanPlace) -> None:
    """Neither a shell nor CMake's way of looking finds one."""
    code = (
        "import os, shutil\n"
        "names = 'cc', 'c++', 'gcc', 'g++', 'clang', 'clang++', 'cmake', 'ninja'\n"
        "print([n for n in names if shutil.which(n)])"
    )
    require(place.require(place.bin / "python", "-c", code).strip() == "[]", "no compiler is found")


def check_kernels(place: CleanPlace, case: str, is_right: Callable[[str], object]) -> None:
    """What the doctor says about kernels, in one line; and that the bundled model writes."""
    said = json.loads(place.require(place.bin / "bluejay", "doctor", "--json"))
    kernels = said["machine"]["kernels"]
    require(is_right(kernels) and "\n" not in kernels, f"{case}: the doctor knows", kernels)
    print(f"     kernels: {kernels}")
    text = place.require(
        place.bin / "bluejay", "generate", "Once upon a time", "--model", "bluejay-tiny",
        "--max-tokens", 12, "--temperature", 0,
    )  # fmt: skip
    require(text.strip(), f"{case}: bluejay-tiny writes", text)
    print(f"     {' '.join(text.split())}", flush=True)


def constraints(to: Path) -> Path:
    """The versions of requirements.lock, for pip's -c, which takes no hashes."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line.removesuffix(" \\") for line in lines if re.match(r"[\w.-]+==", line)]
    to.write_text("\n".join(pins) + "\n")
    return to


def check_installs(place: CleanPlace, archive: Path, wheel: Path) -> None:
    """The wheel; the wheel with its library damaged and lost; the source archive."""
    pins = constraints(place.folder / "constraints.txt")
    check_no_compiler(place)
    place.pip(wheel, "-c", pins)
    names = r"(portable|avx2|avx512|avx512_bf16|neon), \d+ threads"
    check_kernels(place, "the wheel", lambda said: re.fullmatch(names, said))
    code = "import bluejay; print(bluejay.__path__[0])"
    package = Path(place.require(place.bin / "python", "-c", code).strip())
    library = package.parent / LIBRARY
    library.write_bytes(library.read_bytes()[:5000])
    damaged = r"cannot be loaded \(.*\): install Bluejay again; " + REFERENCE
    check_kernels(place, "a library cut short", lambda said: re.fullmatch(damaged, said))
    library.unlink()
    is_reference = lambda said: said.startswith(NOT_BUILT) and said.endswith(REFERENCE)
    check_kernels(place, "a library lost", is_reference)
    place.pip("--force-reinstall", "--no-deps", archive)
    require(not library.exists(), "the source archive installs without a compiler", library)
    check_kernels(place, "the source archive", is_reference)


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="wheel-") as folder:
        try:
            print("     building source archive and wheel (a minute) ...", flush=True)
            archive, wheel = build(Path(folder) / "dist")
            print(f"     {archive.name}, {wheel.name}: {wheel.stat().st_size:,} bytes")
            library = check_wheel_file(wheel, Path(folder) / "unpacked")
            check_old_processor(library)
            check_installs(CleanPlace(Path(folder) / "clean"), archive, wheel)
        except (Miss, subprocess.CalledProcessError) as miss:
            print(f"MISS {miss}", file=sys.stderr)
            return 1
    print("the package installs and runs where no compiler is")
    return 0


if __name__ == "__main__":
    sys.exit(main())
