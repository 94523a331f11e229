"""Builds `pad_fast._C`; everything else about the package stands in pyproject.toml.

The extension is optional. When it cannot be built the install goes on without it, and the reason is written
to `pad_fast/_build.json` inside the install, where `pad-fast env` finds it. Environment variables:

    CXX, CXXFLAGS, LDFLAGS             the C++ compiler and flags to add
    MAX_JOBS                           compilers to run at once (default: ninja decides)
    PAD_FAST_CUDA=0 | 1                leave the .cu sources out | fail when they cannot be built
    PAD_FAST_REQUIRE_EXTENSION=1       fail when the extension cannot be built (continuous integration)
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent

# Package name -> its folder. Sub-packages of each are found in the folder.
PACKAGES = {"pad_fast": "pad_fast", "pad_fast.kernels": "kernels"}

# Sources of pad_fast._C (glob, from the root) -> flags on top of the common ones. A file that several rows
# match takes the last one's flags, so a group built for one instruction set gets a row below the general one.
# -ffp-contract=fast lets a * b + c round once, on every machine that can.
X86 = platform.machine() in ("x86_64", "AMD64")
VECTOR = ["-ffp-contract=fast", "-Wno-psabi"]
AVX2 = [*VECTOR, *(["-mavx2", "-mfma"] if X86 else [])]
AVX512 = ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"]
AVX512 = [*VECTOR, *(AVX512 if X86 else [])]
SOURCES: dict[str, list[str]] = {
    "csrc/**/*.cpp": [],
    "csrc/**/*.cu": [],
    "csrc/**/isa_baseline.cpp": VECTOR,
    "csrc/**/isa_avx2.cpp": AVX2,
    "csrc/**/isa_avx512.cpp": AVX512,
    "csrc/**/isa_amx.cpp": AVX512,
}
# Flags that a source gets from a compiler that knows them; without them it compiles to nothing.
OPTIONAL_FLAGS = {"csrc/unroll/isa/isa_amx.cpp": ["-mamx-tile", "-mamx-bf16"] if X86 else []}

# -fno-math-errno and -fno-trapping-math are the parts of -ffast-math that leave NaN and infinity alone.
# -ffast-math itself must not reach the linker: it would switch the importing thread to flush-to-zero.
CXX_FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
CXX_FLAGS += ["-Wall", "-Wextra", "-pthread"]
NVCC_FLAGS = ["-O3", "-std=c++17", "-Xcompiler=-fPIC,-fvisibility=hidden", "--expt-relaxed-constexpr"]
# Machine code for A100 and H100, and PTX for what comes after them.
NVCC_FLAGS += ["-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90,code=[sm_90,compute_90]"]

# Where nvcc is looked for after CUDA_HOME and CUDA_PATH.
NVCC_PLACES = ["nvcc", "/usr/local/cuda/bin/nvcc"]


# A link or picture of README.md to a file of the source tree, in Markdown: (!), text, path.
RELATIVE_LINK = re.compile(r"(!?)\[([^\[\]]*)\]\((?!\w+:|#)([^)\s]+)\)")


class BuildFailure(Exception):
    """The extension cannot be built; the message is the reason shown by `pad-fast env`."""


@dataclass(frozen=True)
class Step:
    """One command of the build and the file it makes."""

    output: Path
    inputs: list[Path]
    command: list[str]


def packages() -> list[str]:
    """Every package, with kernels/ under its installed name."""
    found = []
    for name, folder in PACKAGES.items():
        found += [name, *(f"{name}.{package}" for package in find_packages(str(ROOT / folder)))]
    return found


def sources(suffix: str) -> dict[Path, list[str]]:
    """The sources with that suffix and the extra flags of each, in a fixed order."""
    return {
        path: flags
        for pattern, flags in SOURCES.items()
        for path in sorted(ROOT.glob(pattern))
        if path.suffix == suffix
    }


def require_platform(platform: str) -> None:
    """Stop where the package would install and then fail at its first import (locks on files are POSIX's)."""
    if platform == "win32":
        raise SystemExit("pad_fast runs on Linux and macOS; on Windows, install it inside WSL 2.")


def description(readme: str, source: str | None) -> str:
    """README.md for a package index, where paths of the source tree lead nowhere.

    Args:
        source: where the source tree is on the web, "https://github.com/OWNER/NAME"; None leaves the links' texts.
    """

    def absolute(link: re.Match[str]) -> str:
        picture, text, path = link.groups()
        return f"{picture}[{text}]({source}/{'raw' if picture else 'blob'}/HEAD/{path})" if source else text

    return RELATIVE_LINK.sub(absolute, readme)


def version(tool: list[str], word: str = "") -> str:
    """The first line containing `word` of what a compiler says about its version.

    Raises:
        BuildFailure: the compiler is missing or does not run.
    """
    command = [*tool, "--version"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except OSError as error:
        raise BuildFailure(f"{command[0]} cannot be run ({error.strerror})") from error
    except subprocess.CalledProcessError as error:
        raise BuildFailure(f"{shlex.join(command)} failed with exit status {error.returncode}") from error
    return next((line for line in done.stdout.splitlines() if word in line), tool[0])


def find_compiler() -> list[str]:
    """$CXX when set, otherwise the first C++ compiler there is.

    Raises:
        BuildFailure: there is none.
    """
    if named := os.environ.get("CXX"):
        return shlex.split(named)
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise BuildFailure("no C++ compiler found (looked for c++, g++ and clang++); install one or set CXX")


def accepts(compiler: list[str], flags: list[str]) -> bool:
    """Whether the compiler knows these flags."""
    command = [*compiler, *flags, "-x", "c++", "-fsyntax-only", "-"]
    try:
        return subprocess.run(command, input="", capture_output=True, text=True).returncode == 0
    except OSError as error:
        raise BuildFailure(f"{compiler[0]} cannot be run ({error.strerror})") from error


def find_nvcc() -> str:
    """The CUDA compiler of $CUDA_HOME, of the PATH, or of the usual place.

    Raises:
        BuildFailure: there is none.
    """
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    named = [str(Path(home, "bin", "nvcc")) for home in homes if home]
    for candidate in [*named, *NVCC_PLACES]:
        if path := shutil.which(candidate):
            return path
    raise BuildFailure("nvcc not found (looked in CUDA_HOME, the PATH and /usr/local/cuda)")


def find_ninja() -> str | None:
    """The ninja executable: beside the Python package of that name, or on the PATH (as in isolated builds)."""
    try:
        import ninja
    except ImportError:
        return shutil.which("ninja")
    return shutil.which("ninja", path=ninja.BIN_DIR) or shutil.which("ninja")


def include_flags() -> list[str]:
    """Where Python.h and pybind11 are.

    Raises:
        BuildFailure: pybind11 is missing, which only a build without isolation can bring about.
    """
    try:
        import pybind11
    except ImportError as error:
        raise BuildFailure("pybind11 is not installed; pip install pybind11, or build with isolation") from error
    paths = sysconfig.get_paths()
    folders = dict.fromkeys([pybind11.get_include(), paths["include"], paths["platinclude"]])
    # -isystem: warnings in other people's headers are not ours to mend.
    return [flag for folder in folders for flag in ("-isystem", folder)]


def plan(folder: Path, nvcc: str | None) -> list[Step]:
    """The commands that make `folder`/_C.so; the last one links."""
    cxx = find_compiler()
    # $CXX may be "ccache g++ -m64"; nvcc wants the compiler alone.
    host = ["-ccbin", [word for word in cxx if not word.startswith("-")][-1]]
    common = [f"-I{ROOT / 'csrc'}", *include_flags()]
    own_flags = shlex.split(os.environ.get("CXXFLAGS", ""))
    steps = []

    def add(source: Path, command: list[str]) -> None:
        output = folder / source.relative_to(ROOT).with_suffix(source.suffix + ".o")
        dependencies = ["-MD", "-MF", f"{output}.d"]
        steps.append(Step(output, [source], [*command, *dependencies, "-c", str(source), "-o", str(output)]))

    for source, extra in sources(".cpp").items():
        cuda = ["-DPAD_FAST_CUDA"] if nvcc else []
        optional = OPTIONAL_FLAGS.get(source.relative_to(ROOT).as_posix(), [])
        if optional and accepts(cxx, optional):
            extra = [*extra, *optional]
        add(source, [*cxx, *CXX_FLAGS, *cuda, *common, *extra, *own_flags])
    if nvcc:
        for source, extra in sources(".cu").items():
            add(source, [nvcc, *host, *NVCC_FLAGS, f"-I{ROOT / 'csrc'}", *extra])

    link = [*cxx, "-shared", "-pthread"]
    ld_flags = shlex.split(os.environ.get("LDFLAGS", ""))
    if nvcc:
        # nvcc knows where its static runtime is. It would split "-Wl,x" at the comma.
        link = [nvcc, *host, "-shared", "-cudart=static"]
        ld_flags = [f"-Xcompiler={flag}".replace(",", "\\,") for flag in ld_flags]
    if sys.platform == "darwin":
        link += ["-undefined", "dynamic_lookup"]
    objects = [step.output for step in steps]
    output = folder / "_C.so"
    return [*steps, Step(output, objects, [*link, *map(str, objects), *ld_flags, "-o", str(output)])]


def run_steps(folder: Path, steps: list[Step]) -> None:
    """Run the commands, in parallel and only where out of date if there is a ninja, else one by one.

    Raises:
        BuildFailure: one of them fails; its output has been printed.
    """
    for step in steps:
        step.output.parent.mkdir(parents=True, exist_ok=True)
    if ninja := find_ninja():
        (folder / "build.ninja").write_text(ninja_file(steps), encoding="utf-8")
        jobs = os.environ.get("MAX_JOBS")
        commands = [[ninja, "-C", str(folder), *(["-j", jobs] if jobs else [])]]
    else:
        commands = [step.command for step in steps]
    for command in commands:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        print(done.stdout, end="", flush=True)
        if done.returncode:
            lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
            errors = [line for line in lines if re.search(r"\berror\b", line, re.IGNORECASE)]
            reason = (errors or lines[-1:] or [f"exit status {done.returncode}"])[0]
            raise BuildFailure(f"{Path(command[0]).name} failed: {reason}")


def ninja_file(steps: list[Step]) -> str:
    """The build as ninja reads it; each step brings its command along."""

    def escape(text: str) -> str:
        return text.replace("$", "$$").replace(":", "$:").replace(" ", "$ ")

    # ninja moves what the compiler writes about included headers (the depfile) into its own database.
    lines = [
        "rule compile",
        "  command = $step",
        "  depfile = $out.d",
        "  deps = gcc",
        "",
        "rule link",
        "  command = $step",
        "",
    ]
    for step in steps:
        rule = "compile" if "-c" in step.command else "link"
        inputs = " ".join(escape(str(path)) for path in step.inputs)
        lines.append(f"build {escape(str(step.output))}: {rule} {inputs}")
        lines.append(f"  step = {shlex.join(step.command).replace('$', '$$')}")
    return "\n".join([*lines, ""])


def choose_nvcc() -> tuple[str | None, str | None]:
    """(nvcc or None, why None), following PAD_FAST_CUDA.

    Raises:
        BuildFailure: PAD_FAST_CUDA=1 asks for CUDA and there is no nvcc, or its value is neither 0 nor 1.
    """
    wanted = os.environ.get("PAD_FAST_CUDA", "")
    if wanted not in ("", "0", "1"):
        raise BuildFailure(f"PAD_FAST_CUDA must be 0, 1 or unset; got {wanted!r}")
    if wanted == "0":
        return None, "left out by PAD_FAST_CUDA=0"
    if not sources(".cu"):
        return None, "no CUDA sources in csrc/"
    try:
        return find_nvcc(), None
    except BuildFailure as failure:
        if wanted == "1":
            raise BuildFailure(f"PAD_FAST_CUDA=1, but {failure}") from failure
        return None, str(failure)


class BuildPython(build_py):
    """Copies the modules into an empty folder: one deleted from the tree must not live on in the next wheel."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib, "pad_fast"), ignore_errors=True)
        super().run()


class BuildExtension(build_ext):
    """Compiles csrc/ by a plan of our own and records how that went."""

    def run(self) -> None:
        super().run()
        package = Path(self.build_lib, "pad_fast")
        if self.inplace:
            package = ROOT / PACKAGES["pad_fast"]
            if not self.record["extension"]:
                # What an earlier build left there does not belong to these sources.
                (package / self.get_ext_filename("_C")).unlink(missing_ok=True)
        package.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.record, indent=2, ensure_ascii=False) + "\n"
        (package / "_build.json").write_text(text, encoding="utf-8")

    def build_extensions(self) -> None:
        (extension,) = self.extensions
        required = os.environ.get("PAD_FAST_REQUIRE_EXTENSION") == "1"
        self.record: dict[str, object] = dict.fromkeys(["reason", "compiler", "cuda", "cuda_reason"])
        self.record.update(extension=False, python=platform.python_version())
        try:
            nvcc, self.record["cuda_reason"] = choose_nvcc()
        except BuildFailure as failure:
            raise SystemExit(f"pad_fast: {failure}") from failure
        try:
            self.record["compiler"] = version(find_compiler())
            self.compile(extension, nvcc)
        except BuildFailure as failure:
            if required:
                raise SystemExit(f"pad_fast: the extension cannot be built: {failure}") from failure
            print(f"pad_fast: installing without the extension: {failure}", file=sys.stderr)
            self.record["reason"] = str(failure)
            self.extensions.clear()
        else:
            self.record["extension"] = True

    def compile(self, extension: Extension, nvcc: str | None) -> None:
        """Build the library, without CUDA if only that fails and was not insisted upon."""
        # An editable install gets a new build_temp every time; a lasting folder makes rebuilds incremental.
        folder = Path(self.build_temp).resolve()
        if self.editable_mode:
            folder = ROOT / "build" / f"editable-{sysconfig.get_config_var('SOABI')}"
        try:
            steps = plan(folder, nvcc)
            run_steps(folder, steps)
        except BuildFailure as failure:
            if not nvcc:
                raise
            if os.environ.get("PAD_FAST_CUDA") == "1":
                raise SystemExit(f"pad_fast: PAD_FAST_CUDA=1, but the build fails: {failure}") from failure
            print(f"pad_fast: building without CUDA: {failure}", file=sys.stderr)
            self.record["cuda_reason"] = str(failure)
            self.compile(extension, None)
            return
        self.record["cuda"] = version([nvcc], "release") if nvcc else None
        library = Path(self.get_ext_fullpath(extension.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(steps[-1].output, library)


if __name__ == "__main__":
    require_platform(sys.platform)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    setup(
        long_description=description((ROOT / "README.md").read_text(encoding="utf-8"), project["urls"].get("Source")),
        long_description_content_type="text/markdown",
        packages=packages(),
        package_dir=PACKAGES,
        ext_modules=[Extension("pad_fast._C", sources=[])],
        cmdclass={"build_py": BuildPython, "build_ext": BuildExtension},
    )
