"""Building and installing, with tools and without them."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import pad_fast
from pad_fast._version import __version__

from ..support.build import load_build
from ..support.paths import ROOT, copy_tree

# Run first wherever pad_fast is imported from a folder of a test's own: an editable install in the environment
# of the tests would supply whatever that folder lacks.
ALONE = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if not getattr(f, "__module__", "").startswith("__editable__")]
for name in [name for name in sys.modules if name.startswith("__editable__")]:
    del sys.modules[name]
"""

pytestmark = pytest.mark.skipif(
    not (ROOT / "setup.py").is_file(), reason="the tests are not beside the sources they would build"
)


@pytest.fixture(scope="module")
def build() -> ModuleType:
    return load_build()


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without what steers the build, plus the changes."""
    steering = ("CC", "CXX", "CXXFLAGS", "LDFLAGS", "PAD_FAST_CUDA", "PAD_FAST_REQUIRE_EXTENSION")
    kept = {name: value for name, value in os.environ.items() if name not in steering}
    return {**kept, **changes}


def run(*command: str | Path, cwd: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment(**changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def install(*source: str | Path, target: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check", "-v"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", target, *source]
    return run(*command, cwd=target.parent, **changes)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source tree with what an editable install left in it, away from the original."""
    folder = tmp_path_factory.mktemp("source") / "pad_fast"
    copy_tree(folder, ".*", "build", "dist", "*.egg-info", "__pycache__", "golden")
    return folder


@pytest.fixture(scope="module")
def dists(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(sdist, wheel), the wheel built from the sdist, so that a file missing there is missed."""
    folder = tmp_path_factory.mktemp("dist")
    # Without CUDA, whose compiler would take longer than all other tests here together.
    done = run(
        *(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, copy),
        cwd=folder,
        PAD_FAST_CUDA="0",
        PAD_FAST_REQUIRE_EXTENSION="1",
    )
    assert done.returncode == 0, done.stdout
    (sdist,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def unpacked(dists: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    # Not TarFile.extractall(filter=...): early releases of Python 3.11 do not know it.
    shutil.unpack_archive(dists[0], folder)
    (root,) = folder.iterdir()
    return root


def tracked_modules() -> set[str]:
    """Every module, typing file, template and style sheet under its installed name."""
    return {
        f"{package}/{path.relative_to(ROOT / folder).as_posix()}"
        for package, folder in (("pad_fast", "pad_fast"), ("pad_fast/kernels", "kernels"))
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".pyi", ".html", ".css") or path.name == "py.typed"
    }


@pytest.mark.slow
def test_sdist_holds_every_source_and_no_build_product(unpacked: Path) -> None:
    assert unpacked.name == f"pad_fast-{__version__}"
    names = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    wanted = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    wanted |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "kernels").rglob("*.py")}
    wanted |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "pad_fast").rglob("*.py")}
    html = ROOT / "pad_fast" / "reporting" / "html"
    wanted |= {path.relative_to(ROOT).as_posix() for path in (*html.rglob("*.html"), html / "style.css")}
    wanted |= {
        "setup.py",
        "pyproject.toml",
        "LICENSE",
        "constraints.txt",
        "Makefile",
        "tests/project/test_packaging.py",
    }
    assert "csrc/scoring/score.h" in wanted
    assert wanted - names == set()
    assert {name for name in names if name.endswith((".so", ".pyc", "_build.json"))} == set()


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(dists: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(dists[1]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        record = json.loads(wheel.read("pad_fast/_build.json"))
    assert {name.partition("/")[0] for name in names} == {"pad_fast"}
    assert {"pad_fast/kernels/__init__.py", "pad_fast/py.typed", "pad_fast/_C.pyi"} <= tracked_modules()
    assert {f"pad_fast/reporting/html/{name}" for name in ("style.css", "templates/page.html")} <= tracked_modules()
    assert tracked_modules() - names == set()
    (extension,) = (name for name in names if name.endswith(".so"))
    assert extension.startswith("pad_fast/_C.")
    assert record["extension"] is True
    assert record["cuda_reason"] == "left out by PAD_FAST_CUDA=0"


@pytest.mark.slow
def test_wheel_installs_and_imports_elsewhere(dists: tuple[Path, Path], tmp_path: Path) -> None:
    target = tmp_path / "site"
    done = install(dists[1], target=target)
    assert done.returncode == 0, done.stdout
    program = """
import json, pad_fast, pad_fast.kernels, torch
from pad_fast.runtime import extension
from pad_fast.scoring import native
from pad_fast.reporting.report import ReportData, render_report
scores = native.el2n(torch.zeros(2, 4), torch.tensor([3, 1]))
assert "--accent" in render_report(ReportData("title")), "templates and style sheet are found where it is installed"
files = [pad_fast.__file__, pad_fast.kernels.__file__, extension.loaded().__file__]
print(json.dumps([pad_fast.__version__, scores.tolist(), files]))
"""
    # -P and another folder: nothing but the target can supply the package.
    done = run(sys.executable, "-P", "-c", ALONE + program, cwd=tmp_path, PYTHONPATH=str(target))
    assert done.returncode == 0, done.stdout
    version, scores, files = json.loads(done.stdout.splitlines()[-1])
    assert version == __version__
    assert scores == pytest.approx([0.75**0.5] * 2)
    assert all(Path(file).is_relative_to(target) for file in files), files
    assert (target / "bin" / "pad-fast").is_file()


@pytest.mark.slow
def test_editable_install_maps_both_folders(copy: Path, tmp_path: Path) -> None:
    target, source = tmp_path / "site", tmp_path / "source"
    shutil.copytree(copy, source)
    stale = source / "pad_fast" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    stale.touch()
    # Without a compiler, because the environment of these tests is itself an editable install with one.
    done = install("--editable", source, target=target, CXX="/nonexistent")
    assert done.returncode == 0, done.stdout
    assert not stale.exists()
    record = json.loads((source / "pad_fast" / "_build.json").read_text(encoding="utf-8"))
    assert record["extension"] is False
    # A target folder is no site folder; addsitedir runs the .pth file that the install consists of.
    program = f"""
import site
site.addsitedir({str(target)!r})
import pad_fast, pad_fast.kernels
from pad_fast.reporting.report import ReportData, render_report
assert "--accent" in render_report(ReportData("title"))
print(pad_fast.__file__, pad_fast.kernels.__file__, sep="\\n")
"""
    done = run(sys.executable, "-P", "-c", ALONE + program, cwd=tmp_path, PYTHONPATH=str(target))
    assert done.returncode == 0, done.stdout
    package, kernels = (Path(line).resolve() for line in done.stdout.splitlines()[-2:])
    assert package == (source / "pad_fast" / "__init__.py").resolve()
    assert kernels == (source / "kernels" / "__init__.py").resolve()


@pytest.mark.slow
def test_install_without_a_compiler_succeeds_and_says_so(unpacked: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    # What an earlier build in the same folder left behind must not be installed with it.
    stale = unpacked / "build" / f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}" / "pad_fast"
    stale.mkdir(parents=True)
    for name in ("deleted.py", f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"):
        (stale / name).touch()
    done = install(unpacked, target=target, CC="/nonexistent", CXX="/nonexistent")
    assert done.returncode == 0, done.stdout
    assert "installing without the extension: /nonexistent cannot be run" in done.stdout
    assert (stale / "errors.py").is_file(), "the build went elsewhere"
    assert not (target / "pad_fast" / "deleted.py").exists()
    assert not list(target.glob("pad_fast/_C.*.so"))
    program = (
        "from pad_fast.runtime import extension\n"
        "from pad_fast.runtime.environment import environment, format_environment\n"
        "assert extension.__file__.startswith(sys.argv[1]) and not extension.available()\n"
        "print(format_environment(environment()))"
    )
    done = run(sys.executable, "-P", "-c", ALONE + program, target, cwd=tmp_path, PYTHONPATH=str(target))
    assert done.returncode == 0, done.stdout
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("extension"))
    assert "no: it was not built when pad_fast was installed: /nonexistent cannot be run" in line


@pytest.mark.slow
def test_a_required_extension_stops_the_install(unpacked: Path, tmp_path: Path) -> None:
    done = install(unpacked, target=tmp_path / "site", CXX="/nonexistent", PAD_FAST_REQUIRE_EXTENSION="1")
    assert done.returncode != 0
    assert "the extension cannot be built: /nonexistent cannot be run" in done.stdout


def test_windows_is_refused_in_one_sentence(tmp_path: Path) -> None:
    # Read once before, for what it imports: the standard library has other files on Windows.
    program = f"import runpy, sys; name = {str(ROOT / 'setup.py')!r}; runpy.run_path(name)\n"
    program += "sys.platform = 'win32'; sys.argv[:] = [name, 'bdist_wheel']; runpy.run_path(name, run_name='__main__')"
    done = run(sys.executable, "-c", program, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == "pad_fast runs on Linux and macOS; on Windows, install it inside WSL 2.\n"
    assert list(tmp_path.iterdir()) == []


def test_links_of_the_description_lead_somewhere_on_a_package_index(build: ModuleType) -> None:
    text = "[a](docs/a.md#b) ![p](docs/p.png) [w](https://w.org) [h](#here)"
    source = "https://example.org/owner/name"
    assert build.description(text, source).split(" ") == [
        f"[a]({source}/blob/HEAD/docs/a.md#b)",
        f"![p]({source}/raw/HEAD/docs/p.png)",
        "[w](https://w.org)",
        "[h](#here)",
    ]
    assert build.description("[a](docs/a.md) ![p](p.png) [w](https://w.org)", None) == "a p [w](https://w.org)"


@pytest.mark.slow
def test_the_wheel_describes_itself(dists: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(dists[1]) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        fields, _, description = wheel.read(name).decode().partition("\n\n")
    lines = fields.splitlines()
    assert "Description-Content-Type: text/markdown" in lines
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["urls"] and {f"Project-URL: {key}, {url}" for key, url in project["urls"].items()} <= set(lines)
    links = re.findall(r"\]\(([^)\s]+)\)", description)
    assert description.startswith("# pad_fast\n") and all(link.startswith("https://") for link in links), links
    # torch brings the Triton that it works with; another one beside it is what this must not ask for.
    assert not any(line.startswith("Requires-Dist: triton") and "extra ==" not in line for line in lines)


def test_the_version_is_stated_once() -> None:
    assert pad_fast.__version__ == __version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
    assert __version__ not in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_constraints_pin_what_the_project_asks_for() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9.]+", pin) for pin in pins), pins
    pinned = {pin.partition("==")[0].lower().replace("_", "-") for pin in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    names = {re.match(r"[A-Za-z0-9_-]+", line).group().lower() for line in asked}  # type: ignore[union-attr]
    assert names - pinned == set()


def imported_packages() -> set[str]:
    """Other people's packages that the library imports anywhere, also by `import_module` and only when asked."""
    found: set[str] = set()
    for path in (ROOT / "pad_fast").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(str(node.module))
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
                found |= {part.value for part in node.args if isinstance(part, ast.Constant)}
    tops = {name.partition(".")[0] for name in found}
    return tops - sys.stdlib_module_names - {"pad_fast", "benchmarks"}


def test_what_is_imported_is_a_dependency_or_in_an_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: lines for name, lines in project["optional-dependencies"].items() if name != "test"}
    asked = [*project["dependencies"], *(line for lines in extras.values() for line in lines)]
    names = {re.match(r"[A-Za-z0-9_-]+", line).group().lower().replace("-", "_") for line in asked}  # type: ignore[union-attr]
    called = {"PIL": "pillow", "sklearn": "scikit_learn", "yaml": "pyyaml"}
    found = {called.get(name, name) for name in imported_packages()}
    assert {"datasets", "huggingface_hub", "matplotlib", "pyarrow", "timm", "torch", "wandb"} <= found
    assert found - names == set()
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    assert [name for name in ("hf", "medmnist", "plot", "timm") if f'".[{name}]"' not in text] == []


def test_every_source_has_flags_and_later_rows_win(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {path.name for path in build.sources(".cpp")} >= {"module.cpp", "score.cpp"}
    assert len(build.sources(".cpp")) == len(list((ROOT / "csrc").rglob("*.cpp")))
    for name in ("one.cpp", "fast/two.cpp", "fast/three_avx512.cpp", "four.cu"):
        path = tmp_path / "csrc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(build, "SOURCES", {**build.SOURCES, "csrc/**/*_avx512.cpp": ["-mavx512f"]})
    flags = {path.name: extra for path, extra in build.sources(".cpp").items()}
    assert flags == {"one.cpp": [], "two.cpp": [], "three_avx512.cpp": ["-mavx512f"]}
    monkeypatch.setenv("CXX", "ccache g++ -m64")
    steps = build.plan(tmp_path / "objects", "nvcc")
    assert len({step.output for step in steps}) == len(steps) == 5
    assert [step.output.name for step in steps if "-mavx512f" in step.command] == ["three_avx512.cpp.o"]
    (cuda,) = (step for step in steps if step.output.name == "four.cu.o")
    assert cuda.command[:3] == ["nvcc", "-ccbin", "g++"]
    assert steps[-1].command[0] == "nvcc"
    assert all("-DPAD_FAST_CUDA" in step.command for step in steps if step.output.name.endswith(".cpp.o"))
    without = build.plan(tmp_path / "objects", None)
    assert len(without) == 4
    assert without[-1].command[:3] == ["ccache", "g++", "-m64"]
    assert not any("-DPAD_FAST_CUDA" in step.command for step in without)


@pytest.fixture(params=["ninja", "plain"])
def builder(request: pytest.FixtureRequest, build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "ninja":
        assert build.find_ninja() is not None, "ninja is one of the test requirements"
    else:
        monkeypatch.setattr(build, "find_ninja", lambda: None)
    yield request.param


def copying(build: ModuleType, folder: Path) -> list[object]:
    """Two steps that copy a file on, as commands with characters that ninja and the shell treat specially."""
    source, middle, last = folder / "in: 1$", folder / "sub dir" / "mid$dle", folder / "last"
    source.write_text("content", encoding="utf-8")
    return [
        build.Step(middle, [source], ["cp", str(source), str(middle)]),
        build.Step(last, [middle], ["cp", str(middle), str(last)]),
    ]


def test_steps_run_in_odd_folders(build: ModuleType, builder: str, tmp_path: Path) -> None:
    folder = tmp_path / "a b:c$d"
    folder.mkdir()
    build.run_steps(folder, copying(build, folder))
    assert (folder / "last").read_text(encoding="utf-8") == "content"
    assert (folder / "build.ninja").is_file() == (builder == "ninja")


def test_a_failing_step_gives_the_compilers_reason(
    build: ModuleType, builder: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "compiler"
    script.write_text("echo compiling; echo 'x.cpp:3: error: no such thing'; exit 3", encoding="utf-8")
    step = build.Step(tmp_path / "never", [], ["sh", str(script)])
    with pytest.raises(build.BuildFailure, match=r"failed: x\.cpp:3: error: no such thing"):
        build.run_steps(tmp_path, [step])
    assert "no such thing" in capfd.readouterr().out


def test_compilers_are_looked_for(build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "ccache clang++ -m64")
    assert build.find_compiler() == ["ccache", "clang++", "-m64"]
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.BuildFailure, match="no C\\+\\+ compiler found"):
        build.find_compiler()
    tool = tmp_path / "clang++"
    tool.write_text("#!/bin/sh\necho one version 1\necho release 2\nexit $FAIL\n", encoding="utf-8")
    tool.chmod(0o755)
    assert build.find_compiler() == ["clang++"]
    assert build.version([str(tool)]) == "one version 1"
    assert build.version([str(tool)], "release") == "release 2"
    monkeypatch.setenv("FAIL", "4")
    with pytest.raises(build.BuildFailure, match="failed with exit status 4"):
        build.version([str(tool)])


def test_cuda_is_chosen_by_variable_and_by_what_is_there(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = tmp_path / "csrc" / "kernel.cu"
    nvcc = tmp_path / "cuda" / "bin" / "nvcc"
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(build, "NVCC_PLACES", ["nvcc"])
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    monkeypatch.delenv("PAD_FAST_CUDA", raising=False)
    assert build.choose_nvcc() == (None, "no CUDA sources in csrc/")
    source.parent.mkdir()
    source.touch()
    nothing, reason = build.choose_nvcc()
    assert nothing is None
    assert reason.startswith("nvcc not found")
    monkeypatch.setenv("PAD_FAST_CUDA", "1")
    with pytest.raises(build.BuildFailure, match="PAD_FAST_CUDA=1, but nvcc not found"):
        build.choose_nvcc()
    nvcc.parent.mkdir(parents=True)
    nvcc.touch(mode=0o755)
    assert build.choose_nvcc() == (str(nvcc), None)
    monkeypatch.setenv("PAD_FAST_CUDA", "0")
    assert build.choose_nvcc() == (None, "left out by PAD_FAST_CUDA=0")
    monkeypatch.setenv("PAD_FAST_CUDA", "yes")
    with pytest.raises(build.BuildFailure, match="must be 0, 1 or unset; got 'yes'"):
        build.choose_nvcc()
