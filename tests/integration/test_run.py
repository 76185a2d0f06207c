"""The user's own commands: deploy/run.sh from nothing, and what the README says to try beside it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.support.service import free_port

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "deploy" / "run.sh"
START_S = 120  # seconds; takes 6


def readme_blocks(language: str) -> list[str]:
    text = (ROOT / "README.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@dataclass
class Demo:
    """A running deploy/run.sh."""

    environment: dict[str, str]
    home: Path

    def shell(self, script: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", script],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "KEYPEER_HOME": str(home / "kp"), "KEYPEER_PORT": str(free_port()), "NO_COLOR": "1"}


def once(environment: dict[str, str], *options: str) -> tuple[list[str], str]:
    """Its results, and what it told on the way."""
    done = subprocess.run(
        [str(RUN), *options, "--once"], env=environment, capture_output=True, text=True, timeout=START_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines(), done.stderr


def test_once_ends_with_one_granted_and_one_denied(environment: dict[str, str]) -> None:
    lines, *_ = once(environment)
    granted = r"GRANTED host=fra-1 vm=demo-vm country=DE policy=eu-production check-value=[0-9a-f]{8}"
    assert re.fullmatch(granted, lines[0])
    assert lines[1] == (
        "DENIED  host=iad-1 vm=demo-vm geo.country: host iad-1 is tagged US; policy eu-production allows DE, FR, NL"
    )
    again, told = once(environment)
    assert again == lines, "the second start keeps the data: the same key"
    assert "starting the service" in told
    assert [words for words in ("installing", "enrolling", "making the software TPM") if words in told] == []


def test_three_postgresql_servers_and_two_nodes(environment: dict[str, str], tmp_path: Path) -> None:
    """One command; the second start finds servers, keys and hosts again."""
    port = free_port()
    cut = environment | {"KEYPEER_HOME": str(tmp_path / "kp"), "KEYPEER_PORT": str(port)}
    lines, *_ = once(cut, "--postgres")
    granted, denied = lines
    assert re.fullmatch(rf"GRANTED host=fra-1 .* check-value=[0-9a-f]{{8}} node=https://localhost:{port}", granted)
    assert denied.startswith("DENIED  host=iad-1 vm=demo-vm geo.country: ")
    assert denied.endswith(f" node=https://localhost:{port + 1}")
    assert once(cut, "--postgres")[0] == lines
    shutil.rmtree(servers(cut))


def servers(environment: dict[str, str]) -> Path:
    """Where deploy/run.sh has its servers: it isn't in keypeer's own folder, which PostgreSQL's user may not enter."""
    script = '. deploy/setup.sh; . deploy/demo-postgres.sh; printf %s "$PG_FOLDER"'
    command = ["bash", "-c", f"PORT=1; {script}"]
    return Path(subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout)


def test_stopped_before_it_showed_anything_it_has_failed(environment: dict[str, str], tmp_path: Path) -> None:
    """And the next run mends what was left half done."""
    cut = environment | {"KEYPEER_HOME": str(tmp_path / "kp"), "KEYPEER_PORT": str(free_port())}
    process = subprocess.Popen([str(RUN), "--once"], env=cut, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + START_S
    while not (tmp_path / "kp/agents/fra-1/host.crt").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert once(cut)[0][0].startswith("GRANTED host=fra-1")


def test_a_service_that_ends_ends_the_demo(environment: dict[str, str], tmp_path: Path) -> None:
    with (tmp_path / "run.log").open("w") as log:
        home = environment | {"KEYPEER_HOME": str(tmp_path / "kp & all"), "KEYPEER_PORT": str(free_port())}
        process = subprocess.Popen([str(RUN)], env=home, stdout=log, stderr=log)
        deadline = time.monotonic() + START_S
        while "Ctrl-C stops everything" not in (tmp_path / "run.log").read_text():
            assert process.poll() is None, (tmp_path / "run.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        for child in psutil.Process(process.pid).children():
            if "serve" in child.cmdline():
                child.terminate()
        assert process.wait(30) == 1
    assert "error: the service ended" in (tmp_path / "run.log").read_text()


@pytest.fixture(scope="module")
def demo(environment: dict[str, str], home: Path) -> Iterator[Demo]:
    with (home / "run.log").open("w") as log:
        process = subprocess.Popen([str(RUN)], env=environment, stdout=log, stderr=log)
    deadline = time.monotonic() + START_S
    while "Ctrl-C stops everything" not in (home / "run.log").read_text():
        assert process.poll() is None, (home / "run.log").read_text()
        assert time.monotonic() < deadline, (home / "run.log").read_text()
        time.sleep(0.2)
    yield Demo(environment, home / "kp")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


def test_every_command_of_the_readme(demo: Demo) -> None:
    (block,) = readme_blocks("sh")
    activate, *commands = block.strip().splitlines()
    assert len(commands) >= 7
    for command in commands:
        done = demo.shell(f"{activate} && {command}")
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        assert done.stdout.strip(), f"{command} said nothing"


def test_the_readmes_python(demo: Demo) -> None:
    (block,) = readme_blocks("python")
    block = block.replace("/var/lib/keypeer", str(demo.home / "agents" / "fra-1"))
    done = demo.shell(f". .venv/bin/activate && python - <<'END'\n{block}\nEND")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"web-1 2 [0-9a-f]{8}\n", done.stdout)


def test_the_readmes_policy(demo: Demo) -> None:
    (block,) = readme_blocks("toml")
    (demo.home / "readme.toml").write_text(block)
    done = demo.shell('. .venv/bin/activate && keypeer policy put eu-production "$KEYPEER_HOME/readme.toml"')
    assert done.stdout == "policy eu-production allows DE, FR, NL\n", done.stderr


def test_explain_tells_granted_from_refused(demo: Demo) -> None:
    granted = demo.shell(". .venv/bin/activate && keypeer policy explain --vm demo-vm --host fra-1")
    assert (granted.returncode, granted.stdout.split()[0]) == (0, "ALLOWED")
    refused = demo.shell(". .venv/bin/activate && keypeer policy explain --vm demo-vm --host iad-1")
    assert (refused.returncode, refused.stdout.split()[0]) == (1, "REFUSED")
    assert "found  host iad-1 is tagged US" in refused.stdout


def test_two_runs_on_one_folder_are_refused(demo: Demo) -> None:
    done = demo.shell("deploy/run.sh --once")
    assert done.returncode == 1
    assert "another deploy/run.sh uses" in done.stderr


def test_what_fra_1_booted_changes_and_its_old_session_never_opens_again(demo: Demo) -> None:
    """The last test of the file: fra-1 stays bad until it reboots."""
    tcti = f"swtpm:path={demo.home}/hosts/fra-1/sock"
    session_key = ROOT / "tests" / "integration" / "open_old_session.py"
    done = demo.shell(f". .venv/bin/activate && python {session_key} {demo.home}/agents/fra-1 {tcti}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["opened", "tpm.policy"]
    refused = demo.shell(". .venv/bin/activate && keypeer agent attest --host fra-1")
    assert refused.returncode == 1
    assert "pcr.4\n  found  PCR 4 is" in refused.stderr
    shown = demo.shell(". .venv/bin/activate && keypeer host show fra-1")
    assert "pcr.4" in shown.stdout
