"""The benchmark suite's own logic: rows, runs, table, plot, comparison, the command. Nothing here measures."""

from __future__ import annotations

import importlib.util
import ssl
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from tests.benchmarks import __main__ as suite
from tests.benchmarks import compare, loads, plot, table
from tests.benchmarks.load import Figures, Target, load
from tests.benchmarks.modules import BENCHMARKS, NAMES, Benchmark
from tests.benchmarks.peers import configurations, environments
from tests.benchmarks.report import ROWS_VARIABLE, Row, Spread, in_turns, tell
from tests.benchmarks.run import Machine, Module, Run
from tests.support.tls_server import TestCa, https_server

MACHINE = Machine(cpu="x", cores=2, memory_gib=8, kernel="6", python="3.11", openssl="3", packages={"lmdb": "1"})


def row(what: str, *rounds: float, **more: object) -> Row:
    return Row(what=what, unit="1/s", ours=Spread.of(rounds), **more)  # type: ignore[arg-type]  # of Row


def run(*rows: Row, module: str = "releases", **more: object) -> Run:
    modules = (Module(name=module, seconds=1.0, good=True, rows=rows),)
    made = Run(version="1", commit="abc", date="2026", machine=MACHINE, quick=False, modules=modules)
    return msgspec.structs.replace(made, **more)


def beside(**names: float) -> dict[str, Spread]:
    return {name.replace("_", " "): Spread.of([value]) for name, value in names.items()}


def test_measures_take_turns() -> None:
    order: list[str] = []

    def measure(name: str, value: float) -> float:
        order.append(name)
        return value + len(order)

    found = in_turns({"ours": lambda: measure("ours", 0), "limit": lambda: measure("limit", 10)}, 3)
    assert order == ["ours", "limit"] * 3
    assert found == {"ours": Spread(3, 1, 5), "limit": Spread(14, 12, 16)}


def test_rows_are_kept_for_the_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ROWS_VARIABLE, str(tmp_path / "rows"))
    told = row("a", 1, 2, 3, beside=beside(OpenBao=4), mark="≥ 1", met=True, chief=True)
    tell(told)
    assert msgspec.json.decode((tmp_path / "rows").read_bytes(), type=Row) == told


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = run(row("a", 1, 2, beside=beside(OpenBao=4)))
    written.write(tmp_path / "new" / "run.json")
    assert Run.read(tmp_path / "new" / "run.json") == written
    assert Run.begin(quick=True).machine.cores > 0


def test_loads_become_a_rate_and_a_p99_with_marks() -> None:
    found = {"keypeer": [Figures(100, 0.001, 0.02, b"")] * 2, "OpenBao": [Figures(50, 0.002, 0.04, b"")] * 2}
    rate, p99 = loads.rows("batches", found, items=10, least=1001, most_ms=20)
    assert (rate.ours.median, rate.beside["OpenBao"].median, rate.met) == (1000, 500, False)
    assert (p99.ours.median, p99.beside["OpenBao"].median, p99.met, p99.better) == (20, 40, True, "less")


# ── comparison ──


def test_only_what_is_beyond_the_spread_has_changed() -> None:
    before = run(row("same", 90, 100, 110), row("faster", 90, 100, 110), row("slower", 90, 100, 110))
    now = run(row("same", 105, 120, 130), row("faster", 115, 120, 130), row("slower", 40, 50, 60))
    assert [line.split(":")[0] + ":" + line.split(":")[1] for line in compare.changes(before, now)] == [
        "better releases: faster",
        "worse  releases: slower",
    ]


def test_less_may_be_better() -> None:
    before, now = (run(row("p99", value, better="less")) for value in (10, 5))
    assert next(iter(compare.changes(before, now))).startswith("better releases: p99: 10.0 → 5.00 1/s, ×0.50")


def test_comparison_shows_what_the_limit_did_meanwhile() -> None:
    before = run(row("a", 100, beside=beside(limit=1000)))
    now = run(row("a", 50, beside=beside(limit=500)))
    assert "beside it limit ×0.50" in next(iter(compare.changes(before, now)))


def test_comparison_names_new_and_lost_rows_of_modules_that_ran_and_another_machine() -> None:
    before = run(row("lost", 1))
    now = run(row("new", 1), machine=msgspec.structs.replace(MACHINE, cpu="y"))
    lines = list(compare.changes(before, now))
    assert lines[0].startswith("another machine")
    assert [line.split()[0] for line in lines[1:]] == ["new", "gone"]
    assert not [line for line in compare.changes(before, run(module="ima")) if line.startswith("gone")]


# ── table ──


def test_the_readme_gets_chief_rows_between_its_markers(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    rows = row("a|b", 200, 100, beside=beside(OpenBao=75), mark="≥ 1/s", met=False, chief=True), row("hidden", 1)
    table.put(readme, table.part(run(*rows), "plot.svg", "figures.md", "figures.json"))
    text = readme.read_text()
    assert text.startswith(f"before\n{table.BEGIN}\n")
    assert text.endswith(f"{table.END}\nafter\n")
    assert "| a\\|b | 150/s | OpenBao 75.0/s (×2.00) | ≥ 1/s, **missed** |" in text
    assert "](plot.svg)" in text
    assert not {"old", "hidden"} & set(text.split())


@pytest.mark.parametrize("text", ["none", f"{table.END}{table.BEGIN}", f"{table.BEGIN}{table.END}" * 2])
def test_a_file_without_its_markers_is_left_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(ValueError, match="once each"):
        table.put(tmp_path / "README.md", "new")
    assert (tmp_path / "README.md").read_text() == text


def test_the_whole_table_has_every_row_with_its_spread_and_the_peers() -> None:
    text = table.whole(run(row("hidden", 100, 200, note="why")), "p.svg", configurations())
    assert "| hidden. why. | 150 (100 to 200)/s |" in text
    for part in ("tls_require_and_verify_client_cert = true", "library_path", "verifyChain = yes"):
        assert part in text


def test_quick_figures_are_not_to_be_quoted() -> None:
    assert "not to be quoted" in table.part(run(row("a", 1), quick=True), "p", "f", "j")


# ── plot ──


def test_to_the_right_is_ahead_whether_more_or_less_is_better() -> None:
    assert plot.ahead(row("rate", 200, beside=beside(OpenBao=100)), "OpenBao")[0] == 2
    assert plot.ahead(row("time", 200, better="less", beside=beside(OpenBao=100)), "OpenBao")[0] == 0.5
    assert plot.ahead(row("rate", 200, beside=beside(OpenBao=0)), "OpenBao")[0] == plot.MOST


def test_the_plot_is_svg_with_a_dot_for_each_peer_and_limit() -> None:
    shown = row("a < b", 100, 300, beside=beside(OpenBao=100, Barbican=1, limit=400), chief=True)
    root = ET.fromstring(plot.plot(run(shown, row("hidden", 1))))  # noqa: S314  # ours
    drawn = "{http://www.w3.org/2000/svg}"
    hovers = {title.text for title in root.iter(f"{drawn}title")}
    assert {"OpenBao: 100/s", "Barbican: 1.00/s", "limit: 400/s"} <= hovers
    dots = [
        float(each.get("cx", "0")) for each in root.iter(f"{drawn}circle") if each.find(f"{drawn}title") is not None
    ]
    assert dots[0] < dots[1] <= plot.WIDTH - plot.RIGHT
    assert any("a < b" in (text.text or "") for text in root.iter(f"{drawn}text"))


def test_a_run_without_rows_can_be_drawn() -> None:
    ET.fromstring(plot.plot(run()))  # noqa: S314  # ours


# ── the command ──


def test_every_benchmark_is_a_module() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert not [name for name in NAMES if importlib.util.find_spec(f"tests.benchmarks.{name}") is None]
    assert [each.arguments("") for each in BENCHMARKS] == [[]] * len(BENCHMARKS)


def command(tmp_path: Path, *arguments: str) -> int:
    return suite.main(["--json", str(tmp_path / "run.json"), *arguments])


def test_the_command_runs_what_is_asked_for_and_writes_it_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Sequence[str]]] = []

    def measured(benchmark: Benchmark, arguments: Sequence[str]) -> Module:
        asked.append((benchmark.name, arguments))
        rows = (row("a", 2, beside=beside(OpenBao=1), chief=True, met=benchmark.name != "trust"),)
        return Module(name=benchmark.name, seconds=1, good=True, rows=rows)

    monkeypatch.setattr(suite, "measured", measured)
    readme = tmp_path / "README.md"
    readme.write_text(f"{table.BEGIN}{table.END}")
    assert command(tmp_path, "--quick", "--only", "ima,releases", "--readme", str(readme)) == 0
    assert [name for name, _ in asked] == ["releases", "ima"]
    assert all(arguments for _, arguments in asked)
    assert Run.read(tmp_path / "run.json").quick
    assert "](run.svg)" in readme.read_text()
    assert (tmp_path / "run.md").read_text().count("## ") == 3  # two modules, and the peers
    assert (tmp_path / "run.svg").read_text().startswith("<svg")
    assert command(tmp_path, "--only", "trust") == 1  # it missed a mark


def test_table_and_plot_are_made_from_an_earlier_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(suite, "measured")
    run(row("a", 1)).write(tmp_path / "earlier.json")
    run(row("a", 3)).write(tmp_path / "later.json")
    earlier, later = str(tmp_path / "earlier.json"), str(tmp_path / "later.json")
    assert command(tmp_path, "--from", later, "--compare", earlier) == 0
    assert "better releases: a: 1.00 → 3.00 1/s, ×3.00" in capsys.readouterr().out


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        command(tmp_path, "--only", "nothing")


def test_a_module_that_fails_has_the_rows_it_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "tests" / "benchmarks"
    module.mkdir(parents=True)
    told = msgspec.json.encode(row("a", 1)).decode()
    lines = ("import os", f"open(os.environ[{ROWS_VARIABLE!r}], 'w').write({told!r})", "raise SystemExit(3)")
    (module / "broken.py").write_text("\n".join(lines))
    monkeypatch.setattr(suite, "ROOT", tmp_path)
    found = suite.measured(Benchmark("broken", ""), [])
    assert not found.good
    assert [each.what for each in found.rows] == ["a"]


# ── the parts below ──


def test_a_peer_is_installed_once_and_again_when_it_changes(tmp_path: Path) -> None:
    filled: list[str] = []

    def install(contents: str) -> Path:
        def fill(place: Path) -> None:
            place.mkdir()
            filled.append(contents)

        return environments._once(tmp_path / "peer", contents, fill)

    assert install("a==1") == install("a==1") == tmp_path / "peer"
    install("a==2")
    assert filled == ["a==1", "a==2"]


def test_a_peer_that_was_half_installed_is_begun_anew(tmp_path: Path) -> None:
    def broken(place: Path) -> None:
        place.mkdir()
        raise FileNotFoundError

    assert environments.attempt(lambda: str(environments._once(tmp_path / "peer", "a", broken))) == ""
    assert environments._once(tmp_path / "peer", "a", Path.mkdir).exists()


async def test_the_load_generator_counts_answers(tmp_path: Path) -> None:
    ca = TestCa(tmp_path)
    context = ssl.create_default_context(cafile=str(ca.file))

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=b"answer")

    async with https_server(ca, answer) as url:
        port = int(url.rpartition(":")[2])
        figures = await load(port, [Target(context, [b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"])] * 2, 0.05)
    assert figures.rate > 0
    assert figures.p50 <= figures.p99
    assert figures.answer == b"answer"
