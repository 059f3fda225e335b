"""Ship the top-level `conf/` and `sweeps/` inside the wheel, as `sdft/conf` and `sdft/conf/sweeps`."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["sdft", "sdft.*"]), "sdft.conf", "sdft.conf.sweeps"],
    package_dir={"sdft.conf": "conf", "sdft.conf.sweeps": "sweeps"},
    package_data={
        "sdft": ["assets/**/*.json", "assets/**/*.safetensors", "pages/*"],
        "sdft.conf": ["**/*.yaml", "**/*.txt"],
        "sdft.conf.sweeps": ["*.yaml"],
    },
)
