"""`keypeer image` as its users run it: real processes, pipes, files, full disks, and kills half-way."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from keypeer.cli.exits import Exit
from keypeer.cli.meter import Meter, size

KEYPEER = str(Path(sys.executable).with_name("keypeer"))
KEY = bytes(range(64))
MIB = 1024 * 1024
BIG = 300 * MIB  # bytes; sparse, so that it is read fast
NAMED = ("--vm", "web-1", "--key-version", "2")
RUN_S = 60  # seconds; the slowest takes 2
MEMORY_MAX = 150 * MIB  # bytes; Python with its libraries has some 45, four chunks of 1 MiB are nothing beside


class Runner:
    """The command in a folder of its own, which holds key and data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = folder / "key"
        self.key.write_bytes(KEY)
        self.key.chmod(0o600)
        self.data = folder / "data"
        self.data.write_bytes(os.urandom(2 * MIB + 12345))

    def __call__(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
        """``keypeer image …`` in the folder."""
        options = {"capture_output": True, "cwd": self.folder, "timeout": RUN_S} | options
        return subprocess.run([KEYPEER, "image", *arguments], check=False, **options)

    def shell(self, script: str) -> subprocess.CompletedProcess[bytes]:
        """As typed; ``image`` is the command, and any failure in a pipe is one."""
        script = f'set -o pipefail; image() {{ "{KEYPEER}" image "$@"; }}; {script}'
        return subprocess.run(["bash", "-c", script], cwd=self.folder, capture_output=True, timeout=RUN_S, check=False)

    def encrypted(self, *arguments: str) -> Path:
        """An image of ``data``."""
        done = self("encrypt", "data", "image", "--key-file", "key", *NAMED, *arguments)
        assert (done.returncode, done.stderr) == (0, b"")
        return self.folder / "image"

    def files(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


@pytest.fixture
def run(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    run = Runner(tmp_path_factory.mktemp("big"))
    with run.data.open("wb") as file:
        file.truncate(BIG)
        file.write(b"start")
        file.seek(BIG - 3)
        file.write(b"end")
    return run


def error(done: subprocess.CompletedProcess[bytes]) -> str:
    """The code of the error that was told in words."""
    words = done.stderr.decode()
    assert words.startswith("error: "), words
    return words.split(": ")[1]


# ── files, filters, parts ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_comes_back_and_all_of_it_is_told(run: Runner) -> None:
    done = run("encrypt", "data", "image", "--key-file", "key", *NAMED, "--epoch", "7", "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, b"")
    assert told | {"id": "", "created_at": 0} == {
        "vm": "web-1", "version": 2, "epoch": 7, "id": "", "chunk": MIB, "created_at": 0, "size": 2 * MIB + 12345,
    }  # fmt: skip
    done = run("decrypt", "image", "back", "--key-file", "key", "--json", "--id", told["id"], "--epoch", "7")
    assert json.loads(done.stdout) == told
    assert (run.folder / "back").read_bytes() == run.data.read_bytes()
    shown = json.loads(run("inspect", "image", "--json").stdout)
    assert shown == told | {"verified": False}
    assert json.loads(run("inspect", "image", "--json", "--key-file", "key").stdout) == told | {"verified": True}
    words = run("inspect", "image").stdout.decode()
    assert "web-1" in words
    assert "no: no key" in words
    for name in ("image", "back"):
        assert (run.folder / name).stat().st_mode & 0o777 == 0o600


def test_as_filters_with_the_key_by_descriptor(run: Runner) -> None:
    encrypt, decrypt = f"image encrypt --key-fd 3 3<key {' '.join(NAMED)}", "image decrypt --key-fd 9 9<key"
    done = run.shell(f"cat data | {encrypt} | {decrypt} | cmp - data")
    assert done.returncode == 0, done.stderr
    assert done.stderr.decode().count("2.0 MiB of VM web-1, key version 2, epoch 0, id ") == 2
    done = run.shell(f"{encrypt} --json <data 2>told | {decrypt} --json 2>>told | cmp - data && cat told")
    one, two = map(json.loads, done.stdout.splitlines())
    assert one == two


def test_the_key_is_read_at_once_from_a_pipe_and_from_standard_input(run: Runner) -> None:
    image = run.encrypted()
    assert run("decrypt", "image", "back", "--key-fd", "0", input=KEY).returncode == 0
    read_end, write_end = os.pipe()
    process = subprocess.Popen(
        [KEYPEER, "image", "decrypt", "--key-fd", str(read_end)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=(read_end,),
    )
    os.close(read_end)
    os.write(write_end, KEY)
    os.close(write_end)
    assert process.communicate(image.read_bytes(), timeout=RUN_S)[0] == run.data.read_bytes()
    assert process.returncode == 0


@pytest.mark.parametrize(("at", "length"), [(0, 5), (MIB - 2, 4), (2 * MIB, 12345), (2 * MIB + 12345, 0), (7, None)])
@pytest.mark.parametrize("xts", [(), ("--xts", "--epoch", "1")])
def test_a_part_is_read_without_the_rest(run: Runner, at: int, length: int | None, xts: tuple[str, ...]) -> None:
    run.encrypted(*xts)
    part = ("--at", str(at), *(("--length", str(length)) if length is not None else ()))
    done = run("decrypt", "image", "--key-file", "key", *part, *xts, *(NAMED if xts else ()))
    assert done.returncode == 0, done.stderr
    assert done.stdout == run.data.read_bytes()[at : None if length is None else at + length]


@pytest.mark.parametrize("part", [("--at", "99999999"), ("--at", "2100000", "--length", "99999")])
def test_a_part_that_is_not_there_is_refused(run: Runner, part: tuple[str, ...]) -> None:
    run.encrypted()
    done = run("decrypt", "image", "back", "--key-file", "key", *part)
    assert (done.returncode, error(done)) == (Exit.BAD_INPUT, "image.argument")
    assert "back" not in run.files()
    done = run.shell(f"cat image | image decrypt --key-file key {' '.join(part)}")
    assert (done.returncode, error(done), done.stdout) == (Exit.BAD_INPUT, "input.file", b"")


def test_xts_keeps_the_length(run: Runner) -> None:
    options = ("--xts", "--epoch", "4", "--chunk", "65536", "--key-file", "key", *NAMED)
    told = json.loads(run("encrypt", "data", "image", *options, "--json").stdout)
    assert told == {"vm": "web-1", "version": 2, "epoch": 4, "unit": 65536, "size": 2 * MIB + 12345}
    assert (run.folder / "image").stat().st_size == run.data.stat().st_size
    assert run("decrypt", "image", "back", *options).returncode == 0
    assert (run.folder / "back").read_bytes() == run.data.read_bytes()
    assert run("encrypt", "data", "short", *options, "--size", "5").returncode == Exit.BAD_INPUT
    assert "short" not in run.files()


# A child's peak counts from its fork (getrusage(2)), so a small process has to be its parent. KiB, on standard error.
PEAK = """import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""


def test_hundreds_of_mebibytes_pass_in_bounded_memory(big: Runner) -> None:
    for source, target, *arguments in (("data", "image", "encrypt", *NAMED), ("image", "back", "decrypt")):
        command = [KEYPEER, "image", *arguments, source, target, "--key-file", "key", "--json"]
        done = subprocess.run(
            [sys.executable, "-c", PEAK, *command], cwd=big.folder, capture_output=True, check=True, timeout=300
        )
        assert json.loads(done.stdout)["size"] == BIG
        assert int(done.stderr.split()[-1]) * 1024 < MEMORY_MAX
    assert big.shell("cmp data back").returncode == 0
    assert big.shell("rm back; image decrypt image - --key-file key --at 314572794 --length 6").stdout[3:] == b"end"


# ── what must not pass ─────────────────────────────────────────────────────────────────────────────────────────────

OTHER = "printf '%064d' 1 | tr -d '\\n' >other; chmod 600 other"
REFUSALS = {
    "another key": (f"{OTHER}; image decrypt image back --key-file other", "image.key"),
    "another VM": ("image decrypt image back --key-file key --vm web-2", "image.vm"),
    "another version": ("image decrypt image back --key-file key --key-version 3", "image.vm"),
    "another epoch": ("image decrypt image back --key-file key --epoch 1", "image.other"),
    "another id": (f"image decrypt image back --key-file key --id {'ab' * 16}", "image.other"),
    "cut": ("head -c 1500000 image >cut; image decrypt cut back --key-file key", "image.damaged"),
    "cut at a chunk": ("head -c -12361 image >cut; image decrypt cut back --key-file key", "image.damaged"),
    "cut through a pipe": ("head -c 1500000 image | image decrypt - back --key-file key", "image.damaged"),
    "nothing through a pipe": ("image decrypt - back --key-file key </dev/null", "image.not_one"),
    "a flipped bit": (
        "cp image bad; printf X | dd of=bad bs=1 seek=1200000 conv=notrunc status=none; "
        "image decrypt bad back --key-file key",
        "image.damaged",
    ),
    "no image": ("image decrypt data back --key-file key", "image.not_one"),
    "a flipped bit, verified": (
        "cp image bad; printf X | dd of=bad bs=1 seek=1200000 conv=notrunc status=none; "
        "image inspect bad --key-file key",
        "image.damaged",
    ),
    "cut, inspected": ("head -c 150 image >cut; image inspect cut", "image.truncated"),
    "no such file": ("image decrypt nothing back --key-file key", "input.file"),
    "a folder": ("mkdir d; image decrypt d back --key-file key", "input.file"),
    "a folder as target": ("mkdir d; image decrypt image d --key-file key", "output.file"),
    "no such folder": ("image decrypt image no/back --key-file key", "output.file"),
    "a file that is there": ("image decrypt image data --key-file key", "output.exists"),
    "a key others may read": ("chmod 640 key; image decrypt image back --key-file key", "key.file"),
    "no key file": ("image decrypt image back --key-file no", "key.file"),
    "a closed descriptor": ("image decrypt image back --key-fd 77", "key.file"),
    "a short key": ("head -c 63 key >k; chmod 600 k; image decrypt image back --key-file k", "key.size"),
    "a long key": ("cat key key >k; chmod 600 k; image decrypt image back --key-file k", "key.size"),
    "a wiped key": ("head -c 64 /dev/zero | image decrypt image back --key-fd 0", "key.size"),
    "input of another size": (
        f"image encrypt data back --key-file key {' '.join(NAMED)} --size 2109498",
        "image.size",
    ),
    "a name no VM has": ("image encrypt data back --key-file key --vm WEB --key-version 1", "image.argument"),
    "a tail too short for XTS": (
        f"head -c 1048580 data | image encrypt - back --xts --epoch 1 --key-file key {' '.join(NAMED)}",
        "image.unit",
    ),
    "no agent": ("image decrypt image back --release --vm web-1 --home /nonexistent", "state.missing"),
    "a full device": ("image decrypt image --key-file key >/dev/full", "output.file"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_refused_with_a_reason_and_nothing_under_the_name(run: Runner, what: str) -> None:
    script, code = REFUSALS[what]
    run.encrypted()
    before = run.data.read_bytes()
    done = run.shell(script)
    assert (done.returncode, error(done)) == (Exit.BAD_INPUT, code)
    assert KEY.hex().encode() not in done.stdout + done.stderr
    assert "back" not in run.files()
    assert not [name for name in run.files() if name.endswith(".partial")]
    assert run.data.read_bytes() == before


USAGE = (
    "encrypt data image",
    "encrypt data image --key-file key --key-version 1",
    "encrypt data image --key-file key --vm web-1",
    "encrypt data image --key-file key --key-fd 3 --vm web-1 --key-version 1",
    "encrypt data image --key-fd 1 --vm web-1 --key-version 1",
    "encrypt --key-fd 0 --vm web-1 --key-version 1",
    "encrypt data image --key-file key --vm web-1 --key-version 1 --xts",
    "encrypt data image --key-file key --vm web-1 --key-version 1 --chunk 4095",
    "encrypt data image --release --vm web-1 --key-version 1",
    "encrypt data image --key-file key --vm web-1 --key-version 1 --host a",
    "decrypt data image --release",
    "decrypt data image --key-file key --length 5",
    "decrypt data image --key-file key --chunk 4096",
    "decrypt data image --key-file key --id 00",
    "decrypt data image --key-file key --id zz",
    "decrypt data image --key-file key --xts --epoch 1",
    "decrypt data image --key-file key --xts --vm web-1 --epoch 1",
    "inspect data --epoch 1",
)


@pytest.mark.parametrize("line", USAGE)
def test_a_wrong_command_line_changes_nothing(run: Runner, line: str) -> None:
    before = run.files()
    done = run(*line.split(), input=b"")
    assert (done.returncode, done.stdout, run.files()) == (Exit.USAGE, b"", before)


def test_errors_are_json_beside_the_data(run: Runner) -> None:
    image = run.encrypted().read_bytes()
    done = run("decrypt", "--key-file", "key", "--json", input=image[:-1])
    assert done.returncode == Exit.BAD_INPUT
    assert run.data.read_bytes().startswith(done.stdout)
    assert json.loads(done.stderr)["code"] == "image.damaged"
    done = run("decrypt", "image", "data", "--key-file", "key", "--json")
    assert (json.loads(done.stdout)["code"], done.stderr) == ("output.exists", b"")


def test_what_a_cut_stream_gave_out_is_a_beginning_and_told(run: Runner) -> None:
    run.encrypted()
    done = run.shell("head -c 1500000 image | image decrypt --key-file key")
    assert (done.returncode, error(done)) == (Exit.BAD_INPUT, "image.damaged")
    assert done.stdout == run.data.read_bytes()[:MIB]


# ── where it is written ────────────────────────────────────────────────────────────────────────────────────────────


def test_force_overwrites_through_links_and_makes_it_the_owners_alone(run: Runner) -> None:
    run.encrypted()
    (run.folder / "old").write_bytes(b"old")
    (run.folder / "link").symlink_to("old")
    assert run("decrypt", "image", "link", "--key-file", "key", "--force").returncode == 0
    assert (run.folder / "link").is_symlink()
    assert (run.folder / "old").read_bytes() == run.data.read_bytes()
    assert run("decrypt", "image", "image", "--key-file", "key", "--force").returncode == 0
    assert (run.folder / "image").read_bytes() == run.data.read_bytes()


def test_a_failure_with_force_leaves_what_was_there(run: Runner) -> None:
    image = run.encrypted()
    image.write_bytes(image.read_bytes()[:-1])
    (run.folder / "old").write_bytes(b"old")
    assert run("decrypt", "image", "old", "--key-file", "key", "--force").returncode == Exit.BAD_INPUT
    assert (run.folder / "old").read_bytes() == b"old"


def test_a_named_pipe_is_written_and_stays_one(run: Runner) -> None:
    run.encrypted()
    done = run.shell("mkfifo pipe; cat pipe >back & image decrypt image pipe --key-file key && wait; test -p pipe")
    assert done.returncode == 0, done.stderr
    assert (run.folder / "back").read_bytes() == run.data.read_bytes()


@pytest.mark.parametrize("command", [("encrypt", "data", *NAMED), ("decrypt", "image")])
def test_a_full_disk_leaves_nothing(run: Runner, command: tuple[str, ...]) -> None:
    run.encrypted()
    before = run.files()

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (MIB + 500, MIB + 500))

    done = run(command[0], command[1], "new", *command[2:], "--key-file", "key", preexec_fn=small)
    assert (done.returncode, error(done), run.files()) == (Exit.BAD_INPUT, "output.file", before)


def test_a_reader_that_goes_away_ends_it(big: Runner) -> None:
    done = big.shell("image encrypt --key-file key --vm web-1 --key-version 2 <data | head -c 8")
    assert (done.returncode, error(done), done.stdout) == (Exit.BAD_INPUT, "output.closed", b"KPIMAGE1")


@pytest.fixture
def half_way(run: Runner) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts an encryption whose input stops half-way; it has written a chunk then."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [KEYPEER, "image", "encrypt", "-", "new", "--key-file", "key", *NAMED],
            cwd=run.folder,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        started.append(process)
        assert process.stdin is not None
        # More than a pipe holds beside two chunks: when all is taken, the first chunk is out.
        process.stdin.write(bytes(3 * MIB + 65536))
        process.stdin.flush()
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=RUN_S)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_stopped_half_way_it_leaves_nothing(
    run: Runner, half_way: Callable[[], subprocess.Popen[bytes]], number: signal.Signals
) -> None:
    before = run.files()
    process = half_way()
    process.send_signal(number)
    assert process.wait(timeout=RUN_S) == 128 + number
    assert run.files() == before


def test_killed_half_way_nothing_has_the_name_and_the_draft_is_no_image(
    run: Runner, half_way: Callable[[], subprocess.Popen[bytes]]
) -> None:
    before = run.files()
    process = half_way()
    process.kill()
    process.wait(timeout=RUN_S)
    (draft,) = run.files() - before
    assert draft.startswith(".new.")
    assert draft.endswith(".partial")
    assert (run.folder / draft).stat().st_size > MIB
    done = run("decrypt", draft, "back", "--key-file", "key")
    assert (done.returncode, "back" in run.files()) == (Exit.BAD_INPUT, False)


def test_a_name_taken_meanwhile_is_not_overwritten(
    run: Runner, half_way: Callable[[], subprocess.Popen[bytes]]
) -> None:
    process = half_way()
    (run.folder / "new").write_bytes(b"another's")
    _, words = process.communicate(timeout=RUN_S)
    assert (process.returncode, b"File exists" in words) == (Exit.BAD_INPUT, True)
    assert (run.folder / "new").read_bytes() == b"another's"
    assert not [name for name in run.files() if name.endswith(".partial")]


def test_descriptors_that_do_not_block_are_waited_for(run: Runner) -> None:
    """As those that a program with an event loop hands down."""
    image = run.encrypted().read_bytes()
    give_end, take_end = os.pipe()
    out_read, out_write = os.pipe()
    for descriptor in (give_end, out_write):
        os.set_blocking(descriptor, False)
    process = subprocess.Popen(
        [KEYPEER, "image", "decrypt", "--key-file", "key"],
        cwd=run.folder,
        stdin=give_end,
        stdout=out_write,
        stderr=subprocess.PIPE,
    )
    os.close(give_end)
    os.close(out_write)

    def give() -> None:
        with open(take_end, "wb") as file:
            file.write(image)

    writer = threading.Thread(target=give)
    writer.start()
    with open(out_read, "rb") as file:
        found = file.read()
    writer.join()
    _, words = process.communicate(timeout=RUN_S)
    assert (process.returncode, found == run.data.read_bytes()) == (0, True), words


def test_a_running_one_dumps_no_core(run: Runner, half_way: Callable[[], subprocess.Popen[bytes]]) -> None:
    process = half_way()
    assert "Max core file size        0                    0" in Path(f"/proc/{process.pid}/limits").read_text()


# ── how far it is ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_long_work_is_told_line_by_line_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([0.0, 5.0, 10.0, 11.0, 21.0])
    with Meter("encrypted", 4 * MIB, now=lambda: next(times)) as told:
        for count in range(1, 5):
            told(count * MIB)
    assert capsys.readouterr().err == "encrypted: 2.0 MiB of 4.0 MiB\nencrypted: 4.0 MiB of 4.0 MiB\n"


def test_a_terminal_shows_a_bar(big: Runner) -> None:
    command = f"'{KEYPEER}' image encrypt data shown --key-file key {' '.join(NAMED)}; rm shown"
    done = subprocess.run(
        ["script", "-qec", command, "/dev/null"],
        cwd=big.folder,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        capture_output=True,
        timeout=RUN_S,
        check=False,
    )
    assert b"/314.6 MB" in done.stdout, done.stdout
    assert b"encrypted 300.0 MiB of VM web-1" in done.stdout


def test_a_terminal_gets_no_image(run: Runner) -> None:
    done = subprocess.run(
        ["script", "-qec", f"'{KEYPEER}' image encrypt data --key-file key {' '.join(NAMED)}", "/dev/null"],
        cwd=run.folder,
        capture_output=True,
        timeout=RUN_S,
        check=False,
    )
    assert (done.returncode, b"output.terminal" in done.stdout) == (Exit.BAD_INPUT, True)
    assert b"KPIMAGE1" not in done.stdout


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (1 << 50, "1024.0 TiB")]
)
def test_sizes_in_words(count: int, words: str) -> None:
    assert size(count) == words
