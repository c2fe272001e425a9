"""Everything is in pyproject.toml but this: a wheel carries templates/ inside the package."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["m2gen", "m2gen.*"]), "m2gen.templates"],
    package_dir={"m2gen.templates": "templates"},
    package_data={"m2gen": ["py.typed", "wisdom/*.json"], "m2gen.testing": ["*.txt"], "m2gen.templates": ["**/*"]},
)
