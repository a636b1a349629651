# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# onnxruntime ships no types; what comes out of it is given its type where it does.
"""Turns texts into vectors that a router can compare: by meaning, or failing that by spelling."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
import numpy.typing as npt

from lmos_mesh import models
from lmos_mesh.eight_bits import INSTALL, digest_of, installed_eight_bits
from lmos_mesh.errors import SettingsError
from lmos_mesh_router import hashing

MAX_TEXTS_PER_RUN = 32
MAX_TOKENS_PER_RUN = 1024
"""Attention takes memory by the square of a text's length, and onnxruntime keeps what it took."""

MAX_CHARACTERS = 16_384
"""More than the model's 256 tokens take in any language; the rest would be read for nothing."""

Precision = Literal["fp32", "int8"]

_VERSION = 1
"""Part of the fingerprint: raised when the same text would get another vector."""


class Encoder(Protocol):
    """What turns texts into vectors. Vectors of different fingerprints must not be compared."""

    @property
    def name(self) -> str:
        """What to call it on a screen."""
        ...

    @property
    def fingerprint(self) -> str:
        """The same on every machine where the same text gets the same vector; fits a key."""
        ...

    @property
    def dimensions(self) -> int:
        """How long a vector is."""
        ...

    @property
    def semantic(self) -> bool:
        """Whether texts of like meaning in other words come out alike."""
        ...

    @property
    def reason(self) -> str:
        """Why this one answers in place of the model; empty for the model itself."""
        ...

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """One row per text, each of length one. Blocks; may be called from several threads."""
        ...


class MiniLmEncoder:
    """The installed all-MiniLM-L6-v2, run by onnxruntime.

    Args:
        path: The folder that `lmos_mesh.models` installed.
        threads: How many threads one call may use. One is best for a server: two are a fifth
            faster on an idle machine, and no faster on a busy one, where others pay for them.
        eight_bits: The graph with weights of eight bits, to run in place of the model's own.
        reason: Why this one answers in place of what was asked for.

    Raises:
        ImportError: onnxruntime or tokenizers is not installed.
        SettingsError: The folder holds no model that can be run.
    """

    dimensions = models.DIMENSIONS
    semantic = True

    def __init__(
        self, path: Path, threads: int = 1, *, eight_bits: Path | None = None, reason: str = ""
    ) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        manifest = models.read_manifest(path)
        self.name, self.reason = models.MODEL_NAME, reason
        form = ""
        if eight_bits is not None:
            self.name += " (int8)"
            form = f"int8-{digest_of(eight_bits)[:8]}-"
        self.fingerprint = (
            f"minilm-l6-v2-{manifest.weights_sha256[:16]}-{models.MAX_TOKENS}-{form}v{_VERSION}"
        )
        graph = eight_bits or path / models.GRAPH_FILE
        options = cast("Any", onnxruntime.SessionOptions())
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Threads that spin for the next call take the processor from everybody else.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(graph), options, providers=["CPUExecutionProvider"]
            )
            self._tokenizer = Tokenizer.from_file(str(path / models.TOKENIZER_FILE))
        except Exception as exc:  # neither library has a base class for its errors
            raise SettingsError(
                f"The embedding model {graph} cannot be loaded: {exc}",
                hint=f"`{INSTALL if eight_bits else models.INSTALL} --force` installs it anew",
            ) from exc
        # The published file pads every text to 128 tokens, which makes a short one seven times
        # as slow, and cuts them at 128.
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(models.MAX_TOKENS)

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """One row per text, each of length one. Blocks; may be called from several threads."""
        tokens = [self._tokens(text) for text in texts]
        rows = np.empty((len(tokens), self.dimensions), np.float32)
        for chosen in runs_of([len(ids) for ids in tokens]):
            rows[chosen] = self._run([tokens[index] for index in chosen])
        return rows

    def _tokens(self, text: str) -> list[int]:
        # JSON can carry half a surrogate pair, which the tokenizer refuses.
        readable = text[:MAX_CHARACTERS].encode("utf-8", "replace").decode()
        return self._tokenizer.encode(readable).ids

    def _run(self, tokens: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        longest = max(map(len, tokens))
        ids = np.zeros((len(tokens), longest), np.int64)
        mask = np.zeros_like(ids)
        for row, present in enumerate(tokens):
            ids[row, : len(present)] = present
            mask[row, : len(present)] = 1
        (found,) = cast(
            "list[npt.NDArray[np.float32]]",
            self._session.run(None, {"input_ids": ids, "attention_mask": mask}),
        )
        return found


class HashingEncoder:
    """Compares spelling; answers only where the model is missing, and says why it does."""

    name = "hashing (no embedding model)"
    fingerprint = f"hashing-{hashing.DIMENSIONS}-v1"
    dimensions = hashing.DIMENSIONS
    semantic = False

    def __init__(self, reason: str = "") -> None:
        self.reason = reason

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """One row per text, each of length one."""
        rows = np.empty((len(texts), self.dimensions), np.float32)
        for row, text in enumerate(texts):
            rows[row] = hashing.hash_text(text)
        return rows


def load_encoder(*, threads: int = 1, precision: Precision = "fp32") -> Encoder:
    """The embedding model; what does in its place says in its `reason` why.

    Args:
        threads: How many threads one call may use.
        precision: Whether the model as it was published is wanted, or that with eight bits. Where
            the latter is missing or damaged the former answers.
    """
    try:
        path = models.installed_model()
        if path is None:
            return HashingEncoder(
                f"no complete embedding model in {models.models_dir() / models.MODEL_NAME}; "
                f"`{models.INSTALL}` gets it"
            )
        if precision == "fp32":
            return MiniLmEncoder(path, threads)
        return _with_eight_bits(path, threads)
    except ImportError as exc:
        return HashingEncoder(
            f"the package {exc.name or exc} is missing; pip install 'lmos-mesh[router]'"
        )
    except SettingsError as exc:
        return HashingEncoder(str(exc))


def _with_eight_bits(path: Path, threads: int) -> Encoder:
    graph = installed_eight_bits(path)
    if graph is None:
        reason = f"there is no int8 model in {path}; `{INSTALL}` makes it"
    else:
        try:
            return MiniLmEncoder(path, threads, eight_bits=graph)
        except SettingsError as exc:
            reason = str(exc)
    return MiniLmEncoder(path, threads, reason=reason)


def runs_of(
    lengths: Sequence[int],
    *,
    max_texts: int = MAX_TEXTS_PER_RUN,
    max_tokens: int = MAX_TOKENS_PER_RUN,
) -> list[list[int]]:
    """Which texts to run together: like lengths, so that little of a run is padding.

    Returns:
        The indexes of the texts, each exactly once. A run holds at most `max_texts` texts, and at
        most `max_tokens` tokens with its padding, unless it is a single text.
    """
    runs: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        # In order of length, so the one that joins is the longest, and all are padded to it.
        if runs and len(runs[-1]) < max_texts:
            padded = (len(runs[-1]) + 1) * lengths[index]
            if padded <= max_tokens:
                runs[-1].append(index)
                continue
        runs.append([index])
    return runs
