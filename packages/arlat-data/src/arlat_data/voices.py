"""The embedded corpus: synthetic voices from espeak-ng (a wheel, no download), a stand-in where no speech is given."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import resources
from importlib.metadata import version
from pathlib import Path

import numpy as np
import soundfile
import torch
from arlat_core.config import UserError
from arlat_core.files import write_json
from arlat_core.registry import missing_extra

from arlat_data import espeak
from arlat_data.splits import SPLITS, draw

# Those of espeak-ng's variants that sound like a person: no robots, whisperers, demons, croakers or novelty speeds.
VARIANTS = (
    *("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "f5"),
    *("Alex", "Alicia", "Andrea", "Andy", "Annie", "Denis", "Diogo", "Gene", "Gene2", "Henrique", "Hugo", "Jacky"),
    *("Lee", "Marco", "Mario", "Michael", "Mike", "Reed", "adam", "anika", "antonio", "aunty", "belinda", "benjamin"),
    *("boris", "caleb", "david", "ed", "edward", "grandma", "grandpa", "gustave", "ian", "iven", "john", "kaukovalta"),
    *("linda", "marcelo", "max", "michel", "miguel", "norbert", "pablo", "paul", "pedro", "quincy", "rob", "robert"),
    *("sandro", "shelby", "steph", "travis", "victor", "zac"),
)
ACCENTS = ("en-us", "en-gb-x-rp", "en-gb-scotland", "en-us", "en-029", "en-us", "en-gb-x-gbcwmd")
MIN_SECONDS, MAX_SECONDS = 3.0, 8.0
SPARE = 6  # sentences spoken beyond those needed, for those that turn out too short or too long
EVAL_EVERY = 4  # every fourth voice is held out
FINISHED = "voices.json"
README = """# Synthetic voices, a stand-in for speech

Made by `arlat` with the formant synthesiser espeak-ng {version}: no person speaks here, and figures measured on it say
nothing about speech. They show that the program runs. Give `--audio DIR` for real recordings.

{speakers} voices with {utterances} utterances each, {minutes:.1f} minutes, 22.05 kHz, seed {seed}. A voice is an accent, a
voice variant, a rate (words per minute), a pitch and a pitch range (0–99) of espeak-ng, a level, and faint white noise
(espeak-ng's pauses are digital silence, which no recording has). The sentences were written for this purpose (CC0).

voice  accent           variant     rate  pitch  range  level dBFS  noise dBFS
{table}
"""


@dataclass(frozen=True)
class Voice:
    """One speaker's settings; levels in dBFS (root mean square)."""

    name: str
    accent: str
    variant: str
    rate: int
    pitch: int
    range: int
    level_db: float
    noise_db: float


def make_voices(out: Path, speakers: int = 24, utterances: int = 8, seed: int = 0) -> Path:
    """Writes the corpus as `out`/SPEAKER/1/SPEAKER-1-NNNN.flac and returns `out`; an equal one that is there is kept.

    The same arguments give the same bytes with the same espeak-ng, soundfile and torch. Fewer speakers are the first of
    more. Raises UserError when the extra is missing or `out` holds something else.
    """
    lines = sentences()
    if not 2 <= speakers <= len(VARIANTS) or not 1 <= utterances <= len(lines) // 2:
        raise UserError(
            f"{speakers} speakers with {utterances} utterances cannot be made: there are 2 to {len(VARIANTS)} voices, "
            f"with 1 to {len(lines) // 2} utterances each."
        )
    library, data = find_espeak()
    settings = {
        "speakers": speakers,
        "utterances": utterances,
        "seed": seed,
        "espeakng-loader": version("espeakng-loader"),
        "sentences": hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16],
    }
    if is_made(out, settings):
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name[:80]}.", dir=out.parent))
    try:
        voices = choose_voices(speakers, seed)
        with ThreadPoolExecutor(max_workers=2) as pool:
            jobs = [pool.submit(write_voice, work, voice, utterances, seed, lines, library, data) for voice in voices]
            seconds = sum(job.result() for job in jobs)
        write_lists(work)
        write_readme(work, voices, utterances, seed, seconds)
        sizes = {str(path.relative_to(work)): path.stat().st_size for path in sorted(work.rglob("*.flac"))}
        write_json(work / FINISHED, {"settings": settings, "files": sizes})
        work.chmod(0o755)
        work.replace(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return out


def is_made(out: Path, settings: dict[str, object]) -> bool:
    """Whether `out` holds this very corpus, whole; False where nothing is; UserError for anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    finished = out / FINISHED
    if not finished.is_file():
        raise UserError(f"{out} is there and holds no voices made here. Give an empty or a new folder.")
    found = json.loads(finished.read_text(encoding="utf-8"))
    if found["settings"] != settings:
        raise UserError(
            f"{out} holds voices with other settings ({found['settings']}). Give a new folder, or delete it."
        )
    wrong = [
        name
        for name, size in found["files"].items()
        if not (out / name).is_file() or (out / name).stat().st_size != size
    ]
    if wrong:
        raise UserError(
            f"{out} holds these voices, but {len(wrong)} files are gone or changed ({wrong[0]}). Delete it."
        )
    return True


def find_espeak() -> tuple[str, str]:
    """Paths of the shared library and of its data folder."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise missing_extra("arlat-data", "voices", error) from error
    return espeakng_loader.get_library_path(), espeakng_loader.get_data_path()


def sentences() -> list[str]:
    """The built-in sentences."""
    text = resources.files("arlat_data").joinpath("sentences.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def choose_voices(speakers: int, seed: int) -> list[Voice]:
    """Draws each speaker's settings by hash, so that speaker i is the same in every corpus of one seed."""
    variants = sorted(VARIANTS, key=lambda name: draw(seed, "variant", name))
    voices = []
    for i in range(speakers):
        name = f"v{i + 1:02d}"

        def between(low: float, high: float, what: str, name: str = name) -> float:
            return low + (high - low) * draw(seed, what, name)

        voices.append(
            Voice(
                name=name,
                accent=ACCENTS[i % len(ACCENTS)],
                variant=variants[i],
                rate=round(between(135, 185, "rate")),
                pitch=round(between(25, 75, "pitch")),
                range=round(between(35, 70, "range")),
                level_db=round(between(-27, -21, "level"), 1),
                noise_db=round(between(-66, -58, "noise"), 1),
            )
        )
    return voices


def write_voice(
    out: Path, voice: Voice, utterances: int, seed: int, lines: list[str], library: str, data: str
) -> float:
    """Speaks one voice's utterances in a process of its own and writes them with their transcript; returns seconds."""
    order = sorted(lines, key=lambda line: draw(seed, voice.name, line))[: utterances + SPARE]
    clips = [fit(clip) for clip in synthesise(voice, order, library, data)]
    kept = [(text, clip) for text, clip in zip(order, clips, strict=True) if clip is not None][:utterances]
    if len(kept) < utterances:
        raise UserError(f"Only {len(kept)} sentences of voice {voice.name} last 3 to 8 s, {utterances} are wanted.")
    folder = out / voice.name / "1"
    folder.mkdir(parents=True)
    transcript, seconds = [], 0.0
    for i, (text, clip) in enumerate(kept):
        name = f"{voice.name}-1-{i:04d}"
        soundfile.write(folder / f"{name}.flac", finish(clip, voice, seed, i), espeak.RATE_HZ, subtype="PCM_16")
        transcript.append(f"{name} {text}\n")
        seconds += len(clip) / espeak.RATE_HZ
    (folder / f"{voice.name}-1.trans.txt").write_text("".join(transcript), encoding="utf-8")
    return seconds


def synthesise(voice: Voice, lines: list[str], library: str, data: str) -> list[np.ndarray]:
    """Speaks `lines` with one voice: int16 arrays [n] at 22 050 Hz."""
    common = {
        "voice": f"{voice.accent}+{voice.variant}",
        "rate": voice.rate,
        "pitch": voice.pitch,
        "range": voice.range,
    }
    request = {"library": library, "data": data, "jobs": [{**common, "text": line} for line in lines]}
    done = subprocess.run(
        [sys.executable, "-I", espeak.__file__], input=json.dumps(request).encode(), capture_output=True, check=False
    )
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise UserError(f"espeak-ng failed for voice {voice.variant} (status {done.returncode}): {last[0]}")
    clips, position = [], 0
    while position < len(done.stdout):
        (size,) = struct.unpack_from("<I", done.stdout, position)
        clips.append(np.frombuffer(done.stdout, dtype="<i2", count=size // 2, offset=position + 4))
        position += 4 + size
    return clips


def fit(clip: np.ndarray) -> np.ndarray | None:
    """The clip if it lasts 3 to 8 s, else None."""
    return clip if MIN_SECONDS <= len(clip) / espeak.RATE_HZ <= MAX_SECONDS else None


def finish(clip: np.ndarray, voice: Voice, seed: int, index: int) -> np.ndarray:
    """Brings a clip [n] to the voice's level and adds its noise; peak at most 0.95."""
    generator = torch.Generator().manual_seed(int(draw(seed, f"noise {index}", voice.name) * 2**40))
    samples = torch.from_numpy(clip.astype(np.float32)) / 32768
    samples = samples * (10 ** (voice.level_db / 20) / samples.square().mean().sqrt())
    samples = samples * min(1.0, 0.9 / float(samples.abs().max()))
    noise = torch.randn(samples.shape, generator=generator) * 10 ** (voice.noise_db / 20)
    return ((samples + noise).clamp(-0.95, 0.95) * 32767).round().to(torch.int16).numpy()


def write_lists(out: Path) -> None:
    """Writes train.txt and eval.txt: the voices v04, v08 … are held out, and v02 where there are fewer than four."""
    speakers = sorted(path.name for path in out.iterdir() if path.is_dir())
    held = set(speakers[EVAL_EVERY - 1 :: EVAL_EVERY]) or {speakers[1]}
    for side in SPLITS:
        chosen = [speaker for speaker in speakers if (speaker in held) == (side == "eval")]
        paths = [str(path.relative_to(out)) for speaker in chosen for path in sorted((out / speaker).rglob("*.flac"))]
        (out / f"{side}.txt").write_text("".join(f"{path}\n" for path in paths), encoding="utf-8")


def write_readme(out: Path, voices: list[Voice], utterances: int, seed: int, seconds: float) -> None:
    """Writes README.txt, which says that these are no people."""
    table = "\n".join(
        "{name:<6} {accent:<16} {variant:<11} {rate:>4}  {pitch:>5}  {range:>5}  {level_db:>10}  {noise_db:>10}".format(
            **asdict(v)
        )
        for v in voices
    )
    text = README.format(
        version=version("espeakng-loader"),
        speakers=len(voices),
        utterances=utterances,
        minutes=seconds / 60,
        seed=seed,
        table=table,
    )
    (out / "README.txt").write_text(text, encoding="utf-8")
