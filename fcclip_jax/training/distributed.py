"""Makes this process one of several, and keeps watch over the others.

Order at the start: 1. who this is (places.py); 2. all come, or it is said who did not (lifeline.py); 3. jax joins.
"""

import logging
import os
from collections.abc import Mapping

from fcclip_jax.training.lifeline import EXIT_LOST, Lifeline, ProcessesMissing, gather, leave_at_once
from fcclip_jax.training.places import find_place

log = logging.getLogger(__name__)

__all__ = ["EXIT_LOST", "Lifeline", "ProcessesMissing", "join", "leave_at_once"]


def join(
    *,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    wait: float = 300.0,
    lost_after: float = 30.0,
    environment: Mapping[str, str] = os.environ,
) -> Lifeline:
    """Waits for all processes, and makes jax see the devices of all. Must come before jax looks for devices.

    Args:
        coordinator, num_processes, process_id: None where the environment says them.
        wait: seconds in which all processes must come.
        lost_after: seconds of silence after which a process counts as lost.

    Raises:
        ValueError: the environment says nothing, or what does not fit together.
        ProcessesMissing: somebody did not come.
    """
    import jax

    place = find_place(environment, coordinator=coordinator, num_processes=num_processes, process_id=process_id)
    lines, hosts = gather(place, wait, log.warning)
    lifeline = Lifeline(place, lines, hosts, lost_after)
    try:
        jax.distributed.initialize(
            place.address,
            place.count,
            place.index,
            local_device_ids=place.local_devices,
            cluster_detection_method="deactivate",
            initialization_timeout=max(60, round(wait)),
            # The lifeline speaks first, and says who.
            heartbeat_timeout_seconds=max(100, round(3 * lost_after)),
        )
    except RuntimeError as error:
        lifeline.leave(EXIT_LOST)
        raise ValueError(f"jax cannot join the run at {place.address}: {error}") from error
    return lifeline
