"""Pictures of a report for the documentation: docs/images/report-light.png and report-dark.png.

python bench/report_images.py [--page FILE]

The report is of Online Retail, which comes with the package.  A page has the system's font, a picture has
Inter if it is installed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import browser

from hpf_gpu import HPF, report
from hpf_gpu.datasets import load_online_retail

IMAGES = Path(__file__).parents[1] / "docs" / "images"
WIDTH, HEIGHT = 1200, 720
FONT = "document.body.style.fontFamily = 'Inter, ' + getComputedStyle(document.body).fontFamily"
#: What is in the window: in the light the factors, in the dark a search for items.
PLACE = "scrollTo(0, document.querySelector('#{}').getBoundingClientRect().top + scrollY - 45)"


def write_report(path: Path) -> None:
    """Orders by customer and product, as in the demo."""
    retail = load_online_retail()
    orders = retail.purchases[["UserId", "ItemId"]].assign(Count=retail.purchases["Orders"])
    model = HPF(30, check_every=5, stop_thr=1e-4, verbose=False, random_seed=1).fit(orders)
    names = retail.product_names.str.split().str.join(" ").str.capitalize()
    report(model, path, names=names, data=orders, title="Orders of a gift shop")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, help="write the page here, too")
    arguments = parser.parse_args()
    program = browser.find()
    if program is None:
        sys.stderr.write(f"none of {', '.join(browser.NAMES)} is installed\n")
        return 1
    IMAGES.mkdir(exist_ok=True)
    with TemporaryDirectory() as folder, browser.Browser(program) as chromium:
        page = arguments.page or Path(folder, "report.html")
        write_report(page)
        for name, dark, place in (("light", False, "factors"), ("dark", True, "items")):
            chromium.open(page, WIDTH, HEIGHT, dark=dark, scale=1.5)
            chromium.evaluate(FONT)
            if dark:
                chromium.type("#item-search", "bunting")
                chromium.evaluate("document.querySelector('#item-list button').click()")
                chromium.evaluate("document.activeElement.blur()")  # no cursor, which blinks
            chromium.evaluate(PLACE.format(place))
            chromium.settle()
            chromium.picture(IMAGES / f"report-{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
