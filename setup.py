"""Everything that is static stands in pyproject.toml; compiled extensions will be declared here."""

from setuptools import setup

setup()
