"""What a budget can decide: known curves give known probabilities, and nothing is made up where nothing is known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import nct, t
from study_records import metrics_record, study

from bench.plan_page import PAGE, page
from dit.claims.verdicts import judge
from dit.cli.commands import run as dit
from dit.planning.budget import cheapest, decisions, outcome_of
from dit.planning.budget_tables import decision_table
from dit.planning.claims import planned_claims
from dit.planning.cost import plan
from dit.planning.earlier import earlier
from dit.planning.find_prior import find_prior
from dit.planning.power import STUDIES, Trial, compute_outcome, order_outcome, simulate
from dit.planning.prior import Curve, Prior, Range, Spread
from dit.planning.published import law_error, published
from dit.storage import Store, open_store, write_record
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.paper import paper
from dit.study.records import Estimate
from dit.study.study_file import load
from dit.study.variants import resolve

ROOT = Path(__file__).parents[3]
THREE_ERRORS = 3 * math.sqrt(0.25 / STUDIES)


def exactly(*values: float) -> list[Range]:
    return [Range(value, value) for value in values]


def of_52k(*overrides: str) -> tuple[StudyConfig, Prior]:
    config = load(ROOT / "configs/imagenet256-52k.yaml", overrides)
    prior = published(config)
    assert isinstance(prior, Prior), prior
    return config, prior


@pytest.mark.parametrize(
    ("apart", "seeds", "degrees"), [(0.04, 1, 3), (0.04, 5, 12), (0.1, 3, 6), (-0.1, 3, 6), (0, 2, 1)]
)
def test_the_probability_of_a_pair_is_that_of_the_noncentral_t_distribution(
    apart: float, seeds: int, degrees: int
) -> None:
    simulated = simulate(exactly(10, 10 * math.exp(apart)), Trial(0.03, seeds, degrees))
    outcome = order_outcome(simulated, [(0, 1)])
    centre, quantile = apart / (0.03 * math.sqrt(2 / seeds)), t.ppf(0.975, degrees)
    assert outcome.supported == pytest.approx(nct.sf(quantile, degrees, centre), abs=THREE_ERRORS)
    assert outcome.contradicted == pytest.approx(nct.cdf(-quantile, degrees, centre), abs=THREE_ERRORS)


def test_all_pairs_of_a_claim_must_hold() -> None:
    # Far apart, equal: the second pair decides, and each order of it is as probable as the other.
    simulated = simulate(exactly(10, 10, 100), Trial(0.03, 4, 6))
    outcome = order_outcome(simulated, [(1, 2), (0, 1)])
    assert outcome.supported == pytest.approx(0.025, abs=THREE_ERRORS)
    # A contradiction is tested at half the level, because either of two pairs may give it.
    assert outcome.contradicted == pytest.approx(0.0125, abs=THREE_ERRORS)


def test_a_metric_that_follows_gflops_supports_claim_3_and_one_that_follows_parameters_contradicts_it() -> None:
    gflops, parameters = [23.0, 80.7, 118.6, 29.0], [130.0, 458.0, 675.0, 675.0]
    for x, wanted in ((gflops, (1.0, 0.0)), (parameters, (0.0, 1.0))):
        simulated = simulate(exactly(*(1000 / np.sqrt(x))), Trial(0.005, 3, 6))
        outcome = compute_outcome(simulated, gflops, parameters)
        assert (outcome.supported, outcome.contradicted) == pytest.approx(wanted, abs=0.02)


def test_the_reports_own_judge_supports_a_claim_as_often_as_the_plan_expects() -> None:
    config, prior = of_52k("seeds=3")
    means = {name: prior.expected(name, 52_000, 50_000) for name in config.variants}
    random, noise, supported, studies = np.random.default_rng(5), prior.sampling_sd(50_000), 0, 120
    for _ in range(studies):
        records = []
        for run in config.runs:
            mean = means[run.spec.name]
            assert mean is not None
            value = mean.middle * math.exp(prior.run_sd(50_000) * random.standard_normal())
            estimate = Estimate(value=value, low=0.99 * value, high=1.01 * value)
            replicates = tuple(value * np.exp(noise * random.standard_normal(100)))
            changes = {"metrics": {"fid": estimate}, "replicates": replicates, "train_seed": run.seed}
            records.append(metrics_record(config, run, 52_000, **changes))
        supported += judge(config.study, records).claims[0].verdict == "supported"
    [expected] = decisions(config, prior, 52_000, (3,))[0].outcomes
    assert supported / studies == pytest.approx(expected.supported, abs=3 * math.sqrt(0.25 / studies))


def test_a_range_is_a_truth_somewhere_in_it() -> None:
    # A quarter of the range [log 10, log 20] lies above log 16.8; there the order is the other one.
    simulated = simulate([Range(10, 20), Range(10 * 2**0.75, 10 * 2**0.75)], Trial(1e-4, 3, 6))
    outcome = order_outcome(simulated, [(0, 1)])
    assert (outcome.supported, outcome.contradicted) == pytest.approx((0.75, 0.25), abs=THREE_ERRORS)


def test_a_curve_is_a_power_law_between_its_points_and_nothing_outside() -> None:
    curve = Curve([(100, Range(40, 40)), (400, Range(20, 20))])
    at = {step: curve.at(step) for step in (99, 100, 200, 400, 401)}
    assert at[99] is None
    assert at[401] is None
    assert at[200] is not None
    assert at[200].middle == pytest.approx(40 * 2**-0.5)
    assert at[400] == Range(20, 20)


def test_fewer_images_widen_the_spread_and_raise_the_distance() -> None:
    spread = Spread(0.05, 4, 50_000, "")
    prior = Prior({"m": Curve([(1, Range(20, 20))])}, spread, Spread(0.01, 4, 50_000, ""), 50_000.0, 300, "")
    assert prior.run_sd(50_000) == pytest.approx(0.05)
    assert prior.run_sd(5_000) == pytest.approx(math.sqrt(0.05**2 + 9 * 0.01**2))
    few = prior.expected("m", 1, 5_000)
    assert few is not None
    assert few.low == pytest.approx(20 + 50_000 * (1 / 5_000 - 1 / 50_000))


def test_at_52k_steps_xl_and_l_are_three_fid_apart_and_healthy_models_far_from_noise() -> None:
    config, prior = of_52k()
    expected = {name: prior.expected(name, 52_000, 50_000) for name in config.variants}
    better, worse, other = expected["DiT-XL/2"], expected["DiT-L/2"], expected["DiT-B/2"]
    assert better is not None
    assert worse is not None
    assert other is not None
    assert 68 < better.middle < worse.middle < 77
    assert worse.middle - better.middle == pytest.approx(3, abs=0.5)
    assert worse.middle < other.low < other.high < prior.noise_floor / 2
    size, patch, _ = decisions(config, prior, 52_000, (1, 5))
    assert size.closest == (resolve("DiT-XL/2"), resolve("DiT-L/2"))
    assert size.outcomes[0].supported < 0.2 < size.outcomes[1].supported < 0.7
    assert patch.outcomes[0].supported > 0.9


def test_the_cheapest_study_supports_the_claim_and_a_cheaper_one_does_not() -> None:
    config, prior = of_52k()
    claim = planned_claims(config.specs)[0]
    found = cheapest(claim, config, prior)
    assert found is not None
    assert found.steps > 52_000
    assert found.outcome.supported >= 0.9
    least = config.model_copy(update={"variants": ("DiT-B/2", "DiT-L/2", "DiT-XL/2")})
    assert outcome_of(claim, least, prior, found.steps, found.seeds) == found.outcome
    fewer = outcome_of(claim, least, prior, found.steps, found.seeds - 1)
    assert fewer is not None
    assert fewer.supported < 0.9


def test_the_plan_of_the_52k_study_is_the_text_of_the_docs(capsys: pytest.CaptureFixture[str]) -> None:
    """`make reference` writes it."""
    text = PAGE.read_text(encoding="utf-8")
    assert page(text) == text
    assert max(map(len, page(text).rpartition("```\n")[0].rpartition("```")[2].splitlines())) <= 100
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("steps", [20_000, 7_000_000])
def test_steps_beyond_the_curves_are_refused_with_the_reason(
    steps: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    beyond = [f"train.steps={steps}", f"evaluation.at_steps=[{steps}]"]
    options = [word for override in beyond for word in ("--set", override)]
    assert dit(["plan", str(ROOT / "configs/imagenet256-52k.yaml"), "--root", str(tmp_path), *options]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"{steps:,} steps: not known. The curves reach from 50,000 to 400,000 steps" in out
    assert "misses the published 400,000 by 4% to 12%" in out
    assert "67% too low at 7,000,000" in out
    assert f"Probability that {steps:,} steps" not in out
    assert "GPU-hours" in out


def test_a_power_law_is_measured_by_what_came() -> None:
    curve = paper().curves["DiT-L/2"]
    assert law_error(curve, (50_000, 100_000), 400_000) == pytest.approx(0.12, abs=0.005)
    assert law_error({1: 8.0, 2: 4.0, 8: 1.0}, (1, 2), 8) == pytest.approx(0)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("train.global_batch=512", "train.global_batch=512 instead of 256"),
        ("sampling.cfg_scale=1.5", "sampling.cfg_scale=1.5 instead of 1.0"),
    ],
)
def test_the_papers_numbers_are_not_used_for_another_recipe(override: str, reason: str) -> None:
    found = published(load(ROOT / "configs/imagenet256-52k.yaml", [override]))
    assert isinstance(found, str)
    assert reason in found


def test_where_nothing_is_known_the_plan_names_what_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digits = str(ROOT / "configs/digits.yaml")
    assert dit(["plan", digits, "--root", str(tmp_path)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"not known: there are no results of study digits below {tmp_path}" in out
    assert "run this study or a shorter one of the same models" in out
    assert "Probability" not in out
    assert dit(["plan", digits, "--root", str(tmp_path), "--like", digits]) == 2
    assert "no results of study digits" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Records of a study of four models at 100,000 and 400,000 steps, with a bootstrap spread of 1 %."""
    store, config = open_store(tmp_path), study()
    for run in config.runs:
        for step in config.evaluation.at_steps:
            write_record(store, layout.metrics(config, run, step), metrics_record(config, run, step))
    return store


def test_an_earlier_study_gives_curves_and_spreads_of_a_new_one(store: Store) -> None:
    config, longer = study(), study(overrides=("train.steps=200000", "evaluation.at_steps=[200000]"))
    prior = find_prior(longer, config, store, is_named=False)
    assert isinstance(prior, Prior)
    # The records' FID falls with the square root of the steps.
    value = prior.expected("DiT-XL/2", 200_000, 50_000)
    assert value is not None
    assert value.middle == pytest.approx(19.47 * math.sqrt(2))
    assert prior.sampling.log_sd == pytest.approx(0.01, rel=0.3)
    # One seed was run: the spread of seeds is not known, and several seeds are not judged.
    assert prior.seeds is None
    size = decisions(longer, prior, 200_000, (1,))[0]
    assert size.outcomes[0].supported > 0.9


def test_the_seeds_of_an_earlier_study_are_the_spread_of_the_next_and_a_given_one_replaces_it(store: Store) -> None:
    three = study(overrides=("seeds=3",))
    for run in three.runs:
        record = metrics_record(three, run, 400_000)
        estimate = record.metrics["fid"]
        other = estimate.model_copy(update={"value": estimate.value * math.exp(0.1 * (run.seed - 1))})
        changed = record.model_copy(update={"metrics": {"fid": other}, "train_seed": run.seed})
        write_record(store, layout.metrics(three, run, 400_000), changed)
    prior = find_prior(three, three, store, is_named=False)
    assert isinstance(prior, Prior)
    assert prior.seeds is not None
    # Each variant has log values of -0.1, 0 and 0.1.
    assert (prior.seeds.log_sd, prior.seeds.degrees) == (pytest.approx(0.1), 8)
    middle = prior.expected("DiT-XL/2", 400_000, 50_000)
    assert middle is not None
    assert middle.middle == pytest.approx(19.47)
    given = study(overrides=("evaluation.seed_spread=0.2", "evaluation.seed_spread_degrees_of_freedom=4"))
    replaced = find_prior(given, study(), store, is_named=False)
    assert isinstance(replaced, Prior)
    assert replaced.seed_sd == pytest.approx(0.2)
    assert replaced.run_sd(50_000) > 0.2


def test_records_of_another_configuration_are_left_out_and_counted(store: Store) -> None:
    config = study()
    other = metrics_record(config, config.runs[0], 300_000, science_hash="another")
    write_record(store, layout.metrics(config, config.runs[0], 300_000), other)
    prior = earlier(config, store)
    assert prior is not None
    assert [step for step, _ in prior.curves["DiT-B/2"].points] == [100_000, 400_000]
    assert prior.notes == ("1 records of another configuration are left out.",)


def test_the_cost_grows_with_seeds_and_money_is_gpu_hours_times_the_price() -> None:
    config, prior = of_52k("plan.price=2.5")
    columns, rows = decision_table(config, decisions(config, prior, 52_000, (1, 3)), (1, 3))
    assert columns == ["Claim", "1 seed", "3 seeds"]
    shown = {str(row[0]): row[1:] for row in rows}
    planned = plan(config)
    assert planned.prepare_hours is not None
    for place, seeds in enumerate((1, 3)):
        hours = 8 * (planned.prepare_hours + seeds * (planned.hours - planned.prepare_hours))
        assert shown["Price"][place] == f"{2.5 * hours:,.0f}"
    assert shown["Disk"] == ["318 GB", "864 GB"]


def test_a_price_changes_no_hash() -> None:
    with_price, without = (load(ROOT / "configs/imagenet256-52k.yaml", given) for given in (["plan.price=2"], []))
    assert with_price.science_hash() == without.science_hash()
