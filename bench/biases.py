"""Do biases take the counts that factors should explain?  ELBO and recall with biases and without.

    python bench/biases.py online-retail FILE... --seeds 3 --k 50

Files and splits are those of bench/recommending.py; counts are taken as ones.  "prior" is what biases that
explain nothing cost the ELBO: Σ a·ln(1 + N/E[ξ]) over all biases, N the number of rows of the other side.
Fits end as HPF's do by default, or after ``--iterations``.
"""

from __future__ import annotations

import argparse

import numpy as np
from recommending import HELD_OUT, popularity_scores, read, recall, say, split

from hpf_gpu import HPF
from hpf_gpu.metrics import model_scores

WAYS = {
    "no biases": {},
    "biases": {"bias": True},
    "no biases, no hierarchy": {"hierarchical": False},
    "biases, no hierarchy": {"bias": True, "hierarchical": False},
}


def cost_of_prior(model: HPF) -> float:
    """Of biases without counts, in nats."""
    width = model.k + 1  # columns of a side that are not ones
    users, items = np.full((model.nusers, 1), model.b_prime), np.full((model.nitems, 1), model.d_prime)
    if model.hierarchical:
        users = (model.a_prime + width * model.a) / model.k_rte
        items = (model.c_prime + width * model.c) / model.t_rte
    of_users = model.a * np.log1p(model.nitems / users).sum()
    return float(of_users + model.c * np.log1p(model.nusers / items).sum())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="+", metavar="DATA", help="online-retail, or a file")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--k", type=int, default=50)
    parser.add_argument("--iterations", type=int)
    arguments = parser.parse_args()
    rule = {} if arguments.iterations is None else {"maxiter": arguments.iterations, "stop_crit": "maxiter"}
    for data in arguments.data:
        counts = read(data)
        for seed in range(arguments.seeds):
            train, held_out = split(counts, HELD_OUT, seed)
            say(f"{data}, seed {seed}: most popular {recall(popularity_scores(train), train, held_out):.3f}")
            for name, way in WAYS.items():
                given = {"k": arguments.k, "counts": "binary", "random_seed": seed, "verbose": False}
                model = HPF(**given | rule | way).fit(train)
                found = recall(model_scores(model), train, held_out)
                line = f"  {name:<26}recall {found:.3f}  ELBO {model.history_.elbo.iloc[-1]:,.0f}"
                if model.bias:
                    of_columns = model.Theta.sum(axis=0) * model.Beta.sum(axis=0)
                    share = of_columns[-2:].sum() / of_columns.sum()
                    line += f"  prior {cost_of_prior(model):,.0f}  biases explain {share:.0%} of the counts"
                say(f"{line}  {model.niter} iterations")


if __name__ == "__main__":
    main()
