"""Make the data files of `whence.testing` from a folder of posteriordb reference draws.

    python benchmarks/make_reference.py --data DIR

`DIR` holds, for each posterior, `NAME.data.json` and `NAME.npz` with one array of shape
`(chain, draw)` for each scalar variable. Written are the data as they are, and the moments
of the draws with their Monte Carlo standard errors.
"""

import argparse
import json
from pathlib import Path

import numpy as np

import whence.testing
from whence.testing._compare import estimate

SHIPPED = (
    "arK-arK",
    "bball_drive_event_0-hmm_drive_0",
    "earnings-logearn_height",
    "eight_schools-eight_schools_noncentered",
    "garch-garch11",
    "gp_pois_regr-gp_pois_regr",
    "hudson_lynx_hare-lotka_volterra",
    "kidiq-kidscore_momhsiq",
    "kidiq_with_mom_work-kidscore_interaction_c",
    "low_dim_gauss_mix-low_dim_gauss_mix",
    "mesquite-logmesquite",
    "sblri-blr",
)
SOURCE = (
    "posteriordb 1.0, https://github.com/stan-dev/posteriordb, BSD 3-Clause License. "
    "The moments are computed from its reference draws."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    folder = parser.parse_args().data
    out = Path(whence.testing.__file__).parent / "data"
    out.mkdir(exist_ok=True)
    total = 0
    for name in SHIPPED:
        data = json.loads((folder / f"{name}.data.json").read_text())
        draws = np.load(folder / f"{name}.npz")
        reference = {
            variable: _rounded(estimate(draws[variable].astype(np.float64)))
            for variable in draws.files
        }
        content = {"source": SOURCE, "data": data, "reference": reference}
        text = json.dumps(content, separators=(",", ":")) + "\n"
        (out / f"{name}.json").write_text(text)
        total += len(text)
        print(f"{name:50}{len(text):>8} bytes")
    print(f"{'total':50}{total:>8} bytes")


def _rounded(moments) -> dict[str, float]:
    return {name: float(f"{value:.8g}") for name, value in moments._asdict().items()}


if __name__ == "__main__":
    main()
