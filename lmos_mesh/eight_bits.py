"""The embedding model with weights of eight bits: smaller and faster, a little less exact, opt-in.

It is made on this machine from the installed model and lies beside it. Its vectors are others than
the model's own, so it has another fingerprint, by its own content.
"""

import contextlib
import hashlib
import importlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from lmos_mesh import models
from lmos_mesh.errors import SettingsError

EIGHT_BITS_FILE = "model-int8.onnx"
INSTALL = f"{models.INSTALL} --int8"


def installed_eight_bits(folder: Path) -> Path | None:
    """The graph in the folder of an installed model; None if it was not made."""
    path = folder / EIGHT_BITS_FILE
    return path if path.is_file() else None


def digest_of(graph: Path) -> str:
    """What tells one making of it from another.

    Raises:
        SettingsError: It cannot be read.
    """
    try:
        with graph.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise SettingsError(
            f"{graph} cannot be read: {exc.strerror}", hint=f"`{INSTALL} --force` makes it anew"
        ) from exc


def install_eight_bits(folder: Path, *, say: Callable[[str], None], force: bool = False) -> Path:
    """Make it of the model in a folder; does nothing if it is there already.

    Args:
        folder: Where the model is installed.
        say: Told what is going on, one line at a time.
        force: Make it anew.

    Raises:
        SettingsError: It could not be made; nothing has changed.
    """
    path = folder / EIGHT_BITS_FILE
    if path.is_file() and not force:
        say(f"The int8 model is installed in {folder}")
        return path
    try:
        onnx = cast("Any", importlib.import_module("onnx"))
        quantization = cast("Any", importlib.import_module("onnxruntime.quantization"))
    except ImportError as exc:
        raise SettingsError(
            f"Making the int8 model needs the package {exc.name or exc}",
            hint="pip install 'lmos-mesh[router]'",
        ) from exc
    say("Turning the weights into eight bits (some seconds)")
    try:
        graph = onnx.load(str(folder / models.GRAPH_FILE))
    except Exception as exc:  # protobuf and onnx raise what they like
        raise SettingsError(
            f"The embedding model in {folder} cannot be read: {exc}",
            hint=f"`{models.INSTALL} --force` installs it anew",
        ) from exc
    # Says that shapes need not be worked out first: every matrix here has a constant for one side.
    onnx.helper.set_model_props(graph, {"onnx.quant.pre_process": "onnxruntime.quant"})
    try:
        with tempfile.TemporaryDirectory(prefix=".int8-", dir=folder) as staging:
            made = Path(staging) / EIGHT_BITS_FILE
            quantization.quantize_dynamic(
                graph,
                str(made),
                # A scale for each column, and seven bits of each weight: sums of products of
                # eight overflow on processors without VNNI, which ruins some vectors silently.
                per_channel=True,
                reduce_range=True,
                weight_type=quantization.QuantType.QInt8,
            )
            with made.open("rb") as file, contextlib.suppress(OSError):
                os.fsync(file.fileno())
            made.replace(path)
    except OSError as exc:
        raise SettingsError(
            f"The int8 model cannot be written to {folder}: {exc.strerror or exc}",
            hint="make that folder writable, or set LMOS_MODELS_DIR to another one",
        ) from exc
    say(f"The int8 model is installed in {folder}")
    return path
