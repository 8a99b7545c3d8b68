"""The example of the documentation that removes files one after the other, as it stands there."""

from itertools import pairwise
from pathlib import Path

# Only the delays are a twentieth of those in the documentation; the names that it uses are given.
SOURCE = """
    import datetime
    import logging
    import os
    from pathlib import Path

    from uwsgi_tasks import TaskExecutor, get_current_task, task

    logging.basicConfig(format="%(message)s", level=logging.INFO)
    logger = logging.getLogger("removal")
    folder = Path(os.environ["FOLDER"])

    def select_file_for_removal(previous):
        names = ["a", "b", "c"]
        following = names[names.index(previous) + 1 :] if previous else names
        return following[0] if following else None

    def del_file(name):
        record("remove", name=name, left=sorted(path.name for path in folder.iterdir()))
        if name == "b":
            raise IOError("b is busy")
        (folder / name).unlink()

    @task(executor=TaskExecutor.SPOOLER, at=datetime.timedelta(seconds=0.5))
    def remove_files_sequentially(previous_selected_file=None):
        # get current SpoolerTask object
        current_task = get_current_task()

        selected_file = select_file_for_removal(previous_selected_file)

        # we should stop the task here
        if selected_file is None:
            logger.info('All files were removed')
            for filename, removed_at in current_task.buffer['results'].items():
                logger.info('File "%s" was removed at "%s"', filename, removed_at)
            for filename, error_message in current_task.buffer['errors'].items():
                logger.info('File "%s", error: "%s"', filename, error_message)
            return

        try:
            logger.info('Removing the file "%s"', selected_file)
            # ... remove the file ...
            del_file(selected_file)
        except IOError as ex:
            logger.exception('Cannot delete file "%s"', selected_file)

            # let's try to remove this one more time later
            io_errors = current_task.buffer.setdefault('errors', {}).get(selected_file)
            if not io_errors:
                current_task.buffer['errors'][selected_file] = str(ex)
                current_task.at = datetime.timedelta(seconds=1)
                return current_task(previous_selected_file)

        # save datetime of removal
        current_task.buffer.setdefault('results', {})[selected_file] = datetime.datetime.now()

        # run in async mode
        return current_task(selected_file)
"""


def test_files_are_removed_one_after_the_other_and_a_failure_is_tried_once_more(serve, tmp_path):
    for name in "abc":
        (tmp_path / name).touch()
    server = serve(SOURCE, env={"FOLDER": str(tmp_path)})
    # Before the call: by the time that it returns, some of the wait may be over.
    called_at = server.call("(__import__('time').time(), remove_files_sequentially())[0]")

    server.wait_for(lambda: 'File "b", error: "b is busy"' in server.log)
    events = server.events("remove")
    assert [event["name"] for event in events] == ["a", "b", "b", "c"]
    times = [called_at, *(event["time"] for event in events)]
    waits = [after - before for before, after in pairwise(times)]
    # Once it is changed, the new time holds for all that follow.
    for wait, least in zip(waits, [0.4, 0.5, 1, 1], strict=True):
        assert wait >= least
    assert [path.name for path in Path(tmp_path).iterdir()] == ["b"]
    for name in "abc":
        assert f'File "{name}" was removed at' in server.log
    server.wait_for(lambda: not server.waiting())
    assert not server.delayed()
    assert not server.dead()
