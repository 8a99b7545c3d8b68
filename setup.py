from setuptools import setup

# Everything is in pyproject.toml; this file is for tools that ask for it.
setup()
