"""Pages: their bytes, their policy, what they say, and what happens to models that are not as they should be."""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pages
import pytest
import torch

from scoresde import VPSDE, FlowMatching, Likelihood, Multistep, Parts, Run, load
from scoresde.core.errors import UsageError
from scoresde.page import exact_page, plane
from scoresde.page.charts import curve, even_ticks, short
from scoresde.page.data import pack_bytes, pack_floats, pack_steps, unpack
from scoresde.page.frame import Frame, angle, even
from scoresde.page.frames import NUMBERS, _counts
from scoresde.page.make import SAID
from scoresde.page.table import Table, make_table, noisy, table_error
from scoresde.page.views import views_of
from scoresde.page.write import fill
from scoresde.run.fitted import Fit, Fits, bindings
from scoresde.solvers.tuned import unrolled

SIZES = {"plane": 1_500_000, "image": 2_000_000}

# ------------------------------------------------------------------------------------------------------------ arrays


def test_packed_numbers_come_back() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 7, 11))
    x[1, 2, 3], x[0, 0, 0], x[2, 6, 10] = np.nan, np.inf, -4.0
    found = unpack(pack_steps(x, 2.0**-10))
    known = np.isfinite(x)
    assert np.array_equal(np.isfinite(found), known)
    assert np.abs(found[known] - x[known]).max() <= 2.0**-11
    assert np.array_equal(unpack(pack_floats(x[known])), x[known].astype("f4").astype(float))
    assert np.array_equal(unpack(pack_floats(x[known], half=True)), x[known].astype("f2").astype(float))
    share = rng.uniform(size=(5, 4))
    assert np.abs(unpack(pack_bytes(share)) - share).max() <= 0.5 / 255


def test_a_large_number_widens_the_step() -> None:
    packed = pack_steps([1.0, -1e6], 0.5)
    assert unpack(packed)[1] == pytest.approx(-1e6, rel=1e-4) and packed["step"] > 0.5
    assert np.isnan(unpack(pack_steps([np.nan, np.nan]))).all()
    with pytest.raises(UsageError, match="too large for half precision"):
        pack_floats([7e4], half=True)


# ------------------------------------------------------------------------------------------- the frame and the table


def test_the_frame_is_the_same_for_all_paths() -> None:
    z, log_snr = pages.states(64)
    mixture = pages.eight()[0]
    found = []
    for sde in (VPSDE(), FlowMatching()):
        run = pages.run_of(replace(mixture, sde=sde))
        found.append(Frame.of(replace(run, dtype=torch.float64)).x0(z, log_snr))
    assert torch.allclose(*found, atol=1e-9)
    c, s = angle(log_snr)
    assert torch.allclose(c.square() + s.square(), torch.ones_like(c)) and torch.allclose(2 * (c / s).log(), log_snr)
    r = torch.sigmoid(-even(-9.0, 7.0, 11) / 2)
    assert torch.allclose(r.diff(), r.diff()[0].expand(10))


def test_the_table_is_exact_at_its_nodes_and_near_between_them() -> None:
    frame = Frame.of(replace(pages.run_of(pages.eight()[0]), dtype=torch.float64))
    table = make_table(frame, 3.4, 33, 17)
    ticks, levels = np.linspace(-3.4, 3.4, 33), np.linspace(frame.low, frame.high, 17)
    z = np.array([[ticks[3], ticks[29]], [ticks[32], ticks[0]], [ticks[16], ticks[16]]])
    at = levels[[0, 16, 8]]
    truth = frame.x0(torch.from_numpy(z), torch.from_numpy(at)).numpy()
    assert np.abs(table(z, at) - truth).max() < 2.0**-11
    x0, eps = (pages.states(400, seed)[0] for seed in (1, 2))
    coarse = table_error(table, frame, 0.7 * x0, eps)
    fine = table_error(make_table(frame, 3.4, 65, 33), frame, 0.7 * x0, eps)
    assert fine.rms < 0.5 * coarse.rms < 0.05 and fine.rms < fine.most and fine.count == 400


def shifted(table: Table) -> Table:
    return replace(table, packed=pack_steps(np.roll(unpack(table.packed), 1, axis=-1), 2.0**-11))


def test_a_table_that_is_shifted_by_a_cell_has_a_large_error() -> None:
    frame = Frame.of(replace(pages.run_of(pages.eight()[0]), dtype=torch.float64))
    table = make_table(frame, 3.4, 65, 33)
    x0, eps = (pages.states(400, seed)[0] for seed in (1, 2))
    assert table_error(shifted(table), frame, 0.7 * x0, eps).rms > 5 * table_error(table, frame, 0.7 * x0, eps).rms
    z, log_snr = noisy(frame, x0, eps)
    assert z.shape == (400, 2) and frame.low < float(log_snr[0]) < float(log_snr[-1]) < frame.high


# ------------------------------------------------------------------------------------------------------------- pages


def test_a_page_of_the_plane() -> None:
    page, stored = pages.exact(), pages.parts(pages.exact())
    assert len(page.text.encode()) == page.facts["bytes"] < SIZES["plane"]
    assert (
        0.001 < page.facts["table_error"]["rms"] < 0.005
        and f"their error is {page.facts['table_error']['rms']}" in page.text
    )
    assert stored["about"]["exact"] and stored["network"] is None and len(stored["mixture"]["means"]) == 8
    for name in ("forward", "reverse", "compass", "field", "flows", "schedules", "solvers", "density"):
        assert f'<section id="{name}"' in page.text and page.text.count("data:image/png") == 8
    assert not re.search(r"\{\{|\}\}|\\\(|<!--", page.text.partition('id="data"')[0])
    # The density is that of the data, and its stated error covers the difference.
    found, truth = (unpack(stored["density"][name]) for name in ("log_prob", "truth"))
    near = truth > -8
    assert np.abs(found - truth)[near].max() < 0.02
    assert np.abs(unpack(stored["density"]["change"])[near]).max() < 0.05


def test_what_a_page_may_load() -> None:
    text = pages.exact().text
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1])
    script = re.findall(r"<script>(.*?)</script>", text, re.S)
    style = re.findall(r"<style>(.*?)</style>", text, re.S)
    assert len(script) == len(style) == 1 and text.count("<script") == 2
    digests = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in (script[0], style[0])]
    assert policy == (
        f"default-src 'none'; script-src 'sha256-{digests[0]}'; style-src 'sha256-{digests[1]}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    assert "://" not in text and "@import" not in text and "url(" not in text and ' style="' not in text
    words = ("localStorage", "sessionStorage", "indexedDB", "cookie", "fetch(", "XMLHttpRequest", "innerHTML", "eval(")
    assert not [word for word in words if word in script[0]]


def test_the_same_run_gives_the_same_bytes(trained: Path) -> None:
    run = load(trained / "moons")
    first, again = (pages.little(run) for _ in range(2))
    assert first.text == again.text
    assert pages.little(run, seed=1).text != first.text


def test_names_cannot_end_the_data() -> None:
    name = "</script><script>alert(1)</script><!-- {{data}} \\(x\\) &amp; \"'"
    page = pages.little(pages.run_of(pages.network(width=8).float(), name), pages.eight()[1])
    assert page.text.count("<script") == 2 and "alert(1)</script>" not in page.text
    assert pages.parts(page)["forward"][1]["name"] == name
    assert html.unescape(re.search(r"<title>(.*?)</title>", page.text, re.S)[1]).endswith(name)
    frame = page._repr_html_()
    assert frame.count("<") == 2 and 'sandbox="allow-scripts"' in frame


@pytest.mark.filterwarnings("ignore")
def test_holes_are_drawn_and_said() -> None:
    page = pages.little(pages.run_of(pages.Holed(pages.eight()[0])), pages.eight()[1])
    stored = pages.parts(page)
    table = unpack(stored["table"][0]["values"])
    assert 0 < page.facts["holes"] < table[0].size and np.isnan(table).any(0).sum() == page.facts["holes"]
    assert f"returned no finite number at {page.facts['holes']:,} of {table[0].size:,} nodes" in page.text
    assert 0 < stored["reverse"][0]["failed"] < 48 and not stored["reverse"][0]["note"]
    assert all(row["failed"] > 0 for row in stored["solvers"]["rows"] if row["asked"] == 4)
    assert "NaN" not in page.text.partition('id="data">')[2].partition("</script>")[0]


def test_holes_of_the_density_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pages.parts(pages.exact())["density"]["told"] == ""
    whole = Likelihood.__call__

    def holed(self: Likelihood, *args: Any, **options: Any) -> Any:
        found = whole(self, *args, **options)
        found.log_prob[:7] = torch.nan
        return found

    monkeypatch.setattr(Likelihood, "__call__", holed)
    density = pages.parts(pages.little(pages.run_of(pages.eight()[0]), pages.eight()[1]))["density"]
    assert density["told"] == "At 7 of the 81 points of the map (orange) there is no finite log p."
    assert np.isnan(unpack(density["log_prob"])).sum() == density["holes"] == 7


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ((0.1, 0.2, 9.0), "relative error"),
        ((0.1, 0.2, 11.0), "relative error (cut at 10)"),
        ((1e-5, 0.2, 11.0), "relative error (cut at 10 and 0.0001)"),
        ((0.0, 0.2, np.inf), "relative error (cut at 10 and 0.0001)"),
        ((np.nan, 0.2, 0.3), "relative error"),
    ],
)
def test_errors_beyond_the_axis_are_said(error: tuple[float, ...], words: str) -> None:
    cosine = [(0.5, 0.9, 1.0), (-0.5, np.nan, 1.0)]
    above, below = plane._score_errors([9.0, -9.0], np.array([cosine, [error, error]]))
    assert below["title"] == words and above["title"] == "cosine of the two scores" and above["y"][0] == -0.5
    assert all(v is None or -4 <= v <= 1 for line in below["lines"] for v in line["ys"])
    assert [text for _, text in below["xticks"]] == ["−5", "log-SNR 0", "5", "data", "noise"]


def test_numbers_of_charts() -> None:
    assert [short(v, 3) for v in (0.12849, 12345.6, -2.0, 0.0, 1e-7)] == ["0.128", "12300", "−2", "0", "0.0000001"]
    assert [text for _, text in even_ticks(-0.31, 0.3, 5)] == ["−0.2", "0", "0.2"]
    assert curve([0, 1], [np.inf, np.nan], 0)["ys"] == [None, None]


def fitted(run: Run, steps: int, **others: Any) -> None:
    """Write a file with a fitted solver, whose numbers are those of ``multistep``."""
    low, high = run.model.domain.interval("sample")
    table = unrolled(Multistep(steps), run.model.domain, high, low)
    fit = Fit(table, table.log_snr, 0.02, 0.01, "multistep", 0.05, 0.03, 256, 0)
    Fits(bindings(run) | others, (fit,)).write(run.folder)


def test_a_fitted_solver_is_compared(moons: str) -> None:
    usual = pages.parts(pages.little(load(moons)))["solvers"]
    assert usual["names"] == ["ddim", "heun", "multistep", "ancestral"] and usual["budgets"] == [1, 4]
    fitted(load(moons), 3)
    page = pages.little(load(moons))
    stored = pages.parts(page)["solvers"]
    assert stored["names"] == [*usual["names"], "tuned (fitted)"] and stored["budgets"] == [1, 3, 4]
    assert '<option value="tuned (fitted)">tuned (fitted)</option>' in page.text
    own = {row["asked"]: row for row in stored["rows"] if row["solver"] == "tuned (fitted)"}
    near = next(row for row in stored["rows"] if (row["solver"], row["asked"]) == ("multistep", 3))
    assert own[3]["rms"] == pytest.approx(near["rms"], rel=1e-3) and own[3]["place"]
    assert "This solver was fitted to this model for 3 evaluations only." in own[1]["told"] and own[1]["place"] is None
    line = stored["chart"]["lines"][-1]
    assert line["name"] == "tuned (fitted)" and line["xs"] == [pytest.approx(np.log10(3), rel=1e-5)]
    assert np.isfinite(unpack(stored["ends"])[stored["rows"].index(own[3])]).all()
    assert "by evaluations" in stored["chart"]["title"] and "model units" in own[3]["told"]


def test_solvers_fitted_to_other_weights_are_left_out(moons: str) -> None:
    fitted(load(moons), 3, step=99)
    assert pages.parts(pages.little(load(moons)))["solvers"]["budgets"] == [1, 4]


def test_every_slider_states_both_of_its_ends() -> None:  # a script that reads an end that is not stated finds 0
    sliders = re.findall(r'<input type="range"[^>]*>', pages.exact().text)
    assert len(sliders) == 15
    assert [s for s in sliders if not re.search(r' min="-?\d+" max="\d+" value="-?\d+"', s)] == []


def test_a_page_over_its_budget_names_its_largest_part() -> None:
    with pytest.raises(
        UsageError, match=r"at most 0\.1 MB are allowed; its largest part is 'table' with 0\.\d\d MB"
    ) as error:
        fill(pages.parts(pages.exact()), _words(), _blank(), 0.1, {})
    assert error.value.parameter == "budget"
    with pytest.raises(UsageError, match=r"largest part is 'network'.*leave out the weights") as error:
        fill(pages.parts(pages.learned()), _words(), _blank(), 0.3, {})
    assert error.value.parameter == "weights" and error.value.value is False


def _blank() -> dict[str, str]:
    return dict.fromkeys(SAID, "data:,")


def _words() -> dict[str, str]:
    places = ("title", "lead", "things", "who", "facts", "version", "compass-words")
    return dict.fromkeys([*places, *(f"poster-{name}" for name in SAID)], "")


def test_weights_in_a_page() -> None:
    stored = pages.parts(pages.learned())
    model = pages.network()
    for name, value in model.network.state_dict().items():
        assert np.allclose(unpack(stored["network"]["weights"][name]), value.numpy(), rtol=1e-3, atol=1e-6)
    bare = pages.little(pages.run_of(pages.network(width=8).float()), pages.eight()[1], weights=False)
    assert pages.parts(bare)["network"] is None and "The compass reads the table" in bare.text


def test_classes_are_a_menu() -> None:
    model = pages.network(classes=2, width=8)
    _, data = pages.eight()
    run = pages.run_of(model.float())
    run = replace(run, info=replace(run.info, classes=("cats", "dogs")))
    assert [(view.name, view.label) for view in views_of(run)] in (
        [("any class", 2), ("cats", 0), ("dogs", 1)],
        [("cats", 0), ("dogs", 1)],
    )
    stored = pages.parts(pages.little(run, data))
    assert len(stored["table"]) == len(stored["reverse"]) == len(stored["about"]["views"]) >= 2
    tables = [unpack(table["values"]) for table in stored["table"]]
    assert np.abs(tables[-1] - tables[-2]).max() > 0.01


@pytest.mark.parametrize("name", ["digits", "classes"])
def test_pages_of_pictures(trained: Path, name: str) -> None:
    page = pages.little(load(trained / name))
    stored = pages.parts(page)
    assert len(page.text.encode()) < SIZES["image"] and stored["about"]["kind"] == "image"
    assert len(stored["about"]["views"]) == (
        1 if name == "digits" else 7 if stored["about"]["views"][0]["name"] == "any class" else 6
    )
    frames = unpack(stored["forward"]["frames"])
    assert frames.shape[2:] == (1, 8, 8) and frames.shape[0] * frames.shape[1] * 64 <= NUMBERS
    assert page.text.count("<section") == 4 and "Figures 3, 4, 5 and 8 are for points in the plane" in page.text
    assert 'id="compass"' not in page.text and "<!--" not in page.text


def signals(kind: str, tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    shape = {"signal": (60, 2, 300), "vector": (80, 5), "number": (80, 1)}[kind]
    np.save(tmp_path / "data.npy", rng.normal(size=shape).cumsum(-1).astype("f4"))
    return tmp_path / "data.npy"


@pytest.mark.parametrize("kind", ["signal", "vector", "number"])
def test_pages_of_other_data(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scoresde import TrainConfig, fit

    path = signals(kind, tmp_path)
    options = {"channels": 4} if kind == "signal" else {"width": 8, "blocks": 1}
    run = fit(TrainConfig(data=str(path), steps=2, batch=8, network_options=options), out=tmp_path / "run", quiet=True)
    page = pages.little(run)
    stored = pages.parts(page)
    assert stored["about"]["kind"] == ("signal" if kind == "signal" else "points")
    frames = unpack(stored["forward"]["frames"])
    assert frames.shape[2:] == ((2, 150) if kind == "signal" else (2,))
    assert ("Every 2th point" in stored["about"]["shown"]) == (kind == "signal")


def test_large_pictures_are_drawn_smaller() -> None:
    for size in (64, 3072, 12_288):
        for views in (1, 7):
            samples, frames = _counts(size, views)
            assert samples >= 2 and frames >= 11
            assert (samples, frames) == (2, 11) or samples * frames * size <= NUMBERS


def test_only_eight_gaussians_are_exact() -> None:
    with pytest.raises(UsageError, match="only for 8gaussians, not for 'moons'; train a run"):
        exact_page("moons")
    with pytest.raises(UsageError, match="differs between coordinates"):
        exact_page(sde=Parts(shape=(2,)))


def test_formulas_are_those_of_the_manual() -> None:
    pytest.importorskip("docutils")
    pytest.importorskip("sphinx")
    folder = Path(__file__).parent.parent
    spec = importlib.util.spec_from_file_location("mathml", folder / "docs" / "mathml.py")
    mathml = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mathml)
    stored = json.loads((folder / "scoresde" / "page" / "formulas.json").read_text(encoding="utf-8"))
    used = set(
        re.findall(r"\\\((.*?)\\\)", (folder / "scoresde" / "page" / "page.html").read_text(encoding="utf-8"), re.S)
    )
    assert used == set(stored)
    for tex, made in stored.items():
        text = re.sub(r"\s*\n\s*", "", mathml.mathml(tex, True))
        assert made == text.replace(' xmlns="http://www.w3.org/1998/Math/MathML"', ""), tex


# ----------------------------------------------------------------------------------------------------------- command


@pytest.fixture
def few() -> Iterator[None]:
    with pages.small():
        yield


@pytest.mark.usefixtures("few")
def test_the_command(shell, moons: str) -> None:
    said = shell(f"page {moons} --no-weights")
    assert said.startswith(f"{moons}/page.html  0.") and Path(f"{moons}/page.html").is_file()
    facts = shell.json(f"page {moons} --out mine.html --no-weights")
    assert facts["files"] == ["mine.html"] and facts["bytes"] == Path("mine.html").stat().st_size
    assert Path("mine.html").read_bytes() == Path(f"{moons}/page.html").read_bytes()


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("page runs/moons --data 8gaussians", 2, "leave out either --data or the run"),
        ("page runs/moons --path vp", 2, "use it together with --data 8gaussians"),
        ("page runs/moons --out page.png", 2, "choose a name that ends with .html"),
        ("page --data moons", 2, "only for 8gaussians"),
        ("page --data 8gaussians --path vpp", 2, "did you mean 'vp'"),
        ("page runs/moons --no-weights --budget 0.1", 2, "its largest part is"),
        ("page runs/nothing", 3, "runs/nothing"),
    ],
)
@pytest.mark.usefixtures("few")
def test_what_the_command_refuses(shell, moons: str, line: str, code: int, words: str) -> None:
    shell.refuses(line, code, words)
    assert not list(Path().glob("**/*.html"))


def test_no_page_loads_matplotlib_before_it_is_made() -> None:
    import subprocess

    code = "import sys, scoresde.page; print('matplotlib' in sys.modules, 'PIL' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "False"]
