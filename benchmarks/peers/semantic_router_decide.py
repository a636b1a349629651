"""Decides with semantic-router over vectors that were made beforehand; prints JSON.

    python semantic_router_decide.py GIVEN.npz mean|max|sum

Texts stand for rows of the file, so that its encoder costs nothing and is everybody's.
"""

import json
import sys
import time

import numpy as np
from semantic_router import Route
from semantic_router.encoders import DenseEncoder
from semantic_router.routers import IndexedRouter

given = np.load(sys.argv[1])
ROWS = {f"v{at}": row.tolist() for at, row in enumerate(given["vectors"])}
ROWS |= {f"q{at}": row.tolist() for at, row in enumerate(given["queries"])}


class Known(DenseEncoder):
    """Looks vectors up."""

    def __call__(self, docs: list[str]) -> list[list[float]]:
        return [ROWS[doc] for doc in docs]


def main() -> None:
    agents = given["agents"].tolist()
    routes = [
        Route(name=name, utterances=[f"v{at}" for at, one in enumerate(agents) if one == name])
        for name in dict.fromkeys(agents)
    ]
    router = IndexedRouter(
        encoder=Known(name="known"), routes=routes, aggregation=sys.argv[2], top_k=5
    )
    chosen: list[str] = []
    times: list[float] = []
    for at in range(len(given["queries"])):
        began = time.perf_counter()
        choice = router(f"q{at}")
        times.append((time.perf_counter() - began) * 1e3)
        chosen.append(choice.name or "")
    print(json.dumps({"chosen": chosen, "ms": times}))


main()
