"""The latent store: round trips, refusals, faults, crops."""

import hashlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from arlat_core.config import UserError
from arlat_core.types import LatentSpec
from arlat_data.store import LatentStore, Split, write_store
from arlat_data.store_layout import place, read_header
from arlat_data.store_writer import Row
from arlat_data.verify import broken_files, broken_shards
from hypothesis import given, settings
from hypothesis import strategies as st

DIM = 3


def spec(dim: int = DIM) -> LatentSpec:
    return LatentSpec(codec="toy", space="toy", dim=dim, frame_rate=12.5, sample_rate=16000, fingerprint="0")


def tree(path: Path) -> dict[str, str]:
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files_of(path)}


def rows(lengths: list[int], seed: int = 0) -> list[tuple[str, str, str, np.ndarray, np.ndarray | None]]:
    generator = np.random.default_rng(seed)
    return [
        (
            f"u{k}",
            f"s{k % 3}",
            "eval" if k % 3 == 0 else "train",
            generator.normal(size=(length, DIM)),
            np.full(length, -k),
        )
        for k, length in enumerate(lengths)
    ]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 300), min_size=2, max_size=12), st.sampled_from(["float16", "float32"]))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, lengths: list[int], dtype: str) -> None:
    path = tmp_path_factory.mktemp("store") / "s"
    written = rows(lengths)
    write_store(path, spec(), written, dtype=dtype, shard_frames=512)  # type: ignore[arg-type]
    store = LatentStore.open(path)
    tolerance = 2e-3 if dtype == "float16" else 1e-6
    for name, speaker, split, z, energy in written:
        np.testing.assert_allclose(store.frames(name), z, atol=tolerance, rtol=tolerance)
        np.testing.assert_array_equal(store.energy(name), energy)
        assert store.speaker(name) == speaker
        assert name in store.ids(split)
    train = store.load("train")
    for name, start, length in zip(train.ids, train.start.tolist(), train.length.tolist(), strict=True):
        np.testing.assert_array_equal(train.z[start : start + length].numpy(), store.frames(name))
    if len(train.z):
        np.testing.assert_allclose(store.mean, train.z.double().mean(0), atol=1e-9)
        np.testing.assert_allclose(store.covariance, np.cov(train.z.double().numpy().T, bias=True), atol=1e-9)


@given(st.lists(st.integers(0, 512), min_size=1, max_size=40))
def test_no_utterance_straddles_a_shard_or_another(lengths: list[int]) -> None:
    items = place([(str(k), "s", "train", length, 0) for k, length in enumerate(lengths)], 512)
    end = 0
    for item, length in zip(items, lengths, strict=True):
        assert item.length == length
        assert item.start >= end
        assert length == 0 or item.start // 512 == (item.start + length - 1) // 512
        end = item.start + length


def test_refusals_say_what_to_do(tmp_path: Path) -> None:
    bad = rows([5, 6])
    bad[1][3][2, 1] = np.nan
    with pytest.raises(UserError, match="u1 gave latents that are not finite"):
        write_store(tmp_path / "nan", spec(), bad)
    assert not (tmp_path / "nan").exists()
    big = rows([5, 6])
    big[0][3][0, 0] = 1e6
    with pytest.raises(UserError, match="--dtype float32"):
        write_store(tmp_path / "big", spec(), big)
    with pytest.raises(UserError, match="twice"):
        write_store(tmp_path / "twice", spec(), [*rows([5]), *rows([5])])
    with pytest.raises(UserError, match="both splits"):
        write_store(tmp_path / "leak", spec(), [*rows([5]), ("x", "s0", "train", np.ones((2, DIM)), None)])
    with pytest.raises(UserError, match=r"'test'.*train, eval"):
        write_store(tmp_path / "split", spec(), [("x", "s0", "test", np.ones((2, DIM)), None)])
    with pytest.raises(UserError, match="no latent store"):
        LatentStore.open(tmp_path / "nothing")
    write_store(tmp_path / "good", spec(), rows([5, 6]))
    with pytest.raises(UserError, match="not empty"):
        write_store(tmp_path / "good", spec(), rows([5, 6]))


@pytest.mark.parametrize("fault", ["missing", "empty", "truncated", "flipped"])
@pytest.mark.parametrize("shard", [0, 1, 2])
def test_every_fault_is_named_and_never_read(tmp_path: Path, fault: str, shard: int) -> None:
    write_store(tmp_path / "s", spec(), rows([200, 200, 200]), shard_frames=256)
    assert broken_shards(tmp_path / "s") == {}
    file = tmp_path / "s" / "z" / "c" / str(shard) / "0"
    data = bytearray(file.read_bytes())
    if fault == "missing":
        file.unlink()
    else:
        data[len(data) // 3] ^= 4
        file.write_bytes({"empty": b"", "truncated": bytes(data[:-100]), "flipped": bytes(data)}[fault])
    assert list(broken_shards(tmp_path / "s")) == [shard]
    if fault == "flipped":
        with pytest.raises(UserError, match=f"shard {shard}.*arlat data verify"):
            LatentStore.open(tmp_path / "s").frames(f"u{shard}")
        with pytest.raises(UserError, match=f"shard {shard}.*arlat data verify"):
            LatentStore.open(tmp_path / "s").load("eval" if shard == 0 else "train")
    else:
        with pytest.raises(UserError, match=f"shard {shard}.*arlat data verify"):
            LatentStore.open(tmp_path / "s")


def test_a_full_disk_is_told_and_the_same_command_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path))

    with monkeypatch.context() as patch:
        patch.setattr("arlat_data.store_writer.write_manifest", full)
        with pytest.raises(UserError, match="/s cannot be written: No space left"):
            write_store(tmp_path / "s", spec(), rows([5]))
    with pytest.raises(UserError, match="unfinished"):
        LatentStore.open(tmp_path / "s")
    write_store(tmp_path / "s", spec(), rows([5]))
    write_store(tmp_path / "other", spec(), rows([5]))
    assert tree(tmp_path / "s") == tree(tmp_path / "other")


def test_a_store_is_not_written_over(tmp_path: Path) -> None:
    write_store(tmp_path / "s", spec(), rows([5, 6]))
    before = tree(tmp_path / "s")
    with pytest.raises(UserError, match="not empty"):
        write_store(tmp_path / "s", spec(), rows([7]))
    assert tree(tmp_path / "s") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="not empty"):
        write_store(tmp_path / "mine", spec(), rows([7]))
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_two_writers_of_one_store(tmp_path: Path) -> None:
    def late() -> Iterator[Row]:
        yield from rows([5])
        with pytest.raises(UserError, match="in use by process"):
            write_store(tmp_path / "s", spec(), rows([6]))

    write_store(tmp_path / "s", spec(), late())
    assert LatentStore.open(tmp_path / "s").length("u0") == 5


def test_empty_utterances_are_listed(tmp_path: Path) -> None:
    write_store(tmp_path / "s", spec(), rows([3, 0, 1]))
    store = LatentStore.open(tmp_path / "s")
    assert [item.id for item in store.items] == ["u0", "u2"]
    assert store.skipped == [{"path": "u1", "reason": "it has 0 frames"}]


def test_a_store_without_utterances_opens(tmp_path: Path) -> None:
    write_store(tmp_path / "s", spec(), rows([0, 0]))
    store = LatentStore.open(tmp_path / "s")
    assert store.items == ()
    assert len(store.load("train").z) == 0
    assert np.isnan(store.mean).all()


def test_the_number_of_files_does_not_depend_on_the_number_of_utterances(tmp_path: Path) -> None:
    counts = []
    for number in (4, 60):
        write_store(tmp_path / str(number), spec(), rows([240 // number] * number))
        counts.append(sum(file.is_file() for file in (tmp_path / str(number)).rglob("*")))
    assert counts[0] == counts[1]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(1, 50), st.integers(0, 5))
def test_crops_lie_inside_utterances(lengths: list[int], frames: int, seed: int) -> None:
    marks = torch.cat([torch.stack([torch.full((n,), k), torch.arange(n)], 1) for k, n in enumerate(lengths)]).float()
    start = torch.tensor([0, *lengths]).cumsum(0)[:-1]
    names = [str(k) for k in range(len(lengths))]
    split = Split(marks, start, torch.tensor(lengths), names, names, torch.zeros(len(marks)))
    generator = torch.Generator().manual_seed(seed)
    if frames > max(lengths):
        with pytest.raises(UserError, match="No utterance has"):
            split.crops(frames, 4, generator)
        return
    crops = split.crops(frames, 16, generator)
    assert crops.shape == (16, frames, 2)
    assert bool((crops[:, :, 0] == crops[:, :1, 0]).all())
    assert bool((crops[:, 1:, 1] - crops[:, :-1, 1] == 1).all())


def files_of(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file())


def test_a_flipped_bit_in_any_file_is_named(tmp_path: Path) -> None:
    write_store(tmp_path / "s", spec(), rows([200, 200]), shard_frames=256, truth={"a": 1})
    for file in files_of(tmp_path / "s"):
        name, data = str(file.relative_to(tmp_path / "s")), file.read_bytes()
        file.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :])
        if name == "store.json":
            with pytest.raises(UserError, match=r"store\.json is not what was written"):
                read_header(tmp_path / "s")
        else:
            header = read_header(tmp_path / "s")
            told = [*broken_shards(tmp_path / "s", header).values(), *broken_files(tmp_path / "s", header)]
            assert len(told) == 1, name
            assert name in told[0]
        file.write_bytes(data)
    assert broken_shards(tmp_path / "s") == {}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_mutated_header_or_manifest_gives_a_sentence(header_bytes: tuple[Path, bytes], data: st.DataObject) -> None:
    path, whole = header_bytes
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    changed = changed[: data.draw(st.sampled_from([len(changed), len(changed) // 2, 0]))]
    (path / "store.json").write_bytes(bytes(changed))
    if bytes(changed) == whole:
        LatentStore.open(path)
        return
    try:
        LatentStore.open(path)
    except UserError:
        pass
    else:  # the bytes differ and the JSON does not: white space
        assert json.loads(bytes(changed)) == json.loads(whole)


@pytest.fixture(scope="module")
def header_bytes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    path = tmp_path_factory.mktemp("header") / "s"
    write_store(path, spec(), rows([5, 6]))
    return path, (path / "store.json").read_bytes()


def test_the_index_can_be_read_by_any_zarr_reader(tmp_path: Path) -> None:
    write_store(tmp_path / "s", spec(), rows([5, 6, 1]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open_group(tmp_path / "s", mode="r")
        assert group["id"][:].tolist() == ["u0", "u1", "u2"]  # type: ignore[union-attr, index]
        assert group["start"][:].tolist() == [0, 5, 11]  # type: ignore[union-attr, index]
        assert group["length"][:].tolist() == [5, 6, 1]  # type: ignore[union-attr, index]
    assert LatentSpec.model_validate(group.attrs["spec"]) == spec()


def test_a_shard_that_is_lost_after_opening_is_not_read_as_numbers(tmp_path: Path) -> None:
    write_store(tmp_path / "s", spec(), rows([200, 200]), shard_frames=256)
    store = LatentStore.open(tmp_path / "s")
    (tmp_path / "s" / "z" / "c" / "1" / "0").unlink()
    with pytest.raises(UserError, match="shard 1"):
        store.frames("u1")
    with pytest.raises(UserError, match="shard 1"):
        store.load("train")
