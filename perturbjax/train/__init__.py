"""One gradient loop for all chapters: demonstrations, packed rows, a step on a mesh, and a loop that commits what it has done.

``loop.fit`` is the entry; it needs optax, grain and Orbax, which reading settings does without.
"""

from perturbjax.train.config import Training as Training
