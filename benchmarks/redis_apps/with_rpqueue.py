"""rpqueue: four threads a process; results are not kept."""

import sys

import jobs
import rpqueue

JOBS = 5_000

rpqueue.set_redis_connection_settings(port=jobs.PORT)
rpqueue.LOG_LEVEL = "ERROR"
call = rpqueue.task(queue=b"default", name="count")(jobs.count).execute
sample_call = rpqueue.task(queue=b"default", name="sample")(jobs.sample).execute


def workers(processes):
    # Not `rpqueue.run`, which imports a module that Python 3.12 no longer has.
    program = (
        "import rpqueue, with_rpqueue as module;"
        f"rpqueue.execute_tasks(None, 4, {processes}, module=module.__name__)"
    )
    return [[sys.executable, "-c", program]]
