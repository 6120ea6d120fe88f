"""Memory of the lazy strategy: a layer's worth of temporaries per candidate in flight, whatever the depth and the population."""

import jax
import jax.numpy as jnp
import pytest

import perturbjax as pj
from perturbjax.scoring import ChunkProgram
from perturbjax.sharding import make_mesh

WIDTH, HIDDEN, LAYERS, BATCH = 256, 512, 8, 4
LAYER = 2 * WIDTH * HIDDEN * 4
ACTIVATIONS = 3 * BATCH * (WIDTH + HIDDEN) * 4


def fn(params, candidate, x):
    def layer(h, weights):
        return h + jnp.tanh(h @ weights["up"]) @ weights["down"], None

    return jax.lax.scan(layer, x, params)[0].sum()


def temporaries(noise: pj.Noise, chunk: int, in_flight: int, strategy: str) -> int:
    params = {"up": jnp.ones((LAYERS, WIDTH, HIDDEN)), "down": jnp.ones((LAYERS, HIDDEN, WIDTH))}
    program = ChunkProgram(fn, params, noise, make_mesh(jax.devices()[:1]), chunk, in_flight, strategy=strategy)
    analysis = program.lower(jnp.ones((BATCH, WIDTH))).compile().memory_analysis()
    assert analysis is not None
    layers = analysis.temp_size_in_bytes / LAYER / in_flight
    print(f"{strategy}, {noise.distribution}, rank {noise.rank}, {in_flight} in flight, chunks of {chunk}: {layers:.2f} layers a candidate")
    return analysis.temp_size_in_bytes


@pytest.mark.parametrize("noise", [pj.Noise(), pj.Noise("rademacher")], ids=str)
def test_one_layer_per_candidate_in_flight_and_nothing_per_candidate(noise):
    sixteen = temporaries(noise, 16, 4, "lazy")
    assert sixteen < (1.5 * LAYER + ACTIVATIONS) * 4
    assert sixteen == temporaries(noise, 4096, 4, "lazy")


def test_a_copy_takes_all_layers():
    """What the lazy strategy saves, by the same measure."""
    assert temporaries(pj.Noise(), 16, 1, "copy") > LAYERS * LAYER


def test_factors_take_less_than_a_layer_per_candidate():
    assert temporaries(pj.Noise(rank=1), 16, 16, "low_rank") < 0.25 * LAYER * 16
