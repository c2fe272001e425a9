"""Where the templates lie: inside the package in a wheel, beside it in a checkout or an editable install."""

from __future__ import annotations

from pathlib import Path

from m2gen.errors import M2GenError

_PACKAGE = Path(__file__).resolve().parents[1]


def templates_dir(package: Path = _PACKAGE) -> Path:
    """The folder of templates; `package` is the folder of m2gen itself."""
    places = (package / "templates", package.parent / "templates")
    for place in places:
        if place.is_dir():
            return place
    raise M2GenError(
        "the kernel templates",
        f"neither {places[0]} nor {places[1]} is a folder",
        "install m2gen again from a complete wheel or checkout",
    )
