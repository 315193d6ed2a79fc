"""Fill-mask from requests to results: long texts, refusals, engines, and whose task it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pipeline.assembly import open_encode_stage, open_postprocess_stage, open_tokenize_stage
from pipeline.ensemble import Ensemble, Refused
from pipeline.errors import UserError
from pipeline.model_files import model_config, task_of
from pipeline.settings import EnsembleSettings
from schemas.packs import decode_encoding_pack, decode_token_pack, encode_pack
from schemas.records import InputRecord, Source
from schemas.results import Result
from stages.pack_in_progress import PackInProgress
from tests.fake_gpu import FakeGpu
from tests.onnx_files import WIDTH, exported
from tests.tasks.test_fill_mask_against_transformers import MAX_LENGTH, settings_of, write_masked_model


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return write_masked_model(tmp_path / "bert", "bert")


def answered(settings: EnsembleSettings, requests: list[Any]) -> list[Any]:
    with Ensemble(settings) as ensemble:
        return [
            each.error if isinstance(each, Refused) else msgspec.to_builtins(each.outputs["it"])
            for each in ensemble.predict(requests)
        ]


def test_a_long_texts_masks_are_filled_once(bert: Path) -> None:
    """Each as in the window where it has more context, with the whole text for its sequence."""
    words = ["word"] * 700
    places = (0, 40, 350, 699)
    for place in places:
        words[place] = "[MASK]"
    text = " ".join(words)
    [found] = answered(settings_of(bert, tokenizer={"long_texts": "stride", "stride": 20}), [text])
    assert [len(each) for each in found] == [5] * 4
    for place, answers in zip(places, found, strict=True):
        for answer in answers:
            filled = answer["sequence"].split(" ")[1:-1]  # without [CLS] and [SEP]
            assert filled.count("[MASK]") == 3
            if answer["token_str"].isalpha():  # it stands where the mask stood
                assert filled == [*words[:place], answer["token_str"], *words[place + 1 :]]
    # The first window's first half is in no other.
    alone = text.split(" ")[: MAX_LENGTH - 2]
    [first] = answered(settings_of(bert, tokenizer={"long_texts": "truncate"}), [" ".join(alone)])
    assert [each["token"] for each in first[0]] == [each["token"] for each in found[0]]


def test_what_can_not_be_filled_is_told(bert: Path) -> None:
    requests = [
        "no mask here",
        "word " * 100 + "[MASK]",
        {"text": "[MASK]", "text_pair": "a"},
        {"text": "[MASK]", "parameters": {"top_k": None}},
        {"text": "[MASK]", "parameters": {"targets": ["", "\u200b"]}},
        {"text": "[MASK]", "parameters": {"targets": 5}},
        {"text": "[MASK]", "parameters": {"targets": []}},
        "the [MASK]",
    ]
    settings = settings_of(bert, tokenizer={"long_texts": "truncate"}, model={"top_k": 3})
    *errors, answer = answered(settings, requests)
    assert errors[:4] == [
        "text: no [MASK]: fill-mask wants one where a token is to be found",
        "text: no [MASK] in its first 64 tokens, the others are cut off: fill-mask wants one where a token is to be "
        "found",
        "text_pair: fill-mask reads one text",
        "parameters.top_k: null, which fill-mask does not take: give a number",
    ]
    assert errors[4] == "parameters.targets: none that the tokenizer reads as a token: give one at least"
    assert errors[5].startswith("Expected `str | array`, got `int` - at `$.parameters.targets`")
    assert errors[6] == (
        "Expected `array` of length >= 1 - at `$.parameters.targets`; give one at least, or leave it out"
    )
    assert len(errors) == 7
    assert len(answer) == 3


def test_an_answer_that_no_record_holds_is_refused_before_it_is_made(bert: Path) -> None:
    [error, many] = answered(
        settings_of(bert),
        [
            {"text": "[MASK] " * 50 + "word " * 5_000, "parameters": {"top_k": 500}},
            "[MASK]" * 60_000,
        ],
    )
    assert error == (
        "500 answers (top_k) for each of 50 masks, each with the whole text, are some 605 MB: ask for fewer, of a "
        "shorter text; allowed: 16 MB"
    )
    assert many.endswith("[MASK]; allowed here: 58333")


def test_masks_that_a_pack_has_not_are_no_answers(bert: Path) -> None:
    """Over topics: only rows of masked tokens leave encode, beside another model's rows of all tokens."""
    models = [{"name": "it", "source": str(bert), "task": "fill-mask"}]
    for more in ([], [{"name": "states", "source": str(bert), "task": "feature-extraction"}]):
        settings = EnsembleSettings.model_validate({"name": "t", "models": models + more})
        encode = open_encode_stage(settings)
        records = [
            InputRecord(Source("t", 0, at), None, json.dumps({"text": text}).encode(), [])
            for at, text in enumerate(["the [MASK] of", "peace [MASK] and [MASK] war"])
        ]
        [(pack, rejected)] = open_tokenize_stage(settings)([records])
        assert pack is not None
        assert not rejected
        progress = PackInProgress(decode_token_pack(encode_pack(pack)), None)
        encoded = encode(progress.windows)
        for place in range(len(progress.windows)):
            progress.put(place, encoded, place)
        encodings, _ = progress.encodings()
        assert encodings is not None
        read = decode_encoding_pack(encode_pack(encodings))
        outputs = {output.name: output for output in read.outputs}
        assert outputs["it"].rows().shape == (3, 24)
        assert read.token_details()[outputs["it"].places(), 0].tolist() == [4, 4, 4]
        if more:
            np.testing.assert_array_equal(outputs["states"].rows()[outputs["it"].places()], outputs["it"].rows())
        answers = open_postprocess_stage(settings)(read)
        assert [isinstance(each, Result) for each in answers] == [True, True]
        other = msgspec.structs.replace(outputs["it"], values=b"", chosen=b"")
        forged = msgspec.structs.replace(read, outputs=[other, *read.outputs[1:]])
        for refused in open_postprocess_stage(settings)(decode_encoding_pack(encode_pack(forged))):
            assert str(refused).startswith("bad_pack: 0 tokens, of")
        encode.close()


@pytest.mark.parametrize("kind", ["openvino", "tensorrt"])
def test_every_engine_fills_them_alike(bert: Path, tmp_path: Path, gpu: FakeGpu, kind: str) -> None:
    texts = [f"the [MASK] of {'peace ' * count}and [MASK]" for count in range(12)]
    samples = tmp_path / "samples.txt"
    samples.write_text("peace and war\n" * 20)
    of_gpu = {"plan_cache": str(tmp_path / "plans"), "precision": "fp32", "sample_texts": str(samples)}
    engine = {"kind": kind} | (of_gpu if kind == "tensorrt" else {})
    short = {"tokenizer": {"max_length": 32}, "batching": {"row_length": 32, "max_batch_tokens": 128}}
    wanted = answered(settings_of(bert, **short), texts)
    found = answered(settings_of(bert, engine=engine, **short), texts)
    for ours, right in zip(found, wanted, strict=True):
        for answers, expected in zip(ours, right, strict=True):
            assert [each["sequence"] for each in answers] == [each["sequence"] for each in expected]
            np.testing.assert_allclose(
                [each["score"] for each in answers], [each["score"] for each in expected], atol=1e-5
            )


def test_whose_task_it_is(bert: Path, tmp_path: Path) -> None:
    def task(**options: Any) -> str:
        settings = settings_of(bert, model=options)
        return task_of(settings, 0, model_config(settings, 0))

    assert task() == "fill-mask"
    assert task(pooling="mean") == "sentence-embedding"
    assert task(truncate_dim=3) == "sentence-embedding"
    (tmp_path / "model.onnx").touch()
    assert task(onnx=str(tmp_path / "model.onnx")) == "sentence-embedding"
    # What sentence-transformers saves, of an encoder that was a masked language model's.
    (bert / "modules.json").write_text("[]")
    assert task() == "sentence-embedding"


def test_a_file_of_ones_own_answers_states_for_the_checkpoints_head(bert: Path, tmp_path: Path) -> None:
    """The head is the checkpoint's; an export with its own, whose logits are as wide as the vocabulary, is refused."""
    config = json.loads((bert / "config.json").read_text())
    path = exported(tmp_path / "model.onnx", vocab=config["vocab_size"])
    with pytest.raises(UserError, match=r"is 6 wide, and fill-mask wants hidden states of 24 .*without its head"):
        Ensemble(settings_of(bert, model={"onnx": str(path), "task": "fill-mask"}))
    weights = load_file(bert / "model.safetensors")
    cut = {
        "cls.predictions.transform.dense.weight": (slice(None, WIDTH), slice(None, WIDTH)),
        "bert.embeddings.word_embeddings.weight": (slice(None), slice(None, WIDTH)),
    }
    for name, tensor in weights.items():
        if name in cut:
            weights[name] = np.ascontiguousarray(tensor[cut[name]])
        elif name.startswith("cls.predictions.transform"):
            weights[name] = tensor[:WIDTH].copy()
    save_file(weights, bert / "model.safetensors")
    (bert / "config.json").write_text(json.dumps(config | {"hidden_size": WIDTH}))
    [answer] = answered(settings_of(bert, model={"onnx": str(path), "task": "fill-mask"}), ["the [MASK] of peace"])
    assert len(answer) == 5


class OwnTokenizer:
    def __call__(self, texts: list[str]) -> list[list[int]]:
        return [[4] for _ in texts]

    def offsets(self, texts: list[str]) -> list[list[tuple[int, int]]]:
        return [[(0, 1)] for _ in texts]


OPENED = [open_tokenize_stage, open_encode_stage, open_postprocess_stage]


@pytest.mark.parametrize("opened", OPENED)
def test_a_tokenizer_of_ones_own_is_refused(bert: Path, opened: Any) -> None:
    settings = settings_of(bert, tokenizer={"class": f"{__name__}:OwnTokenizer"}, model={"task": "fill-mask"})
    with pytest.raises(UserError, match=r"tokenizer\.class: .*:OwnTokenizer is not for fill-mask, which writes texts"):
        opened(settings)


@pytest.mark.parametrize("opened", OPENED)
def test_a_tokenizer_without_a_mask_is_told(bert: Path, opened: Any) -> None:
    about = json.loads((bert / "tokenizer_config.json").read_text())
    del about["mask_token"]
    (bert / "tokenizer_config.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="this tokenizer has no mask token, which fill-mask is about"):
        opened(settings_of(bert))
