"""The commands of manage.py, each named as its file."""
