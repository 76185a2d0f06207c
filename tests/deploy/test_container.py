"""The image's Containerfile and the compose file agree with the rest of the project, and what they would run runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml

from kms import limits
from kms.settings import read_home
from tests.support import containerfile, manifests
from tests.support.postgres import PostgresServer
from tests.support.service import Service, free_port

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "container"
BUILD, IMAGE = containerfile.read(FOLDER / "Containerfile")
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
SOURCES = [source for stage in (BUILD, IMAGE) for sources, _ in stage.copied() for source in sources]


def setup_packages() -> set[str]:
    listing = 'set -eu; . deploy/setup.sh; printf "%s\\n" "${PACKAGES[@]}"'
    done = subprocess.run(["bash", "-c", listing], cwd=ROOT, check=True, capture_output=True, text=True)
    return set(done.stdout.split())


# ── the image ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_two_stages_of_one_debian_by_name() -> None:
    assert [(stage.base, stage.name) for stage in (BUILD, IMAGE)] == [
        ("docker.io/library/debian:12-slim", "build"),
        ("docker.io/library/debian:12-slim", ""),
    ]
    assert [each.split()[1] for each in IMAGE.all("COPY") if each.startswith("--from=build")] == ["/opt/keypeer"]


@pytest.mark.parametrize("source", SOURCES)
def test_what_is_copied_is_there_and_may_be_seen(source: str) -> None:
    assert (ROOT / source).exists()
    lines = [line for line in (FOLDER / "Containerfile.dockerignore").read_text().splitlines() if line[0] != "#"]
    assert lines[0] == "*"
    assert f"!{source}" in lines


def test_nothing_else_is_sent_to_the_build() -> None:
    lines = (FOLDER / "Containerfile.dockerignore").read_text().splitlines()
    assert {line[1:] for line in lines if line.startswith("!")} == set(SOURCES)


def test_its_packages_are_those_of_the_set_up() -> None:
    assert BUILD.packages() | IMAGE.packages() <= setup_packages()
    assert IMAGE.packages() == {"ca-certificates", "python3", "softhsm2"}
    assert "gcc" in BUILD.packages()


def test_it_installs_an_extra_that_there_is() -> None:
    (text,) = (run for run in BUILD.all("RUN") if "pip install" in run)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert re.findall(r"\[([a-z,]+)\]", text) == ["server"]
    assert "server" in extras


def test_what_is_copied_is_all_that_the_command_needs(tmp_path: Path) -> None:
    for source in SOURCES:
        (tmp_path / source).parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-r", str(ROOT / source), str(tmp_path / source)], check=True)
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]
    assert all((tmp_path / name).is_file() for name in (project["readme"], *project["license-files"]))
    script = (
        "import sys, keypeer.cli, kms.cli.serve, hsm_adapter\n"
        "print(*(m.__file__ for m in (keypeer.cli, kms.cli.serve, hsm_adapter)), sep='\\n')\n"
        "from click.testing import CliRunner\n"
        "print(CliRunner().invoke(kms.cli.serve.serve, ['--help']).output)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{tmp_path}/sdk"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd="/", env=environment, capture_output=True, text=True, check=True
    )
    files, said = done.stdout.splitlines()[:3], done.stdout
    assert all(Path(file).is_relative_to(tmp_path) for file in files)
    assert "--role" in said


def test_it_runs_as_nobody_special() -> None:
    (user,) = IMAGE.all("USER")
    pod = manifests.pod_spec(manifests.one(manifests.base(), "StatefulSet"))["securityContext"]
    assert user == f"{pod['runAsUser']}:{pod['runAsGroup']}"
    assert IMAGE.command("ENTRYPOINT") == ["keypeer"]
    assert IMAGE.command("CMD") == ["serve"]


def test_no_secret_is_in_it() -> None:
    text = " ".join(IMAGE.all("ENV") + BUILD.all("ENV"))
    assert not re.search(r"(?i)pin|passw|secret|token|key=", text)
    for path in (*FOLDER.iterdir(), ROOT / "softhsm" / "init-token.sh"):
        assert "PRIVATE KEY" not in path.read_text()
        assert not re.search(r"[0-9a-f]{16}", path.read_text().lower()), path


# ── compose ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_compose_specification_takes_it() -> None:
    parsed = compose_spec.PyCompose.from_yaml((FOLDER / "compose.yaml").read_text())
    parsed.validate()
    assert sorted(parsed.service_names()) == ["database", "first-start", "keypeer"]


@pytest.mark.parametrize(("good", "slip"), [("volumes: &volumes", "volume: &volumes"), ("- home:/", "- house:/")])
def test_the_compose_specification_would_refuse_a_slip(good: str, slip: str) -> None:
    text = (FOLDER / "compose.yaml").read_text()
    assert good in text
    with pytest.raises(ValueError, match=r".+"):
        compose_spec.PyCompose.from_yaml(text.replace(good, slip)).validate()


def test_what_it_names_is_there() -> None:
    for config in COMPOSE["configs"].values():
        assert (FOLDER / config["file"]).is_file()
    for name in ("first-start", "keypeer"):
        build = COMPOSE["services"][name]["build"]
        assert (FOLDER / build["context"]).resolve() == ROOT
        assert (ROOT / build["dockerfile"]).is_file()
    (copied,) = (where for sources, where in IMAGE.copied() if sources == ["deploy/container/first-start.sh"])
    assert COMPOSE["services"]["first-start"]["entrypoint"][0] == Path(copied).name
    assert os.access(FOLDER / "first-start.sh", os.X_OK)


@pytest.mark.parametrize("name", ["first-start", "keypeer"])
def test_keypeer_has_no_rights_that_it_does_not_need(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["ulimits"] == {"core": 0}
    assert not {"environment", "env_file", "privileged", "cap_add", "devices", "pid", "ipc"} & set(service)


def test_the_database_is_reached_over_the_socket_alone() -> None:
    assert COMPOSE["services"]["database"]["network_mode"] == "none"
    assert "ports" not in COMPOSE["services"]["database"]
    address = read_home(FOLDER).postgres()
    assert address is not None
    ((folder, _),) = address.hosts
    mounts = {mount.split(":")[1]: mount.split(":")[0] for mount in COMPOSE["services"]["keypeer"]["volumes"]}
    there = dict(mount.split(":") for mount in COMPOSE["services"]["database"]["volumes"])
    assert there[mounts[folder]] == "/var/run/postgresql"
    (home,) = IMAGE.all("WORKDIR")
    assert mounts[home] == "home"


def test_one_port_all_the_way() -> None:
    home = read_home(FOLDER)
    assert home.settings.store.single
    assert home.address == ("0.0.0.0", 8443)  # noqa: S104 - a container's address isn't known before
    assert IMAGE.all("EXPOSE") == ["8443"]
    assert COMPOSE["services"]["keypeer"]["ports"] == ["8443:8443"]
    assert "https://localhost:8443/healthz" in IMAGE.command("HEALTHCHECK")[2]
    assert "localhost" in home.settings.service.names


def test_the_end_has_the_time_that_it_may_take() -> None:
    seconds = int(COMPOSE["services"]["keypeer"]["stop_grace_period"].removesuffix("s"))
    assert seconds > 3 * (limits.SHUTDOWN_GRACE_S + limits.WATCHDOG_INTERVAL_S)  # kms/supervisor.py, _end


# ── a start ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def database() -> Iterator[PostgresServer]:
    """As the compose file says: a socket alone, whose callers are trusted, and database.sql."""
    server = PostgresServer.made("container", 5432)
    (server.folder / "pg_hba.conf").write_text("local all all trust\n")
    server.start(listen_addresses="")
    for statement in ("DROP DATABASE keypeer", "DROP ROLE keypeer"):
        server.sql(statement)
    for statement in (FOLDER / "database.sql").read_text().split("\n", 1)[1].split(";"):
        server.sql(statement)
    yield server
    server.stop()


def test_the_first_start_is_the_first_only(tmp_path: Path, database: PostgresServer) -> None:
    home, settings, text = tmp_path / "home", tmp_path / "keypeer.toml", (FOLDER / "keypeer.toml").read_text()
    assert "/run/postgresql" in text
    settings.write_text(text.replace("/run/postgresql", str(database.folder)))
    home.mkdir(mode=0o700)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "KEYPEER_HOME": str(home),
        "SHARE": str(ROOT),
        "PYTHON": sys.executable,
    }
    start = [str(FOLDER / "first-start.sh"), str(settings)]
    first, second = (
        subprocess.run(start, env=environment, capture_output=True, text=True, timeout=60, check=False)
        for _ in range(2)
    )
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "issued the server certificate for localhost, 127.0.0.1, keypeer" in first.stderr
    assert "everything is there already" in second.stderr
    pins = [home / "token" / name for name in ("pin", "so-pin")]
    assert [path.stat().st_mode & 0o777 for path in pins] == [0o600, 0o600]
    assert len({path.read_text() for path in pins}) == 2


@pytest.mark.parametrize(("running", "status"), [(True, 0), (False, 1)])
def test_the_health_check_tells(node: Service, running: bool, status: int) -> None:
    program, option, script = IMAGE.command("HEALTHCHECK")
    assert (program, option) == ("python3", "-c")
    port = node.port if running else free_port()
    check = [sys.executable, option, script.replace(":8443/", f":{port}/")]
    environment = {**os.environ, "KEYPEER_HOME": str(node.folder)}
    done = subprocess.run(check, env=environment, capture_output=True, timeout=30, check=False)
    assert done.returncode == status, done.stderr
