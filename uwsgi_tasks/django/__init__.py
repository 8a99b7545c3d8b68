"""For Django: put ``uwsgi_tasks.django`` into INSTALLED_APPS."""
