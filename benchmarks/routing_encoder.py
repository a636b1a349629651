"""How long a short message takes to embed, and what weights of eight bits gain and cost."""

import time
from collections.abc import Sequence

import numpy as np
from routing_data import Vectors

from lmos_mesh import models
from lmos_mesh_router.encoder import Encoder


def embedding_times(vectors: Vectors, texts: Sequence[str]) -> tuple[list[float], list[float]]:
    """Milliseconds of the router's encoder, and of a session that is given ready-made numbers.

    One thread each, one text at a time, in turns, so that what else the machine does meets both.
    """
    import onnxruntime
    from tokenizers import Tokenizer

    path = models.installed_model()
    assert path is not None, "the model was loaded before"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    bare = onnxruntime.InferenceSession(
        str(path / models.GRAPH_FILE), options, providers=["CPUExecutionProvider"]
    )
    tokenizer = Tokenizer.from_file(str(path / models.TOKENIZER_FILE))
    tokenizer.no_padding()

    def ours(text: str) -> float:
        began = time.perf_counter()
        vectors.encoder.encode([text])
        return (time.perf_counter() - began) * 1e3

    def theirs(text: str) -> float:
        ids = np.array([tokenizer.encode(text).ids], np.int64)
        given = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        began = time.perf_counter()
        bare.run(None, given)
        return (time.perf_counter() - began) * 1e3

    for text in texts[:30]:
        ours(text)
        theirs(text)
    times: tuple[list[float], list[float]] = ([], [])
    for number, text in enumerate(texts):
        # Whoever comes second finds the caches warmer or colder: each is second every other time.
        if number % 2:
            times[0].append(ours(text))
            times[1].append(theirs(text))
        else:
            times[1].append(theirs(text))
            times[0].append(ours(text))
    return times


def in_turns(encoders: Sequence[Encoder], texts: Sequence[str]) -> list[list[float]]:
    """Milliseconds of each, one text at a time; every other time in the other order."""
    times: list[list[float]] = [[] for _ in encoders]
    for text in texts[:30]:
        for encoder in encoders:
            encoder.encode([text])
    for number, text in enumerate(texts):
        order = list(enumerate(encoders))
        for at, encoder in order if number % 2 else reversed(order):
            began = time.perf_counter()
            encoder.encode([text])
            times[at].append((time.perf_counter() - began) * 1e3)
    return times
