"""The processes of a run: joining, broadcasts, heartbeats, preemption. Every process runs the same program; process 0 writes and prints."""

from perturbjax.cluster.distributed import broadcast as broadcast
from perturbjax.cluster.distributed import broadcast_json as broadcast_json
from perturbjax.cluster.distributed import gather as gather
from perturbjax.cluster.distributed import is_main as is_main
from perturbjax.cluster.distributed import on_main as on_main
