"""What is published follows from the runs that are published with it, down to the numbers in prose."""

import dataclasses
import re
import sys
from pathlib import Path

import pytest

from benchmark import plot
from benchmark.figures import FIGURES, panel_runs
from benchmark.lib import published
from benchmark.lib.claims import Comparison
from benchmark.lib.documents import BEGIN, CITED, END, blocks, fill, parse, put_between
from benchmark.lib.gather import NoRunError, chosen
from benchmark.lib.space import METHODS, TASKS
from benchmark.lib.store import PUBLISHED, Store
from benchmark.lib.studies import STUDIES

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def store():
    return Store(PUBLISHED)


@pytest.fixture(scope="module")
def texts(store):
    return published.published_texts(store)


def test_tables_verdicts_and_numbers_in_documents_are_the_stores(texts):
    """A number in README.md or docs/ that no run stands for would be a claim without evidence."""
    stale = [str(path.relative_to(ROOT)) for path, text in texts.items() if path.read_bytes() != text]
    assert not stale, "python benchmark/plot.py all writes them anew"
    pages = {ROOT / "README.md", ROOT / "docs" / "verdicts.md", ROOT / "docs" / "findings.md"}
    assert pages <= texts.keys() and len(texts) > len(FIGURES) + len(STUDIES)


BY_HAND = re.compile(r"[\d,.]+ ± [\d,.]+")
MEASURED = {"envs.md", "performance.md"}  # engines and speed, of which the store has no runs
PAGES = ["README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md") if p.name not in MEASURED)]
PAGES += [f"benchmark/results/studies/{name}/README.md" for name in STUDIES]


@pytest.mark.parametrize("page", PAGES)
def test_no_result_is_written_by_hand(page):
    """A mean with its interval is cited, so that it changes with the runs wherever it stands."""
    text = (ROOT / page).read_text()
    by_hand = CITED.sub("", text.partition(BEGIN)[0] + text.partition(END)[2])
    assert not BY_HAND.findall(by_hand)


@pytest.mark.parametrize("name", ["fig5", "mpe"])
def test_published_pictures_are_drawn_again_byte_for_byte(name, store):
    """Two of them, one with aggregates and one with diagnostics; `plot.py all --check` draws all."""
    pictures = published.published_pictures(store, [name])
    assert pictures and all(path.read_bytes() == data for path, data in pictures.items())


def folder_has_runs(store, name):
    """Whether a figure has any run: others have no picture yet."""
    runs = [run for *_, run in panel_runs(FIGURES[name], *published.plan(name, store))]
    return any(run.key in store.runs for run in runs)


def test_nothing_else_is_published(store, texts):
    """A picture or table that plot.py does not make would never be checked again."""
    made = {path.relative_to(PUBLISHED) for path in texts if "results" in path.parts}
    made |= {Path("figures") / name / f"{name}.png" for name in FIGURES if folder_has_runs(store, name)}
    made |= {Path("studies/basins/basins.png"), Path("studies/discussion/measured.csv")}
    for name, study in STUDIES.items():
        pictures = {
            "curves.png": study.picture,
            "time.png": study.hours,
            "diagnostics.png": study.diagnostics,
        }
        made |= {Path("studies") / name / file for file, drawn in pictures.items() if drawn}
    made |= {Path("runs.csv"), Path("references.csv"), Path("random_play.csv")}
    made |= {Path("scripted_play.csv")}
    made |= {Path("studies/speed/speed.json"), Path("studies/storm/storm.json")}  # by speed.py, tests/storm
    trials = [f"{task.replace('/', '-')}__{method}.json" for task in TASKS for method in METHODS]
    made |= {Path("tuning") / name for name in trials if (PUBLISHED / "tuning" / name).exists()}
    made |= {Path("tuning/README.md")}
    made |= {Path("curves") / f"{run.env}.csv" for run in store.runs.values()}
    there = {path.relative_to(PUBLISHED) for path in PUBLISHED.rglob("*") if path.is_file()}
    assert there - {Path(".lock")} == made  # which whoever records leaves


def test_every_published_run_has_its_curve_and_files_stay_small(store):
    """A clone must hold all that is drawn, and stay quick to make."""
    for key in store.runs:
        assert len(store.load(key).steps) > 0
    assert max(path.stat().st_size for path in PUBLISHED.rglob("*")) < 2 << 20


def test_every_curve_of_a_study_has_runs_and_each_seed_once(store):
    """A pattern that finds no key leaves a method out without a word; one that finds too much mixes two."""
    for name, study in STUDIES.items():
        for panel in study.panels:
            for method, end in panel.methods.items():
                seeds = [[run.seed for run in chosen(store, env, end, panel.steps)] for env in panel.envs]
                assert any(seeds) and all(len(set(x)) == len(x) for x in seeds), (name, panel.name, method)


def test_the_theory_page_has_the_published_ends(store):
    """Numbers of the exact iteration, which the page has in sentences."""
    page = " ".join((ROOT / "docs" / "theory.md").read_text().split())
    runs = {}
    for key in store.runs:
        if found := re.fullmatch(r"matrix-(\d)__dpo_matrix__m-hat-(0\.0|0\.35)__1__\w+", key):
            runs[found.groups()] = store.load(key)
    lengths = {which: int(run.steps[-1]) for which, run in runs.items()}
    assert f"which takes {lengths.pop(('1', '0.35')):,}" in page
    assert f"within {min(lengths.values())} to {max(lengths.values())} iterations" in page
    for game in "12":
        p, q, j = (runs[game, "0.35"].columns[name][-1] for name in "pqJ")
        assert f"({p:.3f}, {q:g}) with J = {j:.2f}" in page


WORDS = {"holds", "does not hold", "open", "not run"}
P = re.compile(r"(\w+) \(p (< 0\.001|[\d.e-]+|–)")


def test_the_verdict_page_has_every_claim_as_its_figure_has_it(store):
    """A claim that is not judged is not tested; two places that differ leave none to believe."""
    first, *_, second = blocks(published.verdict_page(store))
    head, *rows = parse(first)
    assert head == ["figure", *published.CLAIMS_HEAD]
    numbers = [re.sub(r"\[(\d+)\]\(.*\)", r"\1", row[0]) for row in rows]
    assert numbers == [str(i) for i, x in enumerate(FIGURES.values(), start=1) for _ in x.claims]
    for i, (name, figure) in enumerate(FIGURES.items(), start=1):
        own = [row[1:] for row, number in zip(rows, numbers, strict=True) if number == str(i)]
        assert [row[0] for row in own] == [f"{claim.text} ({claim.section})" for claim in figure.claims]
        try:
            table = published.figure_text(name, *published.plan(name, store), store)
        except NoRunError:
            assert all(row[1:] == ["not run", "", "", ""] for row in own)
            continue
        assert own == published.claim_rows(name, *published.plan(name, store), store)
        assert parse(blocks(table)[0]) == [published.CLAIMS_HEAD, *own]
    lacking = {row[0]: row[1:] for row in parse(second)[1:]}
    for i, figure in enumerate(FIGURES.values(), start=1):
        runs = {x.key: x.task for *_, x in panel_runs(figure, "paper", range(1, 6))}
        there = {key for key in runs if key in store.runs and store.runs[key].finished}
        tasks = dict.fromkeys(runs[key] for key in runs if key not in there)
        expected = [str(len(runs) - len(there)), str(len(runs)), ", ".join(tasks)]
        assert lacking.get(str(i), ["0", *expected[1:]]) == expected


def judged(store):
    """Of every claim by panel: itself, verdict, evidence; whether runs are of full length, and all there."""
    for name, figure in FIGURES.items():
        scale, seeds = published.plan(name, store)
        planned = list(panel_runs(figure, "paper", seeds))
        try:
            rows = published.claim_rows(name, scale, seeds, store)
        except NoRunError:
            continue
        for claim, row in zip(figure.claims, rows, strict=True):
            panels = {panel.best: panel for panel in figure.panels if panel.name == claim.panel}
            for best, (word, evidence) in enumerate((row[1:3], row[3:5])):
                assert word in (WORDS if best in panels else {""}), claim.text
                if best in panels:
                    keys = {
                        run.key
                        for panel, task, method, run in planned
                        if panel == panels[best] and claim.needs(task.name, method.role or method.name)
                    }
                    there = all(key in store.runs and store.runs[key].finished for key in keys)
                    of_scale = [run for *_, run in panel_runs(figure, scale, seeds)]
                    budgets = {run.task: run.steps for run in of_scale if run.key in store.runs}
                    full = all(x.steps == budgets.get(x.task, x.steps) for *_, x in planned)
                    yield claim, word, evidence, full, there


def test_verdicts_keep_to_their_definitions(store):
    """A word stronger than the runs behind it is a claim without evidence; so is one without a number."""
    for claim, word, evidence, full, whole in judged(store):
        compares = isinstance(claim.test, Comparison)  # which has signs and p's
        claimed, opposite = getattr(claim.test, "said", ("", ""))
        signs = {(said, p != "–" and (p == "< 0.001" or float(p) <= 0.05)) for said, p in P.findall(evidence)}
        assert (evidence == "") == (word == "not run"), claim.text
        if word == "holds":
            every = signs == {(claimed, True)} if claim.on == "all" else (claimed, True) in signs
            assert every or not compares, claim.text
            assert (whole and "–" not in evidence) or claim.on == "some", claim.text
        if word == "does not hold":
            refuted = (opposite, True) in signs or ", < 5 %)" in evidence or not compares
            assert full and refuted, claim.text
        if word == "open":
            assert not whole or signs != {(claimed, True)} or not compares, claim.text


TABLES = {
    "fig1": "text\n\n| method | final |\n| --- | --- |\n| DPO | 4.0 ± 0.5 |\n| IPPO | 3.0 |\n\n"
    "| p against DPO | a | b |\n| --- | --- | --- |\n| IPPO, final | 0.1 | 0.2 |\n",
    "fig2": "| method | task | final |\n| --- | --- | --- |\n| DPO | a | 1 |\n| DPO | b | 2 |\n",
}


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("fig1; DPO; final", "4.0 ± 0.5"),
        ("fig1; DPO; final; mean", "4.0"),
        ("fig1; p against DPO; IPPO, final; b", "0.2"),
        ("fig2; b;\n  DPO; final", "2"),
        ("fig2; table; method", "\n" + TABLES["fig2"]),
    ],
)
def test_a_document_cites_cells_and_tables(address, text):
    """What stands between the comments is replaced, the rest of the page stays."""
    page = f"Words <!-- results: {address} -->old<!-- end -->, and <!-- a comment --> more."
    assert fill(page, TABLES) == page.replace("old", text)
    assert fill(fill(page, TABLES), TABLES) == page.replace("old", text)


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("<!-- results: fig1; IQL; final -->1<!-- end -->", "no cell for IQL; final"),
        ("<!-- results: fig1; DPO; last -->1<!-- end -->", "no cell for DPO; last"),
        ("<!-- results: fig2; DPO; final -->1<!-- end -->", "2 cells for DPO; final"),
        ("<!-- results: fig3; DPO; final -->1<!-- end -->", "names no result"),
        ("<!-- results: fig1; table; game -->1<!-- end -->", "no table begins with 'game'"),
        ("<!-- results: fig1; DPO; final -->1 and on", "has no <!-- end -->"),
        ("<!-- results: a --> <!-- results: fig1; DPO; final -->1<!-- end -->", "another begins"),
    ],
)
def test_a_citation_of_nothing_gets_a_sentence(page, words):
    """Else a typing error would keep a number out of the check, or write a wrong one."""
    with pytest.raises(ValueError, match=words):
        fill(page, TABLES)


def test_a_readme_is_changed_between_the_markers_alone():
    """What a person wrote around the table must survive every redrawing."""
    text = f"# Mine\n\nwords {BEGIN}\nold\n{END}\n\nmore"
    for table in ("| new |\n", "| newer |\n"):
        text = put_between(text, table)
        assert text == f"# Mine\n\nwords {BEGIN}\n{table}{END}\n\nmore"
    assert put_between("words", "| new |\n") == f"words\n\n{BEGIN}\n| new |\n{END}\n"
    for markers in ([BEGIN], [END], [END, BEGIN], [BEGIN, BEGIN, END]):
        with pytest.raises(ValueError, match="once each"):
            put_between(" words ".join(["", *markers, ""]), "| new |\n")


def test_check_names_what_differs_and_writes_nothing(store, tmp_path, monkeypatch, capsys):
    """The status that a maintainer's script notices; without --check the same files are written."""
    there = {tmp_path / "same": b"1", tmp_path / "old": b"2"}
    plot.write(there)
    files = there | {tmp_path / "old": b"3", tmp_path / "new" / "file": b"4"}
    monkeypatch.setattr(plot, "ROOT", tmp_path)
    monkeypatch.setattr(plot, "published_pictures", lambda *_: files)
    monkeypatch.setattr(plot, "published_texts", lambda *_: {})
    monkeypatch.setattr(sys, "argv", ["plot.py", "all", "--check"])
    assert plot.main() == 1
    assert capsys.readouterr().out.splitlines()[:2] == ["differs: old", "differs: new/file"]
    assert (tmp_path / "old").read_bytes() == b"2" and not (tmp_path / "new").exists()
    monkeypatch.setattr(sys, "argv", ["plot.py", "all"])
    assert plot.main() == 0 and (tmp_path / "new" / "file").read_bytes() == b"4"
    monkeypatch.setattr(sys, "argv", ["plot.py", "all", "--check"])
    assert plot.main() == 0 and capsys.readouterr().out.endswith("0 differ.\n")


def test_a_document_that_cites_nothing_there_names_the_page(tmp_path):
    """The page's name is what its writer needs to read."""
    page = tmp_path / "page.md"
    page.write_text("<!-- results: fig1; IQL; final -->1<!-- end -->")
    with pytest.raises(published.ResultsError, match=r"page\.md: no cell"):
        published.document(page, TABLES)


def test_a_damaged_page_of_speed_is_named_and_its_numbers_are_cited(tmp_path, monkeypatch):
    """It was written apart from the others: by a traceback, and with whatever its citations had said."""
    monkeypatch.setattr(published, "PUBLISHED", tmp_path)
    page = tmp_path / "studies" / "speed" / "README.md"
    page.parent.mkdir(parents=True)
    page.write_text(f"<!-- results: fig1; DPO; final -->1<!-- end -->\n{BEGIN}\n{END}\n")
    text = published.document(page, TABLES | {"speed": "| fast |\n"})
    assert "4.0 ± 0.5<!-- end -->" in text and f"{BEGIN}\n| fast |\n{END}" in text
    page.write_text(f"words {END}")
    with pytest.raises(published.ResultsError, match=r"speed/README\.md: must hold"):
        published.document(page, TABLES | {"speed": "| fast |\n"})


def test_a_study_is_drawn_before_the_runs_are_there_that_its_diagnostics_are_of(store):
    """A traceback on whoever adds an environment to a study before it is run."""
    study = dataclasses.replace(STUDIES["literal"], diagnostics="matrix-not-run")
    assert list(published.study_pictures(study, store)) == ["curves.png"]


def test_the_root_is_compared_where_it_can_make_a_difference(texts):
    """In the paper's settings the penalty hardly ever binds, so that no root would show."""
    (table,) = (
        parse(block)
        for block in blocks(texts[PUBLISHED / "studies/departures/README.md"].decode())
        if block.startswith("| p against d_target 0.01 |")
    )
    assert [row[0] for row in table[1:]] == [
        f"root of the average, d_target 0.01, {words}" for words in ("final", "over the run")
    ]
