"""The command itself, without a service: every command has --help and --json, every error its exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from keypeer.cli import main
from keypeer.cli.calling import exit_code
from keypeer.cli.documents import read_document
from keypeer.cli.exits import EPILOG, Exit
from keypeer.errors import (
    AnswerError,
    KeypeerClientError,
    ProblemError,
    ReleaseForged,
    ServiceUnavailable,
    StateError,
    TpmError,
)
from keypeer.wire.messages import PolicyDocument, Problem

KEYPEER = Path(sys.executable).with_name("keypeer")
WITHOUT_JSON = {("completion",), ("serve",)}  # one prints a script, one runs until stopped


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, f"{name} is listed but doesn't load"
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


ALL = dict(commands(main))


def test_the_nouns_are_all_there() -> None:
    nouns = {path[0] for path in ALL}
    assert nouns == {
        "agent", "approvals", "audit", "auditor", "backup", "baseline", "certificate", "completion", "doctor",
        "geo-tag", "guest", "host", "identity", "image", "init", "kek", "keys", "migration", "officer", "operator",
        "policy", "proposal", "recovery", "restore", "rollback", "runtime", "serve", "signing-key", "store",
        "tenant", "token", "vm",
    }  # fmt: skip


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_has_help_and_json(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, [*path, "--help"])
    assert result.exit_code == 0
    assert result.output.startswith("Usage: ")
    assert ("--json" in result.output) == (path not in WITHOUT_JSON)
    assert ALL[path].help


def test_the_exit_codes_are_documented() -> None:
    shown = CliRunner().invoke(main, ["--help"]).output
    for code in Exit:
        assert f"{code.value}  " in EPILOG
        assert f"{code.value}  " in shown


def problem(status: int) -> ProblemError:
    return ProblemError(Problem(type="t", title="t", status=status, detail="d", code="c"))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (problem(401), Exit.REFUSED),
        (problem(403), Exit.REFUSED),
        (problem(400), Exit.BAD_INPUT),
        (problem(404), Exit.BAD_INPUT),
        (problem(409), Exit.BAD_INPUT),
        (problem(422), Exit.BAD_INPUT),
        (problem(429), Exit.UNAVAILABLE),
        (problem(500), Exit.UNAVAILABLE),
        (problem(503), Exit.UNAVAILABLE),
        (problem(507), Exit.UNAVAILABLE),
        (TpmError("tpm.policy", "moved"), Exit.REFUSED),
        (TpmError("tpm.unavailable", "gone"), Exit.UNAVAILABLE),
        (ServiceUnavailable("service.unreachable", "gone"), Exit.UNAVAILABLE),
        (AnswerError("service.answer", "odd"), Exit.FORGED),
        (ReleaseForged("release.forged", "odd"), Exit.FORGED),
        (StateError("state.missing", "gone"), Exit.BAD_INPUT),
    ],
)
def test_errors_and_their_exit_codes(error: KeypeerClientError, code: Exit) -> None:
    assert exit_code(error) == code


def test_a_missing_identity_says_where_it_should_be(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["host", "list", "--home", str(tmp_path)])
    assert result.exit_code == Exit.BAD_INPUT
    assert str(tmp_path / "identities" / "auditor") in result.output
    as_json = CliRunner().invoke(main, ["host", "list", "--home", str(tmp_path), "--json"])
    assert json.loads(as_json.stdout)["code"] == "identity.missing"


def test_an_agent_that_never_enrolled(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["agent", "attest", "--home", str(tmp_path)])
    assert result.exit_code == Exit.BAD_INPUT
    assert "state.missing" in result.output


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.toml", 'geo = { countries = ["DE"], anywhre = true }', "anywhre"),
        ("p.toml", 'geo = { countries = ["Germany"] }', "geo.countries"),
        ("p.toml", "geo = ", "Invalid value"),
        ("p.toml", "[policy.other]\ngeo = { anywhere = true }", "no table [policy.eu]"),
        ("p.json", '{"geo": {"anywhere": 1}}', "geo.anywhere"),
        ("p.json", "\xff", "malformed"),
        ("gone.toml", None, "No such file"),
    ],
)
def test_a_wrong_document_is_refused_by_name(tmp_path: Path, name: str, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text, "latin-1")
    with pytest.raises(StateError, match=r"input\.") as caught:
        read_document(tmp_path / name, PolicyDocument, table=("policy", "eu"))
    assert words in caught.value.detail or "utf-8" in caught.value.detail.lower()


NAMES = ("bare", "table")


def test_a_bare_document_and_a_table_read_alike(tmp_path: Path) -> None:
    (tmp_path / "bare.toml").write_text('geo = { countries = ["DE"] }\n')
    (tmp_path / "table.toml").write_text('[policy.eu]\ngeo = { countries = ["DE"] }\n')
    documents = [
        read_document(tmp_path / f, PolicyDocument, table=("policy", "eu")) for f in ("bare.toml", "table.toml")
    ]
    assert documents[0] == documents[1]
    assert documents[0].geo.countries == ("DE",)


@pytest.mark.parametrize("valid", ["180", "0d", "d", "-1d", "1.5d", "99999999d"])
def test_a_duration_is_a_number_and_a_unit(tmp_path: Path, valid: str) -> None:
    arguments = ["geo-tag", "issue", "--host", "h", "--country", "DE", "--valid", valid, "--home", str(tmp_path)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == Exit.USAGE
    assert "is no duration" in result.output


def test_completion_completes_in_bash() -> None:
    script = subprocess.run([str(KEYPEER), "completion", "bash"], capture_output=True, text=True, check=True).stdout
    ask = f'{script}\nCOMP_WORDS=(keypeer ho); COMP_CWORD=1; _keypeer_completion keypeer; echo "${{COMPREPLY[@]}}"'
    environment = {"PATH": f"{KEYPEER.parent}:/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", ask], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["host"]


@pytest.mark.parametrize("missing", ["lmdb", "pkcs11"])
def test_a_host_without_the_service_has_no_service_commands(missing: str) -> None:
    code = (
        "import importlib.util, sys; real = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda name, *a: None if name == {missing!r} else real(name, *a)\n"
        "from keypeer.cli import main; main(['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    commands = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")]
    assert "agent" in commands
    assert not {"serve", "init", "doctor"} & set(commands)


def test_a_noun_loads_only_what_it_needs() -> None:
    heavy = ("aiohttp", "rich", "cryptography")
    code = f"import sys; import keypeer.cli.host; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
