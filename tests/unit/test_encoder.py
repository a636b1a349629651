"""The encoders: what every encoder owes, the model against an independent one, and the fallback."""

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from lmos_mesh import models
from lmos_mesh.eight_bits import EIGHT_BITS_FILE, install_eight_bits
from lmos_mesh_router.encoder import (
    Encoder,
    HashingEncoder,
    MiniLmEncoder,
    load_encoder,
    runs_of,
)

Vectors = npt.NDArray[np.float32]

TEXTS = st.text(st.characters(), max_size=200)  # lone surrogates included

PARAPHRASES = [
    ("how much do I owe this month?", "show me my current bill"),
    ("my internet is down", "the wifi stopped working"),
    ("book a flight to Rome", "I need a plane ticket to Italy"),
    ("cancel my subscription", "I want to end my contract"),
]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The installed model, its graph built anew by today's code. Skips without one, but in CI."""
    installed = models.installed_model()
    if installed is None:
        reason = f"no embedding model in {models.models_dir()}: run `{models.INSTALL}`"
        if "CI" in os.environ:
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMOS_MODELS_DIR", str(folder))
        yield models.install_model(source=installed, say=lambda _: None)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def minilm(model_folder: Path) -> MiniLmEncoder:
    return MiniLmEncoder(model_folder)


# Which texts run together


@given(
    st.lists(st.integers(2, 256), max_size=200),
    st.integers(1, 40),
    st.integers(1, 3000),
)
def test_every_text_runs_once_and_no_run_is_too_big(
    lengths: list[int], max_texts: int, max_tokens: int
) -> None:
    runs = runs_of(lengths, max_texts=max_texts, max_tokens=max_tokens)

    assert sorted(index for run in runs for index in run) == list(range(len(lengths)))
    for run in runs:
        padded = len(run) * max(lengths[index] for index in run)
        assert len(run) <= max_texts
        assert padded <= max_tokens or len(run) == 1


@given(st.lists(st.integers(2, 256), max_size=200))
def test_texts_run_in_order_of_length(lengths: list[int]) -> None:
    runs = runs_of(lengths)

    in_order = [lengths[index] for run in runs for index in run]
    assert in_order == sorted(lengths)


# The hashing encoder


@given(st.lists(TEXTS, max_size=8))
def test_hashing_gives_each_text_one_finite_row_of_length_one(texts: list[str]) -> None:
    rows = HashingEncoder().encode(texts)

    assert rows.shape == (len(texts), 512)
    assert rows.dtype == np.float32
    assert np.isfinite(rows).all()
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


@given(TEXTS)
def test_hashing_does_not_depend_on_the_other_texts(text: str) -> None:
    encoder = HashingEncoder()

    (alone,) = encoder.encode([text])
    np.testing.assert_array_equal(encoder.encode(["before", text, "after"])[1], alone)


@pytest.mark.parametrize("text", ["", " \n\t", "?!", "😀", "€", "\ud800", "a", "字", "\0"])
def test_hashing_takes_texts_without_words(text: str) -> None:
    (row,) = HashingEncoder().encode([text])

    assert math.isclose(float(np.linalg.norm(row)), 1, abs_tol=1e-5)


@pytest.mark.parametrize("text", ["a" * 100_000, "word " * 20_000, "😀" * 100_000, "ﷺ" * 100_000])
def test_hashing_takes_a_hundred_thousand_characters_in_its_stride(text: str) -> None:
    encoder = HashingEncoder()
    started = time.thread_time()

    (row,) = encoder.encode([text])

    assert time.thread_time() - started < 1
    assert math.isclose(float(np.linalg.norm(row)), 1, abs_tol=1e-5)


def test_an_empty_text_is_like_no_other() -> None:
    empty, other = HashingEncoder().encode(["", "show my bill"])

    assert abs(float(empty @ other)) < 0.2


def test_hashing_is_the_same_in_every_process() -> None:
    code = (
        "import sys; from lmos_mesh_router.encoder import HashingEncoder; "
        "sys.stdout.write(HashingEncoder().encode(['Zeig mir die Rechnung 😀'])[0].tobytes().hex())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }

    (row,) = HashingEncoder().encode(["Zeig mir die Rechnung 😀"])
    assert outputs == {row.tobytes().hex().encode()}


def test_hashing_sees_spelling_through_case_and_endings() -> None:
    said, same, inflected, other = HashingEncoder().encode(
        ["cancel my order", "CANCEL my Order!", "cancelled orders", "weather in Paris"]
    )

    assert float(said @ same) > 0.999
    assert float(said @ inflected) > float(said @ other) + 0.2


# The model


def test_the_model_agrees_with_an_independent_forward_pass(
    minilm: MiniLmEncoder, model_folder: Path
) -> None:
    texts = [
        "hello",
        "How much do I owe this month?",
        "Müller's naïve café costs 3€ 😀 字",
        "",
        "please " * 150,
        "the quick brown fox jumps over the lazy dog " * 60,  # cut at 256 tokens
    ]
    reference = NumpyBert(model_folder)

    rows = minilm.encode(texts)

    for text, row in zip(texts, rows, strict=True):
        assert float(reference.encode(text) @ row) > 0.9999, text[:40]


def test_paraphrases_are_closer_than_unrelated_texts(minilm: MiniLmEncoder) -> None:
    left = minilm.encode([a for a, _ in PARAPHRASES])
    right = minilm.encode([b for _, b in PARAPHRASES])

    cosines = left @ right.T

    related = np.diag(cosines)
    unrelated = cosines[~np.eye(len(PARAPHRASES), dtype=bool)]
    assert related.min() > 0.35
    assert related.mean() > unrelated.mean() + 0.25
    assert (cosines.argmax(axis=1) == np.arange(len(PARAPHRASES))).all()


def test_hashing_finds_fewer_of_the_same_paraphrases() -> None:
    encoder = HashingEncoder()
    cosines = (
        encoder.encode([a for a, _ in PARAPHRASES]) @ encoder.encode([b for _, b in PARAPHRASES]).T
    )

    assert (cosines.argmax(axis=1) == np.arange(len(PARAPHRASES))).sum() < len(PARAPHRASES)


def test_a_text_gets_the_same_vector_alone_and_among_longer_ones(minilm: MiniLmEncoder) -> None:
    texts = [f"text number {n} " + "and more " * (n * 7 % 40) for n in range(40)]

    together = minilm.encode(texts)

    for index in (0, 7, 31, 39):
        (alone,) = minilm.encode([texts[index]])
        assert float(alone @ together[index]) > 0.99999


@pytest.mark.parametrize(
    "text", ["", "?!", "😀", "\ud800", "\0", "a" * 100_000, "word " * 20_000, "字" * 100_000]
)
def test_the_model_takes_any_text(minilm: MiniLmEncoder, text: str) -> None:
    (row,) = minilm.encode([text])

    assert np.isfinite(row).all()
    assert math.isclose(float(np.linalg.norm(row)), 1, abs_tol=1e-4)


def test_no_texts_give_no_rows(minilm: MiniLmEncoder) -> None:
    assert minilm.encode([]).shape == (0, 384)
    assert HashingEncoder().encode([]).shape == (0, 512)


def test_a_short_text_is_not_padded_to_a_fixed_length(minilm: MiniLmEncoder) -> None:
    def best_of_five(text: str) -> float:
        times: list[float] = []
        for _ in range(5):
            started = time.perf_counter()
            minilm.encode([text])
            times.append(time.perf_counter() - started)
        return min(times)

    # Padded to 128 tokens, the short one would take as long as the long one.
    assert best_of_five("show my bill") * 2 < best_of_five("bill " * 126)


def test_the_model_answers_several_threads_at_once(minilm: MiniLmEncoder) -> None:
    texts = [f"question number {n}" for n in range(24)]
    expected = minilm.encode(texts)

    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(minilm.encode, ([text] for text in texts)))

    assert (np.sum(np.concatenate(rows) * expected, axis=1) > 0.99999).all()


# Which one answers


def test_the_installed_model_is_loaded(model_folder: Path) -> None:
    encoder = load_encoder()

    assert (encoder.name, encoder.semantic, encoder.reason) == ("all-MiniLM-L6-v2", True, "")
    assert encoder.dimensions == encoder.encode(["x"]).shape[1] == 384


def test_fingerprints_differ_and_fit_into_a_key(model_folder: Path) -> None:
    fingerprints = {load_encoder().fingerprint, HashingEncoder().fingerprint}

    assert len(fingerprints) == 2
    assert "minilm-l6-v2-53aa51172d142c89-256-v1" in fingerprints
    assert all(f.replace("-", "").isalnum() and f.isascii() for f in fingerprints)


def assert_hashing_because(encoder: Encoder, *words: str) -> None:
    assert isinstance(encoder, HashingEncoder)
    assert not encoder.semantic
    assert "hashing" in encoder.name
    for word in words:
        assert word in encoder.reason


def test_without_a_model_hashing_answers_and_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMOS_MODELS_DIR", str(tmp_path))

    assert_hashing_because(load_encoder(), str(tmp_path), "lmos models install")


@pytest.mark.parametrize("package", ["onnxruntime", "tokenizers"])
def test_without_a_package_hashing_answers_and_names_it(
    model_folder: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)

    assert_hashing_because(load_encoder(), package, "lmos-mesh[router]")


@pytest.mark.parametrize("damaged", [models.GRAPH_FILE, models.TOKENIZER_FILE])
def test_with_a_damaged_model_hashing_answers_and_says_what_to_do(
    model_folder: Path, damaged: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / models.MODEL_NAME
    shutil.copytree(model_folder, copy)
    (copy / damaged).write_bytes(b"\xff" * (copy / damaged).stat().st_size)
    monkeypatch.setenv("LMOS_MODELS_DIR", str(tmp_path))

    assert_hashing_because(load_encoder(), str(copy), "lmos models install --force")


# With weights of eight bits


@pytest.fixture(scope="module")
def eight_bits(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model with both graphs."""
    folder = tmp_path_factory.mktemp("eight") / models.MODEL_NAME
    shutil.copytree(model_folder, folder)
    said: list[str] = []
    made = install_eight_bits(folder, say=said.append)
    assert said[-1].endswith(str(folder))
    assert install_eight_bits(folder, say=said.append) == made
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_with_eight_bits_vectors_are_nearly_the_same_under_another_fingerprint(
    eight_bits: Path, minilm: MiniLmEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMOS_MODELS_DIR", str(eight_bits.parent))
    texts = [text for pair in PARAPHRASES for text in pair]

    encoder = load_encoder(precision="int8")

    assert (encoder.name, encoder.semantic, encoder.reason) == ("all-MiniLM-L6-v2 (int8)", True, "")
    assert encoder.fingerprint != minilm.fingerprint
    assert encoder.fingerprint.replace("-", "").isalnum()
    assert load_encoder().fingerprint == minilm.fingerprint
    cosines = np.sum(encoder.encode(texts) * minilm.encode(texts), axis=1)
    assert cosines.min() > 0.95
    assert (eight_bits / EIGHT_BITS_FILE).stat().st_size < 30e6
    assert models.model_faults(eight_bits) == []


def test_where_it_was_not_made_the_model_itself_answers_and_says_how_to_make_it(
    model_folder: Path, minilm: MiniLmEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMOS_MODELS_DIR", str(model_folder.parent))

    encoder = load_encoder(precision="int8")

    assert encoder.fingerprint == minilm.fingerprint
    assert "lmos models install --int8" in encoder.reason


def test_where_it_is_damaged_the_model_itself_answers_and_says_so(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / models.MODEL_NAME
    shutil.copytree(model_folder, folder)
    (folder / EIGHT_BITS_FILE).write_bytes(b"\xff" * 100)
    monkeypatch.setenv("LMOS_MODELS_DIR", str(tmp_path))

    encoder = load_encoder(precision="int8")

    assert encoder.name == models.MODEL_NAME
    assert EIGHT_BITS_FILE in encoder.reason
    assert "lmos models install --int8 --force" in encoder.reason


def test_a_models_folder_may_be_reached_through_a_link(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(model_folder.parent)
    monkeypatch.setenv("LMOS_MODELS_DIR", str(tmp_path / "link"))

    assert load_encoder().semantic


def erf(x: Vectors) -> Vectors:
    """Abramowitz and Stegun 7.1.26, off by at most 1.5e-7."""
    t = 1 / (1 + 0.3275911 * np.abs(x))
    powers = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
    series = sum((a * t ** (n + 1) for n, a in enumerate(powers)), np.zeros_like(x))
    return (np.sign(x) * (1 - series * np.exp(-x * x))).astype(np.float32)


class NumpyBert:
    """The same network written a second time, in numpy and from the published weights alone."""

    def __init__(self, folder: Path) -> None:
        raw = (folder / models.WEIGHTS_FILE).read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        self._w: dict[str, Vectors] = {
            name: np.frombuffer(
                raw[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]],
                np.float32,
            ).reshape(entry["shape"])
            for name, entry in json.loads(raw[8:start]).items()
            if entry.get("dtype") == "F32"
        }
        self._tokenizer = Tokenizer.from_file(str(folder / models.TOKENIZER_FILE))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def encode(self, text: str) -> Vectors:
        ids = self._tokenizer.encode(text).ids
        if len(ids) > 256:
            ids = [*ids[:255], ids[-1]]
        e = "embeddings."
        x = self._w[e + "word_embeddings.weight"][ids]
        x = x + self._w[e + "position_embeddings.weight"][: len(ids)]
        x = self._norm(x + self._w[e + "token_type_embeddings.weight"][0], e + "LayerNorm")
        for layer in range(6):
            x = self._layer(x, f"encoder.layer.{layer}.")
        mean = x.mean(axis=0)
        return mean / np.linalg.norm(mean)

    def _layer(self, x: Vectors, name: str) -> Vectors:
        heads: list[Vectors] = []
        q, k, v = (self._dense(x, f"{name}attention.self.{p}") for p in ("query", "key", "value"))
        for head in range(12):
            columns = slice(32 * head, 32 * head + 32)
            scores = q[:, columns] @ k[:, columns].T / math.sqrt(32)
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
            heads.append(scores / scores.sum(axis=1, keepdims=True) @ v[:, columns])
        seen = self._dense(np.concatenate(heads, axis=1), f"{name}attention.output.dense")
        x = self._norm(x + seen, f"{name}attention.output.LayerNorm")
        wide = self._dense(x, f"{name}intermediate.dense")
        wide = (wide * 0.5 * (1 + erf(wide / math.sqrt(2)))).astype(np.float32)
        return self._norm(x + self._dense(wide, f"{name}output.dense"), f"{name}output.LayerNorm")

    def _dense(self, x: Vectors, name: str) -> Vectors:
        return x @ self._w[name + ".weight"].T + self._w[name + ".bias"]

    def _norm(self, x: Vectors, name: str) -> Vectors:
        centred = x - x.mean(axis=1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-12)
        return scaled * self._w[name + ".weight"] + self._w[name + ".bias"]
