"""Tier 5: a folder appears whole or not at all, whatever ends its export."""

import errno
import inspect
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
from artifacts import KILLS, contents, exported_after_kills, write_bounded

from lightvlm_fx.artifact.manifest import differing
from lightvlm_fx.errors import InputError
from lightvlm_fx.exporters.folder import written_aside

MANIFEST = "lightvlm.json"


def write(folder, number):
    """Something that passes for an artifact: its manifest lists its files, each of which holds the number."""
    for name in ("0.bin", "1.bin", "2.bin"):
        (folder / name).write_text(f"{number}\n" * 2000)
    (folder / "lightvlm.json").write_text(json.dumps({"files": {"0.bin": {}, "1.bin": {}, "2.bin": {}}, "number": number}))


def number_of(folder):
    """The number that every file of a whole folder holds."""
    assert sorted(f.name for f in folder.iterdir()) == ["0.bin", "1.bin", "2.bin", MANIFEST]
    [number] = {line for f in folder.glob("*.bin") for line in f.read_text().splitlines()}
    assert json.loads((folder / MANIFEST).read_text())["number"] == int(number)
    return number


@pytest.fixture
def target(tmp_path):
    """An artifact numbered 1."""
    with written_aside(tmp_path / "target") as aside:
        write(aside, 1)
    return tmp_path / "target"


# --- the exchange -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", ["nothing", "empty", "artifact"])
def test_appears_once_the_block_ends(tmp_path, target, before):
    if before != "artifact":
        shutil.rmtree(target)
    if before == "empty":
        target.mkdir()
    with written_aside(target) as aside:
        write(aside, 2)
        assert aside.parent == target.parent
        assert not (target / MANIFEST).exists() or number_of(target) == "1"
    assert number_of(target) == "2"
    assert list(tmp_path.iterdir()) == [target]


def test_makes_parents(tmp_path):
    with written_aside(tmp_path / "a" / "b") as aside:
        write(aside, 1)
    assert number_of(tmp_path / "a" / "b") == "1"


def fail(target, error):
    with written_aside(target) as aside:
        write(aside, 2)
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("before", ["nothing", "artifact"])
def test_an_exception_leaves_what_was(tmp_path, target, before, error):
    if before == "nothing":
        shutil.rmtree(target)
    with pytest.raises(error):
        fail(target, error)
    if before == "nothing":
        assert not list(tmp_path.iterdir())
    else:
        assert number_of(target) == "1"
        assert list(tmp_path.iterdir()) == [target]


def test_where_the_system_cannot_exchange(tmp_path, target, monkeypatch):
    monkeypatch.setattr("lightvlm_fx.exporters.folder.sys.platform", "other")
    with written_aside(target) as aside:
        write(aside, 2)
    assert number_of(target) == "2"
    assert list(tmp_path.iterdir()) == [target]


def test_refuses_what_is_no_artifact(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    for name in ("file", "folder"):
        with pytest.raises(InputError, match=f"{name} holds something that is no artifact of lightvlm_fx; give a new or an empty folder"):
            fail(tmp_path / name, KeyError)
    assert contents(tmp_path) == {"file": b"mine", "folder/notes.txt": b"mine"}


def stands(folder, what):
    """Put something of the user's into `folder`; returns how the error names it."""
    if what == "a folder":
        (folder / "mine").mkdir()
        return "mine"
    if what == "a file in a folder":
        (folder / "mine").mkdir()
        (folder / "mine" / "notes.txt").write_text("mine")
        return "mine"
    if what == "a link":
        (folder / "notes.txt").symlink_to(folder.parent)
        return "notes.txt"
    (folder / "my-notes.txt").write_text("mine")
    return "my-notes.txt"


@pytest.mark.parametrize("what", ["a file", "a folder", "a file in a folder", "a link"])
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_refuses_an_artifact_with_files_of_the_users(tmp_path, target, what, when):
    """They were deleted."""
    if when == "before":
        name = stands(target, what)
        with pytest.raises(InputError, match=rf"target holds {name} beside the files that its lightvlm\.json lists"):
            fail(target, KeyError)
    else:
        with pytest.raises(InputError, match="beside the files"), written_aside(target) as aside:  # noqa: PT012
            write(aside, 2)
            stands(target, what)
    assert list(tmp_path.iterdir()) == [target]
    assert (target / "0.bin").read_text().startswith("1")
    assert "mine" in {f.name for f in target.rglob("*")} or (target / "my-notes.txt").exists() or (target / "notes.txt").is_symlink()


def test_refuses_a_manifest_beside_files_that_it_does_not_list(tmp_path):
    for text in ("", "{}", "[]", "old", '{"files": 3}', '{"files": {"../other": {}}}'):
        home = tmp_path / "home"
        home.mkdir(exist_ok=True)
        (home / MANIFEST).write_text(text)
        (home / "my-notes.txt").write_text("mine")
        with pytest.raises(InputError, match=r"my-notes\.txt beside the files"):
            fail(home, KeyError)
    assert contents(tmp_path)["home/my-notes.txt"] == b"mine"


def test_names_five_of_many(target):
    for i in range(9):
        (target / f"note{i}").write_text("mine")
    with pytest.raises(InputError, match="holds note0, note1, note2, note3, note4 and 4 more beside"):
        fail(target, KeyError)


def test_what_a_process_of_the_same_number_left_goes(tmp_path):
    """In a container, every export may have the same number."""
    (tmp_path / f".target.partial-{os.getpid()}-abc").mkdir()
    with written_aside(tmp_path / "target") as aside:
        write(aside, 1)
    assert [f.name for f in tmp_path.iterdir()] == ["target"]


def test_a_link_to_an_artifact(tmp_path, target):
    (tmp_path / "link").symlink_to(target)
    with written_aside(tmp_path / "link") as aside:
        write(aside, 2)
    assert number_of(tmp_path / "link") == "2"
    assert sorted(f.name for f in tmp_path.iterdir()) == ["link", "target"]


# --- processes that are killed ----------------------------------------------------------------------------

REWRITE = """
number = 1
while True:
    number += 1
    with written_aside(Path(sys.argv[1])) as aside:
        write(aside, number)
    print(number, flush=True)
"""
IMPORTS = "import json\nimport sys\nfrom pathlib import Path\nfrom lightvlm_fx.exporters.folder import written_aside\n"


def rewriting(target):
    """A process that writes the target again and again."""
    code = IMPORTS + inspect.getsource(write) + REWRITE
    return subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE, text=True)


def partial(folder):
    return [f.name for f in folder.iterdir() if ".partial-" in f.name]


def test_a_kill_at_any_moment_leaves_a_whole_one(tmp_path, target):
    left = 0
    for i in range(24):
        process = rewriting(target)
        last = int(process.stdout.readline())
        time.sleep(i * 0.0007)  # a round takes a few milliseconds
        process.kill()
        last = int(([last, *process.stdout.read().split()])[-1])
        process.wait()
        assert last <= int(number_of(target)) <= last + 1
        left += bool(partial(tmp_path))
        assert len(partial(tmp_path)) <= 1  # what the one before left is gone
    assert left, "no kill fell into the writing: nothing was tried"
    with written_aside(target) as aside:
        write(aside, 9)
    assert number_of(target) == "9"
    assert list(tmp_path.iterdir()) == [target]


def test_what_a_living_process_writes_stays(tmp_path, target):
    other = tmp_path / f".target.partial-{os.getppid()}-abc"
    other.mkdir()
    beside = tmp_path / ".target2.partial-99999999-abc"
    beside.mkdir()
    with written_aside(target) as aside:
        write(aside, 2)
    assert other.is_dir()
    assert beside.is_dir()


def test_leftovers_of_a_name_with_brackets_go_too(tmp_path):
    (tmp_path / ".v[1].partial-99999999-abc").mkdir()
    with written_aside(tmp_path / "v[1]") as aside:
        write(aside, 1)
    assert [f.name for f in tmp_path.iterdir()] == ["v[1]"]


def test_two_exports_of_one_process(tmp_path):
    with written_aside(tmp_path / "target") as first, written_aside(tmp_path / "target") as second:
        write(second, 2)
        write(first, 1)
    assert number_of(tmp_path / "target") in "12"


def test_an_export_killed_on_its_way_leaves_the_old_one(shelf, bounded):
    """Real exports, by SIGKILL at several stages; the next export that may end replaces the old one and cleans up."""
    again = exported_after_kills(shelf, bounded)
    states = json.loads((shelf / "again.json").read_text())
    assert [s["at"] for s in states] == list(KILLS)
    for state in states:
        assert state["status"] == -signal.SIGKILL
        assert state["whole"], state
        assert len(state["beside"]) == 1, state
    assert not (again / "old").exists()
    assert not [f for f in shelf.iterdir() if f.name.startswith(".again.partial-")]
    assert not differing(again, json.loads((again / MANIFEST).read_text()))


# --- no room ----------------------------------------------------------------------------------------------


@pytest.fixture
def small_files():
    """Files of this process may grow to 48 KiB, as on a disk that is full."""
    before, action = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (48 << 10, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, action)


def test_an_export_without_room_leaves_the_old_one(tmp_path, target, small_files):
    with pytest.raises(OSError, match="File too large") as error:
        write_bounded(target)
    assert error.value.errno == errno.EFBIG
    assert number_of(target) == "1"
    assert list(tmp_path.iterdir()) == [target]


@pytest.fixture
def full_disk(tmp_path):
    """A file system of 512 KiB; skipped where this user may not mount one."""
    home = tmp_path / "disk"
    home.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", home], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount a small file system: {done.stderr.strip()}")
    yield home
    subprocess.run(["umount", home], check=True)


def fill(target):
    with written_aside(target) as aside:
        for i in itertools.count():
            (aside / f"{i}.bin").write_bytes(bytes(64 << 10))


def test_a_full_disk_leaves_the_old_one(full_disk):
    target = full_disk / "target"
    with written_aside(target) as aside:
        write(aside, 1)
    with pytest.raises(OSError, match="No space left"):
        fill(target)
    assert number_of(target) == "1"
    assert list(full_disk.iterdir()) == [target]
