"""What uWSGI loads, in its master process, before it forks the workers, spoolers and mules."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "bookshop.settings")
application = get_wsgi_application()

# Now, and not at the first request: timers and crons can be declared in the master only, and the
# spoolers and mules, which serve no request, inherit the tasks from it.
from shop import clock, tasks  # noqa: E402, F401
