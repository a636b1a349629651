import json
import subprocess
import sys
from pathlib import Path

import pytest

from lmos_mesh import models
from lmos_mesh.errors import SettingsError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for models."""
    monkeypatch.setenv("LMOS_MODELS_DIR", str(tmp_path / "models"))
    return tmp_path / "models"


def place_model(home: Path, *, weights_sha256: str = models.WEIGHTS_SHA256) -> Path:
    """A folder that looks like an installed model: right names, right sizes, no real weights."""
    folder = home / models.MODEL_NAME
    folder.mkdir(parents=True)
    files: dict[str, models.FileRecord] = {}
    for name in (models.GRAPH_FILE, models.WEIGHTS_FILE, models.TOKENIZER_FILE):
        (folder / name).write_bytes(b"four")
        files[name] = models.FileRecord(size=4, sha256=weights_sha256)
    manifest = models.Manifest(
        name=models.MODEL_NAME,
        format=models.FORMAT,
        source="a test",
        dimensions=models.DIMENSIONS,
        max_tokens=models.MAX_TOKENS,
        files=files,
        licences=(),
    )
    (folder / models.MANIFEST_FILE).write_text(manifest.model_dump_json())
    return folder


def test_importing_the_module_loads_neither_numpy_nor_onnx() -> None:
    heavy = "{'numpy', 'onnx', 'onnxruntime', 'tokenizers'}"
    code = f"import lmos_mesh.models, sys; sys.exit(bool({heavy} & sys.modules.keys()))"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_lmos_models_dir_names_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMOS_MODELS_DIR", "/srv/models")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")

    assert models.models_dir() == Path("/srv/models")


def test_lmos_models_dir_may_begin_with_a_tilde_or_be_relative(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    monkeypatch.setenv("LMOS_MODELS_DIR", "~/models")
    assert models.models_dir() == tmp_path / "models"
    monkeypatch.setenv("LMOS_MODELS_DIR", "models")
    assert models.models_dir() == tmp_path / "models"


def test_the_cache_directory_of_the_desktop_comes_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LMOS_MODELS_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")

    assert models.models_dir() == Path("/cache/lmos-mesh/models")


@pytest.mark.parametrize(
    ("platform", "expected"),
    [("linux", ".cache/lmos-mesh/models"), ("darwin", "Library/Caches/lmos-mesh/models")],
)
def test_otherwise_the_platform_decides(
    platform: str, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("LMOS_MODELS_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", platform)

    assert models.models_dir() == tmp_path / expected


def test_on_windows_it_is_the_local_application_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LMOS_MODELS_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    monkeypatch.setattr(sys, "platform", "win32")

    assert models.models_dir() == Path("/local/lmos-mesh/models")


def test_nothing_is_installed_in_an_empty_folder(home: Path) -> None:
    assert models.installed_model() is None


def test_a_folder_with_a_manifest_and_all_its_files_is_an_installed_model(home: Path) -> None:
    folder = place_model(home)

    assert models.installed_model() == folder


@pytest.mark.parametrize(
    "missing", [models.MANIFEST_FILE, models.GRAPH_FILE, models.WEIGHTS_FILE, models.TOKENIZER_FILE]
)
def test_a_model_that_lacks_a_file_is_not_installed(home: Path, missing: str) -> None:
    folder = place_model(home)
    (folder / missing).unlink()

    assert models.installed_model() is None


def test_a_model_with_a_file_cut_short_is_not_installed(home: Path) -> None:
    folder = place_model(home)
    (folder / models.WEIGHTS_FILE).write_bytes(b"fou")

    assert models.installed_model() is None


def test_a_model_with_other_weights_is_not_installed(home: Path) -> None:
    place_model(home, weights_sha256="0" * 64)

    assert models.installed_model() is None


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b'{"name": "x"}'])
def test_a_damaged_manifest_is_said_to_be_one(home: Path, content: bytes) -> None:
    folder = place_model(home)
    (folder / models.MANIFEST_FILE).write_bytes(content)

    assert models.installed_model() is None
    with pytest.raises(SettingsError, match=r"manifest\.json is damaged .*install --force"):
        models.read_manifest(folder)


def test_a_model_of_another_format_is_told_from_a_damaged_one(home: Path) -> None:
    folder = place_model(home)
    manifest = json.loads((folder / models.MANIFEST_FILE).read_bytes())
    manifest["format"] = models.FORMAT + 1
    (folder / models.MANIFEST_FILE).write_text(json.dumps(manifest))

    assert models.installed_model() is None
    with pytest.raises(SettingsError, match="another version of lmos-mesh"):
        models.read_manifest(folder)


def test_faults_name_every_file_that_changed_or_vanished(home: Path) -> None:
    folder = place_model(home)
    (folder / models.TOKENIZER_FILE).unlink()

    faults = models.model_faults(folder)

    assert len(faults) == 3  # these files never had the hash that the manifest gives them
    assert any("tokenizer.json cannot be read" in fault for fault in faults)
    assert any("model.safetensors is not what was installed" in fault for fault in faults)


def test_faults_of_a_folder_without_a_model_say_so(home: Path) -> None:
    (fault,) = models.model_faults(home / models.MODEL_NAME)

    assert "holds no installed model" in fault
