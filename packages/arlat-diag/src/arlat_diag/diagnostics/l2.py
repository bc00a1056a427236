"""L2: what is left of held-out speech after encoding and decoding, by perceptual and signal metrics at 16 kHz.

| key | sound that is held against the original |
| --- | --- |
| l2.METRIC | the stored latents, decoded |
| l2.METRIC.n_valid | how many utterances have a score |
| l2.other_speaker.METRIC | the decoded utterance of another speaker: what any speech scores (`mos` does not look at the original, and has none) |
| l2.mean_latent.METRIC | the training mean latent, decoded: what the decoder has without hearing anything |
| l2.original.METRIC | the original itself: the ceiling (`si_sdr` has none, it is infinite) |

METRIC is one of `perception.METRICS`, defined there. The floor of a figure is the better of the two sounds that know nothing
of the utterance. Originals are the files, brought to 16 kHz by arlat's resampler; decoded
audio likewise. Decoded audio is cut to the original's length, which the codec pads to whole frames, and never shifted in
time: a codec that delays its audio pays for it in `stoi`, `estoi` and `si_sdr`. An utterance is decoded whole, and its first
`seconds` are scored: PESQ has room for few phrases. Latents are those of the store, with its rounding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from arlat_core.config import Config as BaseConfig
from arlat_core.config import UserError
from arlat_core.intervals import make_value
from arlat_core.types import Codec, Count, Result, Value
from arlat_data.audio import AudioError, read_audio, resample
from arlat_data.codecs import build_codec
from arlat_data.extract import resampled
from arlat_data.tree import drop_twins, make_ids, walk
from pydantic import Field
from torch import Tensor

from arlat_diag.perception import BEST, METRICS, RATE, UNITS, Score, score

if TYPE_CHECKING:
    from arlat_data.store import LatentStore

CONTROLS = {
    "other_speaker": tuple(name for name in METRICS if name != "mos"),
    "mean_latent": tuple(METRICS),
    "original": tuple(name for name in METRICS if name != "si_sdr"),
}
"""The sounds that are scored beside the decoded one, and the metrics that mean something on them."""


class Config(BaseConfig):
    """Settings of L2."""

    utterances: int = Field(100, gt=0)
    """At most so many held-out utterances, drawn evenly over the speakers."""
    seconds: float = Field(10.0, ge=0.5)
    """Of each utterance at most so much is scored, from its beginning."""
    seed: int = 0
    """Seed of the choice of utterances and of the bootstrap."""
    audio_dir: Path | None = None
    """The folder that the store was made from; the battery puts `data.audio_dir` here."""
    codec: str = ""
    """The codec text that decodes the store; the battery puts `data.codec` here (default: what the store says)."""


class NoDecoderError(Exception):
    """The store cannot be decoded; the message says why."""


@dataclass(frozen=True)
class Item:
    """An utterance at 16 kHz: original and decoded [n], `failed` saying why there is neither; frames that were scored."""

    utterance: str
    speaker: str
    frames: int
    original: Tensor
    decoded: Tensor
    failed: str = ""


def run(
    store: LatentStore,
    config: Config,
    run_dir: Path,
    device: str = "cpu",
    progress: Callable[[str], None] = lambda _: None,
) -> Result:
    """Runs L2 on a store; writes nothing to `run_dir`. Definitions: this module's docstring.

    Raises UserError where the audio is not there. A store that cannot be decoded gives figures without value, and a note.
    """
    if config.audio_dir is None:
        raise UserError("L2 compares with the original audio: give data.audio_dir=DIR, the folder of the extraction.")
    progress("L2 codec")
    settings = config.model_dump(mode="json", exclude={"audio_dir", "codec"}) | {"rate_hz": RATE}
    try:
        codec = decoder(store, config.codec, device)
    except NoDecoderError as reason:
        status = f"not run: {reason}"
        return Result(
            values={f"l2.{name}": none(status) for name in METRICS},
            notes=[f"L2 was not run: {reason}"],
            settings=settings,
        )
    files = audio_files(store, config.audio_dir)
    items = []
    for number, utterance in enumerate(chosen := choose(store, config.utterances, config.seed), 1):
        progress(f"L2 decoding {number}/{len(chosen)}")
        items.append(prepare(store, codec, utterance, files, config.seconds, device))
    mean = mean_sound(store, codec, config.seconds, device)
    table = {}
    for number, item in enumerate(items, 1):
        progress(f"L2 scoring {number}/{len(items)}")
        table[item.utterance] = scores(item, stranger(items, number - 1), mean)
    values = summarise(items, table, config.seed)
    settings["items"] = [
        {"utterance": item.utterance, "speaker": item.speaker, "seconds": round(len(item.original) / RATE, 3)}
        | {name: vars(found) for name, found in table[item.utterance]["decoded"].items()}
        for item in items
    ]
    return Result(values=values, notes=list(missing(items, values)), settings=settings)


def decoder(store: LatentStore, text: str, device: str) -> Codec:
    """The codec of a store, tried on one mean frame; raises NoDecoderError with a sentence where there is none that fits."""
    if store.spec.sample_rate == 0:
        raise NoDecoderError(f"{store.spec.codec} is a synthetic process, and no codec decodes it.")
    known = store.attributes.get("settings", {}).get("codec", "")
    wanted = text or str(known) or store.spec.codec
    hint = "Name the codec that made the latents with data.codec=CODEC."
    try:
        codec = build_codec(wanted, device)
        store.spec.require(codec.spec, f"The store {store.path.name}")
        with torch.inference_mode():
            codec.decode(torch.as_tensor(store.mean).float()[None, None].to(device))
    except (UserError, ValueError) as error:
        raise NoDecoderError(f"the codec {wanted!r} does not decode these latents: {error} {hint}") from error
    except NotImplementedError as error:
        raise NoDecoderError(f"the codec {wanted!r} has no decoder{f': {error}' if str(error) else ''}.") from error
    return codec


def audio_files(store: LatentStore, folder: Path) -> dict[str, Path]:
    """Utterance id -> file; UserError where the folder holds none of the held-out utterances."""
    if not folder.is_dir():
        raise UserError(
            f"data.audio_dir is {folder}, which is no folder. Give the folder that the store was made from."
        )
    names = drop_twins(folder, walk(folder)[0], [])
    files = {name: folder / path for name, path in zip(make_ids(names), names, strict=True)}
    wanted = store.ids("eval")
    if not any(name in files for name in wanted):
        raise UserError(
            f"None of the {len(wanted)} held-out utterances of {store.path} is below {folder} (the first is {wanted[0]!r}). "
            "Give the folder that the store was made from."
            if wanted
            else f"{store.path} has no held-out utterance."
        )
    return files


def choose(store: LatentStore, count: int, seed: int) -> list[str]:
    """At most `count` held-out utterances in random order: one of each speaker first, then a second one, and so on."""
    ids = store.ids("eval")
    generator = torch.Generator().manual_seed(seed)
    shuffled = [ids[i] for i in torch.randperm(len(ids), generator=generator).tolist()]
    heard: Counter[str] = Counter()
    turn = {}
    for name in shuffled:
        turn[name] = heard[store.speaker(name)]
        heard[store.speaker(name)] += 1
    return sorted(shuffled, key=lambda name: turn[name])[:count]


def prepare(
    store: LatentStore, codec: Codec, utterance: str, files: dict[str, Path], seconds: float, device: str
) -> Item:
    """An utterance's original and decoded audio at 16 kHz, of equal length and no longer than `seconds`."""
    about, spec = store.item(utterance), store.spec
    nothing = torch.zeros(0)
    try:
        if utterance not in files:
            raise AudioError("it is not in the audio folder")
        audio = read_audio(files[utterance])
        samples = resampled(len(audio.samples), audio.rate, spec.sample_rate)
        if about.samples and samples != about.samples:
            raise AudioError(f"it has {samples} samples at {spec.sample_rate} Hz, and had {about.samples} when encoded")
    except AudioError as error:
        return Item(utterance, about.speaker, 0, nothing, nothing, f"failed: {error}")
    original = resample(audio.samples, audio.rate, RATE)
    decoded = heard(codec, torch.from_numpy(store.frames(utterance)), device)
    if len(decoded) < len(original) - RATE / spec.frame_rate:
        why = f"failed: {len(decoded)} samples were decoded of {len(original)}"
        return Item(utterance, about.speaker, 0, nothing, nothing, why)
    length = min(len(original), len(decoded), round(seconds * RATE))
    frames = min(about.length, -(-round(length * spec.frame_rate) // RATE))
    return Item(utterance, about.speaker, frames, original[:length], decoded[:length])


def heard(codec: Codec, latents: Tensor, device: str) -> Tensor:
    """Latents [t d] as sound [n] at 16 kHz."""
    with torch.inference_mode():
        sound = codec.decode(latents[None].to(device))[0].float().cpu()
    return resample(sound, codec.spec.sample_rate, RATE).clone()


def mean_sound(store: LatentStore, codec: Codec, seconds: float, device: str) -> Tensor:
    """The training mean latent, decoded for `seconds`, at 16 kHz."""
    frames = max(1, round(seconds * store.spec.frame_rate) + 1)
    return heard(codec, torch.as_tensor(store.mean).float().expand(frames, -1).contiguous(), device)


def stranger(items: Sequence[Item], index: int) -> Tensor | None:
    """The decoded sound of the next utterance, in turn, of another speaker; None where there is none."""
    after = [*items[index + 1 :], *items[:index]]
    return next((it.decoded for it in after if it.speaker != items[index].speaker and not it.failed), None)


def scores(item: Item, other: Tensor | None, mean: Tensor) -> dict[str, dict[str, Score]]:
    """Every metric of an utterance by the sound that is held against it; the shorter of two sounds says how much counts."""
    if item.failed:
        failed = dict.fromkeys(METRICS, Score(None, item.failed))
        return {"decoded": failed} | {kind: {name: failed[name] for name in some} for kind, some in CONTROLS.items()}
    against = {"decoded": item.decoded, "mean_latent": mean, "original": item.original}
    if other is not None:
        against["other_speaker"] = other
    found = {}
    for kind, sound in against.items():
        length = min(len(item.original), len(sound))
        found[kind] = {
            name: score(METRICS[name], item.original[:length], sound[:length]) for name in CONTROLS.get(kind, METRICS)
        }
    return found


def summarise(items: Sequence[Item], table: dict[str, dict[str, dict[str, Score]]], seed: int) -> dict[str, Value]:
    """The figures of all kinds of sound, with floor and ceiling beside those of the decoded one."""
    out: dict[str, Value] = {}
    for kind, some in CONTROLS.items():
        rows = [item for item in items if kind in table[item.utterance]]
        for name in some if rows else ():
            out[f"l2.{kind}.{name}"] = figure([(item, table[item.utterance][kind][name]) for item in rows], name, seed)
    for name in METRICS:
        own = figure([(item, table[item.utterance]["decoded"][name]) for item in items], name, seed)
        floors, ceilings = (known(out, name, *kinds) for kinds in (("other_speaker", "mean_latent"), ("original",)))
        ends = {"floor": BEST.get(name, max)(floors, default=None), "ceiling": next(iter(ceilings), None)}
        out[f"l2.{name}"] = own.model_copy(update=ends)
        out[f"l2.{name}.n_valid"] = Value(
            value=own.n.utterances, n=own.n, unit="utterances", ceiling=len(items), resampled="none"
        )
    return out


def known(values: dict[str, Value], name: str, *kinds: str) -> list[float]:
    """The figures of a metric by kind of sound, where there are any."""
    found = (values.get(f"l2.{kind}.{name}") for kind in kinds)
    return [value.value for value in found if value is not None and value.value is not None]


def figure(column: Sequence[tuple[Item, Score]], name: str, seed: int) -> Value:
    """The mean over utterances that have a score, with what befell the others in its status."""
    good = [(item, found.value) for item, found in column if found.value is not None]
    left = Counter(found.status for _, found in column if found.value is None)
    told = "; ".join(f"{count} {status}" for status, count in sorted(left.items()))
    if not good:
        return none(next(iter(left)) if len(left) == 1 else f"no score: {told}")
    value = make_value(
        [found for _, found in good],
        [item.speaker for item, _ in good],
        [item.utterance for item, _ in good],
        unit=UNITS.get(name, ""),
        seed=seed,
    )
    update: dict[str, Any] = {"n": value.n.model_copy(update={"frames": sum(item.frames for item, _ in good)})}
    if left:
        kept = "" if value.status == "ok" else f"{value.status}; "
        update["status"] = f"{kept}{sum(left.values())} of {len(column)} without a score: {told}"
    return value.model_copy(update=update)


def none(status: str) -> Value:
    """A figure that there is not."""
    return Value(value=None, n=Count(speakers=0, utterances=0, frames=0), resampled="none", status=status)


def missing(items: Sequence[Item], values: dict[str, Value]) -> Iterator[str]:
    """One sentence per metric that has no score of some utterance."""
    for name in METRICS:
        value = values[f"l2.{name}"]
        if value.value is None:
            yield f"L2: {name} has no value: {value.status}."
        elif value.n.utterances < len(items):
            yield f"L2: {name}: {value.status}."
