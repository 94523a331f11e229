"""`benchmarks.gpu_check` without a GPU: its stages as far as they go, and what is left when something ends them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_check import carried, check, dealing, results, stages, tree
from benchmarks.gpu_check.__main__ import main
from benchmarks.gpu_check.processes import Part, Surroundings

from ..support.paths import ROOT

FILES = {results.ARCHIVE, results.SUMMARY, results.REPORT, results.NUMBERS}


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A copied tree and logs of this test's own."""
    monkeypatch.setattr(tree, "TREE", tmp_path / "tree")
    monkeypatch.setattr(tree, "LOGS", tmp_path / "logs")
    return tmp_path


def report_of(out: Path) -> dict[str, dict[str, Any]]:
    """The parts by name, after a look at the four files."""
    assert {path.name for path in out.iterdir()} == FILES
    assert json.loads((out / results.NUMBERS).read_text())["suite"] == "gpu"
    report = json.loads((out / results.REPORT).read_text())
    parts = {part["name"]: part for part in report["parts"]}
    summary = (out / results.SUMMARY).read_text()
    assert all(part["name"] in summary and part["state"] in summary for part in report["parts"])
    return parts


def logs_of(out: Path) -> dict[str, str]:
    with tarfile.open(out / results.ARCHIVE) as archive:
        return {
            Path(member.name).name: archive.extractfile(member).read().decode()  # type: ignore[union-attr]
            for member in archive.getmembers()
        }


def test_the_check_writes_its_results_although_parts_fail(place, monkeypatch, capsys):
    have = tree.importable
    monkeypatch.setattr(tree, "importable", lambda names: {**have(names), "pybind11": False})
    assert main(["--out", str(place / "out"), "--device", "cpu", "--scale", "0.02"]) == 1
    parts = report_of(place / "out")
    assert [*parts] == ["modules", "sources", *[*stages.STAGES][:9], "extension", *[*stages.STAGES][9:]]
    states = {name: part["state"] for name, part in parts.items()}
    assert states["modules"] == states["sources"] == "ok"
    skipped = {"routes", "extension", "tests", "scores", "sanitizer", "reproduce"}
    assert {name for name, state in states.items() if state == "skipped"} == skipped
    assert {states[name] for name in ("smoke", "headline", "training", "variants", "rivals")} <= {"timed out", "failed"}
    assert "need a GPU" in parts["tests"]["detail"] and "--data" in parts["reproduce"]["detail"]
    assert (place / "tree" / "pad_fast" / "kernels" / "launch.py").is_file()
    said = capsys.readouterr().out
    assert all(name in said for name in (*states, *FILES))


@pytest.mark.slow
def test_a_stage_alone_and_what_it_found(place, monkeypatch, capsys):
    monkeypatch.setitem(stages.STAGES, "smoke", stages.Stage(60, ""))
    monkeypatch.setitem(stages.STAGES, "matching", stages.Stage(60, ""))
    main(["--out", str(place / "out"), "--device", "cpu", "--stage", "matching,smoke"])
    parts = report_of(place / "out")
    assert [*parts] == ["modules", "sources", "smoke", "matching"] and parts["matching"]["state"] == "ok"
    said = capsys.readouterr().out
    assert "right  a training run, soft labels (3x8x8, D2 W4), float64: error " in said and "depth mask" in said
    assert said.index("right  a training run") < said.index("matching      ok"), "a table comes after its stage"
    assert "TFLOP/s" in "".join(parts["smoke"]["table"]) and "GB/s" in "".join(parts["smoke"]["table"])
    numbers = json.loads((place / "out" / results.NUMBERS).read_text())
    assert {row["stage"] for row in numbers["rows"]} == {"matching"}
    assert [row["name"] for row in numbers["ceilings"]["rows"]] == ["copy", "product, tf32", "product, bf16"]
    assert {"smoke.log", "matching.log", "verdict.json"} <= {*logs_of(place / "out")}


def test_there_is_no_such_stage(capsys):
    with pytest.raises(SystemExit):
        main(["--out", "x", "--stage", "smoke,headlines"])
    assert "there is no stage 'headlines'; there are compile, smoke, headline" in capsys.readouterr().err
    assert stages.parse("headline,smoke") == ["smoke", "headline"]


def test_every_stage_is_short_and_says_what_it_does():
    assert all(stage.seconds < 180 and stage.about for stage in stages.STAGES.values())
    text = (ROOT / "docs" / "gpu_engine.md").read_text(encoding="utf-8")
    for name, stage in stages.STAGES.items():
        assert f"| {name} | {stage.seconds:.0f} |" in text


def test_a_crash_of_a_stage_costs_that_stage(place, monkeypatch):
    def crash(self: check.Check) -> Part:
        raise RuntimeError("planted")

    monkeypatch.setattr(check.Check, "_profile", crash)
    assert main(["--out", str(place / "out"), "--device", "cpu", "--stage", "profile,routes"]) == 1
    parts = report_of(place / "out")
    assert (parts["profile"]["state"], parts["profile"]["detail"]) == ("failed", "RuntimeError: planted")
    assert parts["routes"]["state"] == "skipped"
    assert "Traceback" in logs_of(place / "out")["profile-crash.log"]


def test_a_program_that_dies_leaves_its_whole_stderr(place):
    where = Surroundings(place, os.environ)
    program = (
        "import sys; print('far', flush=True); [print('line', n, file=sys.stderr) for n in range(500)]; sys.exit(3)"
    )
    part = where.run("x", [sys.executable, "-c", program], place / "x.log", seconds=20)
    assert (part.state, part.detail) == ("failed", "exit status 3: line 499")
    assert "line 0\n" in (place / "x.log").read_text()
    hangs = where.run("x", [sys.executable, "-c", "import time; time.sleep(60)"], place / "y.log", seconds=0.5)
    assert hangs.state == "timed out" and hangs.seconds < 20


RUN = """
import sys
from pathlib import Path
from benchmarks.gpu_check import tree
tree.TREE, tree.LOGS = Path(sys.argv[1], "tree"), Path(sys.argv[1], "logs")
from benchmarks.gpu_check.__main__ import main
sys.exit(main(["--out", sys.argv[1] + "/out", "--device", "cpu", "--stage", "smoke,matching"]))
"""


def running(place: Path) -> subprocess.Popen[bytes]:
    """A check in the middle of its smoke stage, of which the ceilings are known."""
    process = subprocess.Popen([sys.executable, "-c", RUN, str(place)], cwd=ROOT, stdout=subprocess.DEVNULL)
    limit = time.monotonic() + 120
    while not (place / "logs" / "ceilings.json").exists():
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.1)
    return process


def left_behind(words: Path | str) -> list[int]:
    """Processes that have these words in their command."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:
            continue
        if str(words).encode() in command:
            found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_whoever_stops_it_has_what_was_found(tmp_path, number):
    process = running(tmp_path)
    assert left_behind(tmp_path / "logs")
    process.send_signal(number)
    assert process.wait(timeout=30) == 1
    parts = report_of(tmp_path / "out")
    assert [*parts] == ["modules", "sources", "smoke"]
    assert (parts["smoke"]["state"], parts["smoke"]["detail"]) == ("stopped", f"by {number.name}")
    assert json.loads((tmp_path / "out" / results.NUMBERS).read_text())["ceilings"]["rows"]
    assert "product, bf16" in logs_of(tmp_path / "out")["smoke.log"]
    assert not left_behind(tmp_path / "logs")


def test_whoever_kills_it_has_what_was_found_a_moment_before(tmp_path):
    process = running(tmp_path)
    time.sleep(results.REFRESH + 1)
    process.kill()
    process.wait()
    for number in left_behind(tmp_path / "logs"):
        os.kill(number, signal.SIGKILL)
    for part in (tmp_path / "out").glob(".*.part"):
        part.unlink()
    parts = report_of(tmp_path / "out")
    assert parts["smoke"]["state"] == "running" and parts["smoke"]["seconds"] > 0
    assert json.loads((tmp_path / "out" / results.NUMBERS).read_text())["ceilings"]["rows"]


def test_files_are_replaced_whole_and_old_parts_go(tmp_path):
    (tmp_path / f".{results.SUMMARY}.part").write_text("half")
    found = results.Results(tmp_path, tmp_path / "logs", {})
    (tmp_path / "logs" / "x.json").write_text('{"suite": "gpu", "rows": [{"ca')
    found.note(Part("x", "ok"))
    assert {path.name for path in tmp_path.iterdir()} == {*FILES, "logs"}
    assert json.loads((tmp_path / results.NUMBERS).read_text())["x"] == {}


def test_a_wrong_kernel_fails_the_smoke_stage(tmp_path):
    finding = {"family": "loss", "precision": "ieee", "error": 0.4, "tolerance": 0.01, "problem": ""}
    verdict = {"subject": {"card": "X"}, "findings": [finding], "kernels_ms": 0, "torch_ms": 0, "failure": ""}
    (tmp_path / check.VERDICT).write_text(json.dumps(verdict))
    assert check.verdict_of(tmp_path / check.VERDICT)[1] == "WRONG  loss, ieee: error 4.0e-01, allowed 1e-02"
    assert check.verdict_of(tmp_path / "nothing") == []


@pytest.mark.parametrize(
    ("described", "scores"),
    [('{"extension": true, "cuda": "release 13.0"}', True), ('{"extension": true, "cuda": null}', False), ("{", False)],
)
def test_scores_are_measured_where_the_extension_has_cuda(monkeypatch, tmp_path, described, scores):
    monkeypatch.setattr(tree, "TREE", tmp_path)
    assert not tree.built_with_cuda()
    (tmp_path / "pad_fast").mkdir()
    (tmp_path / "pad_fast" / "_build.json").write_text(described)
    assert tree.built_with_cuda() is scores


TESTS = """
import os, time
def test_good(): print("error of something: 1e-3")
def test_bad(): assert 1 == 2
def test_last(): pass
def test_that_dies(): os._exit(3)
def test_slow(): time.sleep(60)
def test_spoils():
    globals()["spoiled"] = True
    raise RuntimeError("CUDA error: an illegal memory access was encountered")
def test_after(): assert "spoiled" not in globals()
"""


def test_tests_are_dealt_out_and_what_ran_is_reported(monkeypatch, tmp_path):
    """One test takes its process down, one hangs, one spoils the device for its process; the others all run."""
    monkeypatch.setattr(dealing, "WORKERS", 2)
    (tmp_path / "test_some.py").write_text(TESTS)
    order = ("slow", "good", "that_dies", "bad", "spoils", "last", "after")
    tests = {f"test_some.py::test_{name}": None for name in order}
    where = Surroundings(tmp_path, {**os.environ, "PYTHONPATH": str(ROOT)})
    part = dealing.run_tests("tests", tests, tmp_path, where, seconds=90, limit=3)
    assert part.state == "failed" and part.seconds < 80
    counts = {state: part.found[state] for state in dealing.COUNTED}
    assert counts == {"passed": 3, "failed": 2, "error": 0, "skipped": 0, "died": 2} and part.found["asked for"] == 7
    bad = {line.partition(":")[0]: line for line in part.found["bad"]}
    assert {*bad} == {"test_bad", "test_that_dies", "test_slow", "test_spoils"}
    assert bad["test_bad"] == "test_bad: assert 1 == 2" and "its process ended" in bad["test_slow"]
    assert part.found["said"] == ["error of something: 1e-3"] and part.table[-1] == part.found["said"][0]
    logs = "".join(path.read_text() for path in tmp_path.glob("tests-*.log"))
    assert "test_slow" in logs and "Timeout (0:00:03)" in logs and "def test_bad" in logs


def test_tests_that_have_no_time_are_said_to_be_missing(monkeypatch, tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS)
    where = Surroundings(tmp_path, {**os.environ, "PYTHONPATH": str(ROOT)})
    tests = {"test_some.py::test_slow": 1}
    part = dealing.run_tests("tests", tests, tmp_path, where, seconds=4, limit=50)
    assert (part.state, part.found["died"], part.found["passed"]) == ("timed out", 1, 0)
    part = dealing.run_tests("more", {"test_some.py::test_none": 1}, tmp_path, where, seconds=60, limit=50)
    assert (part.state, part.detail) == ("failed", "every test was skipped: is there a GPU?")
    tests = {"test_some.py::test_good": 1, "test_some.py::test_last": 1}
    part = dealing.run_tests("good", tests, tmp_path, where, seconds=60, limit=50)
    assert (part.state, part.found["passed"], part.detail) == ("ok", 2, "")


def test_whoever_stops_the_tests_leaves_no_process(tmp_path):
    name = f"test_of_{os.getpid()}.py"
    (tmp_path / name).write_text(TESTS)

    def stop() -> None:
        if (tmp_path / "tests-0.events").exists():
            assert left_behind(name)
            raise KeyboardInterrupt

    where = Surroundings(tmp_path, {**os.environ, "PYTHONPATH": str(ROOT)}, stop)
    with pytest.raises(KeyboardInterrupt):
        dealing.run_tests("tests", {f"{name}::test_slow": 1}, tmp_path, where, seconds=60, limit=50)
    assert '"started"' in (tmp_path / "tests-0.events").read_text()
    assert not left_behind(name)


def test_shares_have_about_equally_many_variants():
    tests = {f"a.py::t{n}": n for n in range(1, 21)} | {f"b.py::t{n}": None for n in range(5)}
    shares = dealing.deal(tests, 4)
    assert sorted(name for share in shares for name in share) == sorted(tests)
    loads = [sum(1 + (tests[name] or 8) for name in share) for share in shares]
    assert max(loads) - min(loads) <= 21
    order = [*tests]
    assert all(share == sorted(share, key=order.index) for share in shares)
    assert dealing.deal({"a::b": 1}, 3) == [["a::b"]]


def test_it_is_said_in_advance_whether_the_tests_can_be_compiled(monkeypatch):
    monkeypatch.setattr(dealing.os, "cpu_count", lambda: 4)
    said = dealing.forecast({"a::b": 100, "a::c": None, "a::d": 60}, 0.5, 120)
    assert said == "tests: at most 160 variants, 20 s on 4 cores; they have 120 s"


@pytest.mark.slow
def test_what_goes_along_is_made_by_one_command(place, monkeypatch, capsys):
    pytest.importorskip("triton", reason="compiles kernels")
    monkeypatch.setattr(carried, "FOLDER", place / "carried")
    assert main(["--bundle", "--prefill", "90", "--stage", "matching"]) == 0
    said = capsys.readouterr().out
    assert f"{place / 'carried' / 'golden'}: " in said and "0 are left" in said and "triton: " in said
    assert (place / "carried" / "golden" / "unroll_gray_28px.npz").is_file()
    kernels = [*(place / "carried" / "triton").rglob("*.cubin")]
    assert len(kernels) > 10 and carried.settle() == len(kernels)
    assert not [*(place / "carried").rglob("*.source")] and not [*(place / "carried").rglob("*.ptx")]
    with pytest.raises(SystemExit):
        main(["--stage", "smoke"])
    assert "--out is missing; name a folder for the results" in capsys.readouterr().err


@pytest.mark.slow
def test_the_list_of_tests_is_the_one_that_pytest_collects():
    found = dealing.collect(folder=ROOT, environment=dict(os.environ))
    listed = dealing.listed()
    assert len(found) > 200 and any("compute_sanitizer" in name for name in found)
    assert {*found} == {*listed}, "python -m benchmarks.gpu_check.counting --update"
    assert [*listed][0].startswith(dealing.ENGINE_TESTS) and sum(count or 0 for count in listed.values()) > 500
