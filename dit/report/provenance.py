"""Text on how each number in a report was made, for readers who want to reproduce or check it."""

from __future__ import annotations

from dit.claims import predictors
from dit.claims.judged import NOISE_SHARE
from dit.claims.metric_names import metric_name
from dit.claims.results import Results
from dit.console.formatting import format_count, format_number
from dit.metrics.table import METRICS
from dit.report.evidence import Evidence
from dit.study.config import StudyConfig
from dit.study.learning_rate import describe
from dit.study.paper import on_imagenet, paper
from dit.study.records import MetricsRecord
from dit.study.version import code_version

Facts = list[tuple[str, str]]

_WEIGHTS = {"ema": "EMA", "raw": "raw"}
_GUIDED = {"first3": "the first 3 channels", "all": "all channels"}


def provenance(results: Results, evidence: Evidence) -> Facts:
    """(term, explanation), in the order in which the numbers are made."""
    config = results.config
    record = next(record for _, record in results.last())
    facts = [
        *_dataset(config, record, evidence),
        ("Model size", "Parameters include the frozen position embedding, as the paper counts them."),
        ("Gflops", f"{paper().gflops_convention[0].upper()}{paper().gflops_convention[1:]}: the paper's convention."),
        ("Training", _training(config)),
        *_imported(evidence),
        (
            "Images per second",
            "Median over logging windows, without start-up. In runs.csv, rate and seconds of training are those up to"
            " each checkpoint.",
        ),
        ("Samples", _samples(config, record)),
        *_metric(config, record),
        ("Verdicts", _verdicts(record)),
        ("What the intervals cover", " ".join(results.verdict.notes)),
        ("Program", _program(results, evidence)),
    ]
    if on_imagenet(results.config):
        facts.append(
            ("The paper's numbers", f"{paper().source}. Points: {paper().fid_protocol}. Curves: {paper().curve_note}.")
        )
    return facts


def terms(config: StudyConfig) -> Facts:
    """(term, its meaning in one line) for readers who meet them first in this report."""
    largest = max(config.specs, key=lambda spec: spec.gflops(config.dataset.inputs))
    tokens = {spec.patch: spec.tokens(config.dataset.inputs) for spec in config.specs}
    counts = ", ".join(f"{count} at patch {patch}" for patch, count in sorted(tokens.items()))
    fid = " FID is this distance in the features of InceptionV3." if config.evaluation.metric == "fid" else ""
    unit = "pixels" if config.dataset.codec.kind == "pixels" else "latent positions"
    return [
        ("Fréchet distance", f"how far the features of samples are from those of real images; 0 is equal.{fid}"),
        (
            largest.name,
            f"a diffusion transformer (DiT) of family {largest.family}, size {largest.size}, and patch"
            f" {largest.patch}: {largest.depth} blocks of width {largest.hidden}.",
        ),
        (
            "Patch",
            f"a square of {unit} that the transformer reads as one token; patch {largest.patch} is"
            f" {largest.patch} x {largest.patch}.",
        ),
        ("Tokens", f"the length of the transformer's sequence: {counts}."),
        ("Gflops", "compute of one forward pass: 10⁹ multiply-accumulates."),
        ("R²", "the share of the variance that a fitted line explains; 1 is all of it."),
    ]


def _dataset(config: StudyConfig, record: MetricsRecord, evidence: Evidence) -> Facts:
    text = f"{config.dataset.name}, configuration {config.dataset_hash()}, content {record.dataset_content}"
    if manifest := evidence.dataset:
        text += f"; {format_count(manifest.count)} images of {manifest.classes} classes from {manifest.source}"
        text += f", {format_count(manifest.corrupt)} unreadable" if manifest.corrupt else ""
        text += f"; codec {manifest.codec}"
        text += f" (weights {manifest.codec_sha256[:12]})" if manifest.codec_sha256 else ""
    return [("Dataset", f"{text}.")]


def _training(config: StudyConfig) -> str:
    train, several = config.train, len(config.train_seeds) > 1
    seeds = f"seed{'s' * several} {', '.join(map(str, config.train_seeds))}"
    each = " with the same seed" if several else ""
    decay = f"weight decay {train.weight_decay:g}" if train.weight_decay else "no weight decay"
    decay += f"; {rate}" if (rate := describe(train)) else ""
    return (
        f"One recipe for all variants: {format_count(train.steps)} steps of batch {train.global_batch}, AdamW at"
        f" {train.learning_rate:g} (betas {train.betas[0]:g}, {train.betas[1]:g}; {decay}), EMA {train.ema_decay:g},"
        f" labels dropped {train.label_drop:.0%}, {train.schedule} noise schedule, {train.precision}, {seeds}."
        f" Every variant sees the same images, noise and timesteps at every step{each}."
    )


def _imported(evidence: Evidence) -> Facts:
    """The files of imported checkpoints; nothing if there are none."""
    files = [
        f"{variant} at step {format_count(step)} from {meta.origin.address} (SHA-256 {meta.origin.sha256[:12]})"
        for (variant, step), meta in evidence.checkpoints.items()
        if meta.origin is not None
    ]
    return (
        [("Imported", f"{'; '.join(files)}. The recipe above is the study's, not known to be theirs.")] if files else []
    )


def _samples(config: StudyConfig, record: MetricsRecord) -> str:
    sampling = config.sampling
    guidance = (
        "no guidance"
        if sampling.cfg_scale == 1.0
        else f"guidance {sampling.cfg_scale:g} on {_GUIDED[sampling.guided_channels]}"
    )
    eta = f" with eta {sampling.eta:g}" if sampling.sampler == "ddim" else ""
    return (
        f"{format_count(record.num_samples)} images of every checkpoint's {_WEIGHTS[sampling.weights]} weights:"
        f" {sampling.steps} {sampling.sampler.upper()} steps{eta}, {guidance}, {sampling.labels} labels,"
        f" {sampling.precision}, seed {sampling.seed}, decoder {record.decoder}. Image i has the same noise and label"
        " for every variant and checkpoint."
    )


def _metric(config: StudyConfig, record: MetricsRecord) -> Facts:
    reference = f"{record.reference}, SHA-256 {record.reference_sha256[:12]}"
    return [
        (
            "Metric",
            f"{metric_name(record.metric)}: Fréchet distance between the features of the samples and of the reference"
            f" ({reference}); lower is better. Evaluator {record.evaluator}, feature extractor"
            f" {record.extractor_sha256[:12]}.",
        ),
        *_other_metrics(record),
        (
            "Interval",
            f"{record.confidence:.0%}. Of a run: by bootstrap over the sampled images, {config.evaluation.resamples}"
            " resamples, centred on the value. Of a variant with several seeds, or with a given spread between seeds:"
            " the mean over seeds of the log metric, with the variance between seeds, pooled over variants, and the"
            " variance of the paired bootstrap draws; the few degrees of freedom widen it as in Student's t. A finite"
            " number of images makes every Fréchet distance slightly too large, by about the same amount for all"
            " variants; the distance at infinite N is without this bias.",
        ),
        (
            "Noise floor",
            f"{format_number(record.noise_floor)}: the metric of an untrained model's samples. A model whose"
            f" interval reaches above {NOISE_SHARE:.0%} of it is not compared.",
        ),
    ]


def _other_metrics(record: MetricsRecord) -> Facts:
    """The direction in which each secondary metric improves; nothing if there are none."""
    others = [METRICS[name] for name in record.metrics if name in METRICS and name != record.metric]
    directions = [
        f"{', '.join(metric.label for metric in group)}: {direction} is better."
        for direction, lower in (("lower", True), ("higher", False))
        if (group := [metric for metric in others if metric.lower_is_better is lower])
    ]
    return [("Other metrics", " ".join(directions))] if directions else []


def _verdicts(record: MetricsRecord) -> str:
    return (
        "From intervals alone. Claims 1 and 2 compare pairs of variants by the ratio of their metrics. Runs are paired"
        " by seed and by bootstrap draw. They are supported if in every pair the interval of the ratio is on the"
        " claimed side of 1, and contradicted if in some pair it is on the other side, at a level divided by the number"
        " of pairs. Claim 3 fits the log metric on log Gflops and on log parameters and compares their R²; the"
        f" {record.confidence:.0%} interval of the difference comes from {format_count(predictors.DRAWS)} joint draws"
        " of other seeds and other samples."
    )


def _program(results: Results, evidence: Evidence) -> str:
    trained = f", checkpoints by version {', '.join(evidence.code_versions)}" if evidence.code_versions else ""
    return f"Report by dit-scaling {code_version()}{trained}; science hash {results.verdict.science_hash}."
