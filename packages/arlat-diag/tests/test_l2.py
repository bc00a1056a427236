"""L2 on codecs whose loss is known, on odd files, on stores that cannot be decoded, and in the battery and the decisions."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
from arlat_core.config import UserError
from arlat_core.types import Result, Value
from arlat_data import extract
from arlat_data.codecs import pca
from arlat_data.store import LatentStore
from arlat_data.synth import make
from arlat_diag import battery, decision, perception, reconstruction_sections
from arlat_diag.diagnostics import l2
from arlat_diag.figures import colours
from arlat_diag.results import Results, read_results

pytest.importorskip("pesq", reason="arlat-diag[perceptual] is not installed")
pytest.importorskip("pystoi", reason="arlat-diag[perceptual] is not installed")
RATE = 16_000
SPEAKERS = 5


@pytest.fixture(autouse=True)
def _no_mos(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the large extra, whether it is installed or not."""
    monkeypatch.setitem(sys.modules, "distillmos", None)
    perception.mos_model.cache_clear()


@pytest.fixture(scope="module")
def data() -> Path:
    folder = Path(os.environ.get("ARLAT_SHARED", Path(__file__).resolve().parents[3].parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing")
    return folder / "data"


@pytest.fixture(scope="module")
def audio(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds each of five readers, three of them held out, and two odd files of a sixth, held out."""
    folder = tmp_path_factory.mktemp("audio")
    names = []
    for index, speaker in enumerate(sorted((data / "speech").glob("[0-9]*"))[:SPEAKERS]):
        samples, _ = soundfile.read(min(speaker.glob("*/*.flac")), dtype="float32", frames=2 * RATE + 100 * index)
        names.append(f"{speaker.name}/a.wav")
        (folder / speaker.name).mkdir()
        soundfile.write(folder / names[-1], samples, RATE, subtype="FLOAT")
    (folder / "odd").mkdir()
    for file in ("stereo_44k1_24bit_jfk.flac", "8k_0_nicolas_5.wav", "silence_3s.flac", "nan_float32.wav"):
        shutil.copy(data / "odd" / file, folder / "odd" / file)
    odd = [f"odd/{path.name}" for path in sorted((folder / "odd").iterdir())]
    (folder / "train.txt").write_text("\n".join(names[:2]))
    (folder / "eval.txt").write_text("\n".join([*names[2:], *odd]))
    return folder


@pytest.fixture(scope="module")
def stores(audio: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], LatentStore]:
    """Framed PCA at 100 Hz by dimension; 160 dimensions of 160 samples lose nothing."""
    folder = tmp_path_factory.mktemp("stores")

    def make(dim: int) -> LatentStore:
        out = folder / f"store-{dim}"
        if not out.exists():
            clips = [extract.load_audio(path, RATE) for path in sorted(audio.glob("[0-9]*/*.wav"))]
            pca.fit(clips, dim, 100.0, RATE, 0, folder / f"pca-{dim}", frames_per_clip=200)
            extract.extract(
                extract.Config(audio=audio, codec=f"pca={folder / f'pca-{dim}'}", out=out, dtype="float32", max_bad=1.0)
            )
        return LatentStore.open(out)

    return make


def measure(store: LatentStore, audio: Path, **options: object) -> Result:
    return l2.run(store, l2.Config(audio_dir=audio, seconds=1.5, **options), Path("nowhere"))  # type: ignore[arg-type]


def test_a_codec_that_loses_nothing_reaches_the_ceilings(stores: Callable[[int], LatentStore], audio: Path) -> None:
    values = measure(stores(160), audio).values
    for name in ("pesq_wb", "stoi", "estoi", "mel_distance"):
        own = values[f"l2.{name}"]
        assert own.value == pytest.approx(own.ceiling, abs=1e-3), name
    assert values["l2.si_sdr"].value > 80
    assert values["l2.si_sdr"].ceiling is None
    assert values["l2.pesq_wb"].ceiling == pytest.approx(4.643888, abs=1e-5)


def test_a_codec_that_loses_much_lies_between_floor_and_ceiling(
    stores: Callable[[int], LatentStore], audio: Path
) -> None:
    store = stores(10)
    found = measure(store, audio)
    for name in ("stoi", "estoi", "mel_distance"):
        own = found.values[f"l2.{name}"]
        floors = [found.values[f"l2.{kind}.{name}"].value for kind in ("other_speaker", "mean_latent")]
        assert own.floor == (min(floors) if name == "mel_distance" else max(floors))
        assert min(own.floor, own.ceiling) < own.value < max(own.floor, own.ceiling)
        assert own.low < own.value < own.high
    assert found.values["l2.si_sdr"].value < 30
    stoi = found.values["l2.stoi"]
    assert (stoi.n.speakers, stoi.n.utterances, stoi.n.frames) == (4, 4, 4 * 150)
    assert stoi.status == "1 of 5 without a score: 1 too short"
    assert (found.values["l2.stoi.n_valid"].value, found.values["l2.stoi.n_valid"].ceiling) == (4, 5)
    mos = found.values["l2.mos"]
    assert (mos.value, mos.n.utterances) == (None, 0)
    assert mos.status == "no score: 4 not run: install arlat-diag[mos]; 1 too short"
    items = {row["utterance"]: row for row in found.settings["items"]}
    assert len(items) == 5
    assert items["odd/stereo_44k1_24bit_jfk"]["stoi"]["status"] == "ok"
    assert items["odd/8k_0_nicolas_5"]["pesq_wb"] == {"value": None, "status": "too short"}
    assert {reason.partition(":")[0] for reason in (row["reason"] for row in store.skipped)} == {
        "silent",
        "10 samples are NaN or infinite",
    }
    assert measure(store, audio).model_dump_json() == found.model_dump_json()


def test_originals_that_went_missing_or_changed_are_named(
    stores: Callable[[int], LatentStore], audio: Path, tmp_path: Path
) -> None:
    store, other = stores(10), tmp_path / "audio"
    shutil.copytree(audio, other)
    first, second = (other / f"{name}.wav" for name in store.ids("eval")[:2])
    first.unlink()
    samples, _ = soundfile.read(second)
    soundfile.write(second, samples[:-5], RATE)
    shutil.copy(other / "odd/silence_3s.flac", other / "odd/stereo_44k1_24bit_jfk.flac")
    found = measure(store, other)
    status = {row["utterance"]: row["si_sdr"]["status"] for row in found.settings["items"]}
    assert status[store.ids("eval")[0]] == "failed: it is not in the audio folder"
    assert re.fullmatch(
        r"failed: it has \d+ samples at 16000 Hz, and had \d+ when encoded", status[store.ids("eval")[1]]
    )
    assert status["odd/stereo_44k1_24bit_jfk"] == "failed: silent: every sample is zero"
    assert found.values["l2.stoi"].n.utterances == 1
    assert any(note.startswith("L2: stoi: ") and "4 of 5 without a score" in note for note in found.notes)


def test_at_most_so_many_utterances_of_as_many_speakers_as_there_are(stores: Callable[[int], LatentStore]) -> None:
    store = stores(10)
    chosen = l2.choose(store, 4, 0)
    assert {store.speaker(name) for name in chosen} == {store.speaker(name) for name in store.ids("eval")}
    assert set(l2.choose(store, 99, 1)) == set(store.ids("eval"))
    assert len({tuple(l2.choose(store, 4, seed)) for seed in range(8)}) > 1


def test_the_mistakes_of_a_user_are_named(stores: Callable[[int], LatentStore], audio: Path, tmp_path: Path) -> None:
    store = stores(10)
    with pytest.raises(UserError, match=r"None of the 5 held-out utterances .* is below"):
        measure(store, tmp_path)
    with pytest.raises(UserError, match="which is no folder"):
        measure(store, audio / "train.txt")
    with pytest.raises(UserError, match=r"give data\.audio_dir=DIR"):
        l2.run(store, l2.Config(), tmp_path)


def test_a_store_whose_codec_does_not_fit_says_so(stores: Callable[[int], LatentStore], audio: Path) -> None:
    found = measure(stores(10), audio, codec="mel")
    assert {value.value for value in found.values.values()} == {None}
    assert re.search(
        r"L2 was not run: the codec 'mel' does not decode these latents: .*codec: 'pca:10' against 'mel'",
        found.notes[0],
    )


def test_the_battery_goes_on_where_nothing_can_be_decoded(tmp_path: Path, audio: Path) -> None:
    make("white", dim=4, utterances=8, frames=60, speakers=4, seed=0, out=tmp_path / "white")
    config = battery.Config(
        data=battery.DataConfig(latents_dir=tmp_path / "white", audio_dir=audio), out=tmp_path / "run", only="l2,p4"
    )
    (values,) = read_results(battery.run_battery(config)).results.values()
    assert values["l2.stoi"].value is None
    assert "synthetic process" in values["l2.stoi"].status
    assert values["p4.effective_dim"].value is not None


def test_the_battery_runs_l2_only_with_audio() -> None:
    assert "l2" not in battery.chosen("")
    assert battery.chosen("", audio=True)[0] == "l2"
    assert battery.chosen("l2", audio=True) == ["l2"]
    with pytest.raises(UserError, match=r"data\.audio_dir=DIR"):
        battery.chosen("l2,p4")


def test_decisions_read_figures_that_l2_makes() -> None:
    read = set(re.findall(r'"l2\.(\w+)"', inspect.getsource(decision)))
    assert read == {"pesq_wb", "stoi", "mel_distance"}
    assert read <= set(perception.METRICS)


def test_the_report_has_the_page_with_floor_and_what_has_no_score(
    real_results: Callable[[dict[str, int]], Results],
) -> None:
    n = real_results({"mel": 8}).results["mel"]["l2.stoi"].n
    values = {
        f"l2.{kind}stoi": Value(value=0.7, low=0.6, high=0.8, n=n, floor=0.3, ceiling=1.0) for kind in ("", "original.")
    }
    values["l2.stoi.n_valid"] = Value(value=11, n=n, ceiling=12)
    values["l2.mos"] = Value(value=None, n=n, status="not run: install arlat-diag[mos]")
    page = reconstruction_sections.reconstruction({"mel": values}, colours(["mel"]))
    text = repr(page.tables)
    assert "floor 0.30" in text
    assert "of 12" in text
    assert page.notes == ["mel: predicted MOS, not run: install arlat-diag[mos]."]
    assert (
        page.pictures[0].svg
        == reconstruction_sections.reconstruction({"mel": values}, colours(["mel"])).pictures[0].svg
    )
    empty = reconstruction_sections.reconstruction({"mel": {}}, colours(["mel"]))
    assert "data.audio_dir=DIR" in empty.missing
    assert not empty.pictures
