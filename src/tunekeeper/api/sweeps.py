"""/fine_tuning/jobs/{id}/sweep: how the trials of a sweep stand.

A sweep is a job: it is created, followed, paused and cancelled as one, and the best trial becomes its model. What
OpenAI's jobs do not have are the field `sweep` of POST /fine_tuning/jobs and this route.
"""

from fastapi import APIRouter

from tunekeeper.api.pagination import known_query
from tunekeeper.api.services import ServicesDep
from tunekeeper.jobs.trials import report
from tunekeeper.types import Json

router = APIRouter(prefix="/fine_tuning")


@router.get("/jobs/{job_id}/sweep", dependencies=[known_query()])
def retrieve(job_id: str, services: ServicesDep) -> Json:
    """Show what was measured of each trial, the best first."""
    return report(services.store.get_job(job_id))
