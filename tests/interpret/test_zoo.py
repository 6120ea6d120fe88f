"""Models of other people's libraries against the dense oracle; those that are not installed (extra ``zoo``) are skipped."""

from importlib.metadata import PackageNotFoundError, version

import jax
import pytest
from support.zoo import ZOO, errors


@pytest.mark.filterwarnings("ignore")  # the libraries' own
@pytest.mark.parametrize("library", ZOO)
def test_one_forward_of_a_library_equals_the_oracle(library):
    try:
        version(library)
    except PackageNotFoundError:
        pytest.skip(f"{library} is not installed: pip install 'perturbjax[zoo]'")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        assert max(errors(ZOO[library][1]())) < 1e-4
