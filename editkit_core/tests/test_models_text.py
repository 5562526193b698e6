"""Token spans, prompt and target, and padding, on byte-level BPE and Unigram tokenizers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PythonBackend

from editkit_core.errors import (
    EmptyTargetError,
    InvalidRequestError,
    SubjectNotInPromptError,
    TokenizerWithoutOffsetsError,
)
from editkit_core.models.text import (
    Encoded,
    TokenSpan,
    encode,
    encode_pair,
    join,
    pad_batch,
    position,
    token_span,
)
from editkit_core.testing import TINY_FAMILIES, tiny_model, tiny_tokenizer
from editkit_core.types import EditRequest

STYLES = {
    "bpe": {"kind": "bpe"},
    "bpe-bos": {"kind": "bpe", "bos": True},
    "bpe-prefix-space": {"kind": "bpe", "prefix_space": True},
    "bpe-bos-prefix-space": {"kind": "bpe", "bos": True, "prefix_space": True},
    "unigram": {"kind": "unigram", "bos": False},
    "unigram-bos": {"kind": "unigram"},
    "unigram-bos-no-prefix-space": {"kind": "unigram", "prefix_space": False},
    "bpe-bos-eos": {"kind": "bpe", "bos": True, "eos": True},
}
TOKENIZERS = {name: tiny_tokenizer(**style) for name, style in STYLES.items()}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]


def spelled(tokenizer, encoded, span):
    return tokenizer.decode(encoded.ids[span.start : span.end]).strip()


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("The capital of Norway is", "Norway"),
        ("Marie Curie was born in", "Marie Curie"),
        ("In Tromsø one speaks", "Tromsø"),
        ("What does one call a mill", "mill"),
        ("The founder of {} was", "the old mill, Paris"),
        ("“{}” was painted by", "Zebra quail"),
        ("The capital of {}'s country is", "Oslo"),
        ("(see {})", "Peru"),
        ("Line one\nThe mother of {} is", "Ada"),
        ("  {} works in", "Beethoven"),
    ],
)
def test_the_subjects_tokens_spell_the_subject(tokenizer, prompt, subject):
    request = EditRequest(prompt=prompt, subject=subject, target_new="x")
    encoded = encode(tokenizer, request.text)
    span = token_span(encoded, *request.subject_span)
    assert spelled(tokenizer, encoded, span) == subject


def test_of_a_subject_that_occurs_twice_the_asked_one_is_found(tokenizer):
    text = "Norway is Norway and the capital of Norway is"
    encoded = encode(tokenizer, text)
    starts = [0, 10, 36]
    spans = [token_span(encoded, start, start + 6) for start in starts]
    assert [spelled(tokenizer, encoded, span) for span in spans] == ["Norway"] * 3
    assert spans[0].end <= spans[1].start < spans[1].end <= spans[2].start
    request = EditRequest(prompt=text, subject="Norway", target_new="x")
    last = position(encoded, request.subject_span, "subject_last")
    assert last == spans[2].end - 1


def test_a_subject_at_the_start_begins_after_bos(tokenizer):
    encoded = encode(tokenizer, "Peru is")
    has_bos = encoded.ids[0] == tokenizer.bos_token_id
    assert token_span(encoded, 0, 4).start == int(has_bos)


def test_positions_are_those_of_the_specification(tokenizer):
    encoded = encode(tokenizer, "The capital of Norway is")
    span = token_span(encoded, 15, 21)
    chars = (15, 21)
    assert position(encoded, chars, "subject_first") == span.start
    assert position(encoded, chars, "subject_last") == span.end - 1
    assert position(encoded, chars, "subject_first_after_last") == span.end
    assert position(encoded, chars, "last") == len(encoded) - 1


def test_after_a_subject_at_the_end_comes_the_last_token(tokenizer):
    encoded = encode(tokenizer, "The capital of Norway")
    last = len(encoded) - 1
    assert position(encoded, (15, 21), "subject_first_after_last") == last
    assert position(encoded, (15, 21), "subject_last") == last


def test_bos_is_kept_and_eos_is_not():
    for name, tokenizer in TOKENIZERS.items():
        ids = encode(tokenizer, "Peru").ids
        assert (ids[0] == tokenizer.bos_token_id) == ("bos" in name)
        assert tokenizer.eos_token_id not in ids


def test_an_empty_text_is_bos_or_nothing():
    for name, tokenizer in TOKENIZERS.items():
        expected = (tokenizer.bos_token_id,) if "bos" in name else ()
        assert encode(tokenizer, "").ids == expected


def test_an_eos_the_text_itself_ends_in_is_kept():
    tokenizer = TOKENIZERS["bpe-bos-eos"]
    assert encode(tokenizer, "Peru</s>").ids[-1] == tokenizer.eos_token_id


def test_join_puts_one_space_unless_there_is_white_space():
    assert join("The capital is", "Oslo") == "The capital is Oslo"
    assert join("The capital is ", "Oslo") == "The capital is Oslo"
    assert join("Answer:\n", "Oslo") == "Answer:\nOslo"
    assert join("", "Oslo") == "Oslo"
    assert join("The capital is", " Oslo") == "The capital is Oslo"


@pytest.mark.parametrize("target", ["Oslo", "Portuguese", "the river Rhône, in winter", "x"])
def test_prompt_and_target_ids_spell_prompt_and_target(tokenizer, target):
    pair = encode_pair(tokenizer, "The capital of Norway is", target)
    assert pair.prompt_ids == encode(tokenizer, "The capital of Norway is").ids
    assert pair.prompt_ids + pair.target_ids == pair.ids
    whole = encode(tokenizer, f"The capital of Norway is {target}")
    assert pair.ids == whole.ids
    assert pair.encoded == whole


def test_a_target_can_have_several_tokens(tokenizer):
    assert len(encode_pair(tokenizer, "They speak", "the river Rhône").target_ids) > 3


def test_a_space_at_the_prompts_end_goes_to_the_target(tokenizer):
    without = encode_pair(tokenizer, "The capital of Norway is", "of")
    with_space = encode_pair(tokenizer, "The capital of Norway is ", "of")
    assert with_space == without
    assert len(without.target_ids) == 1  # " of" is one token of all these tokenizers


def test_the_last_position_of_a_pair_is_the_prompts(tokenizer):
    pair = encode_pair(tokenizer, "The capital of Norway is ", "Oslo")
    assert pair.position((15, 21), "last") == pair.n_prompt - 1
    pair = encode_pair(tokenizer, "The capital of Norway", "Oslo")
    assert pair.position((15, 21), "subject_first_after_last") == pair.n_prompt - 1
    assert pair.position((15, 21), "subject_last") == pair.n_prompt - 1


@pytest.mark.parametrize("target", ["", "  ", "\n"])
def test_an_empty_target_is_refused(tokenizer, target):
    with pytest.raises(EmptyTargetError, match="empty"):
        encode_pair(tokenizer, "The capital of Norway is", target)


def test_a_target_the_tokenizer_drops_is_refused():
    tokenizer = tiny_tokenizer("unigram")
    from tokenizers import normalizers

    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("¤", "")
    with pytest.raises(EmptyTargetError, match="no token of its own"):
        encode_pair(tokenizer, "The capital is ", "¤")


def test_a_target_with_nothing_before_it_is_refused():
    with pytest.raises(InvalidRequestError, match="longer prompt"):
        encode_pair(TOKENIZERS["bpe"], "", "Oslo")
    assert encode_pair(TOKENIZERS["bpe-bos"], "", "Oslo").n_prompt == 1


def test_characters_without_a_token_are_refused():
    encoded = encode(TOKENIZERS["bpe"], "of  Norway")
    with pytest.raises(SubjectNotInPromptError, match="No token stands for"):
        token_span(encoded, 2, 4)


def test_white_space_at_a_tokens_start_does_not_count():
    encoded = Encoded(ids=(5, 6, 7), offsets=((0, 3), (3, 8), (8, 9)), text="The  mill ")
    assert token_span(encoded, 0, 4) == TokenSpan(0, 1)
    assert token_span(encoded, 4, 6) == TokenSpan(1, 2)


class SlowTokenizer(PythonBackend):
    vocab_files_names = {}  # noqa: RUF012 - as the base class has it

    @property
    def vocab_size(self):
        return 1

    def get_vocab(self):
        return {"a": 0}

    def _tokenize(self, text):
        return list(text)

    def _convert_token_to_id(self, token):
        return 0

    def _convert_id_to_token(self, index):
        return "a"


def test_a_tokenizer_without_offsets_is_refused_with_the_remedy():
    with pytest.raises(TokenizerWithoutOffsetsError, match=r"SlowTokenizer.*tokenizer\.json"):
        encode(SlowTokenizer(), "a a")


class WrongOffsets:
    """A fast tokenizer that reports each token as starting and ending at its first character."""

    is_fast = True

    def __init__(self, tokenizer, damage):
        self.tokenizer = tokenizer
        self.damage = damage

    def __call__(self, text, **options):
        out = self.tokenizer(text, **options)
        out["offset_mapping"] = self.damage(out["offset_mapping"])
        return out

    def decode(self, ids, **options):
        return self.tokenizer.decode(ids, **options)


DAMAGES = {
    "empty": lambda offsets: [(start, start) for start, _ in offsets],
    "all at zero": lambda offsets: [(0, 0) for _ in offsets],
    "backwards": lambda offsets: list(reversed(offsets)),
    "beyond": lambda offsets: [(start + 99, end + 99) for start, end in offsets],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_wrong_offsets_are_replaced_by_those_of_the_decoded_pieces(tokenizer, damage):
    text = "In Tromsø, Marie Curie saw Tromsø and a river"
    wrong = WrongOffsets(tokenizer, DAMAGES[damage])
    for start, end in ((3, 9), (11, 22), (27, 33), (40, 45)):
        right = token_span(encode(tokenizer, text), start, end)
        assert token_span(encode(wrong, text), start, end) == right


def test_wrong_offsets_that_cannot_be_mended_are_refused():
    wrong = WrongOffsets(TOKENIZERS["bpe"], DAMAGES["beyond"])
    wrong.decode = lambda ids, **options: "something else"
    with pytest.raises(TokenizerWithoutOffsetsError, match="contradict"):
        encode(wrong, "In Tromsø")


def test_a_character_the_normalizer_drops_does_not_spoil_the_other_offsets():
    tokenizer = tiny_tokenizer("unigram")
    from tokenizers import normalizers

    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("¤", "")
    encoded = encode(tokenizer, "The ¤ mill of Norway")
    assert spelled(tokenizer, encoded, token_span(encoded, 14, 20)) == "Norway"


WORDS = st.text(alphabet="abeorstNØ日é,.'-", min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(
    before=st.lists(WORDS, max_size=3),
    subject=st.lists(WORDS, min_size=1, max_size=2),
    after=st.lists(WORDS, max_size=3),
    style=st.sampled_from(sorted(TOKENIZERS)),
)
def test_a_span_runs_from_the_first_to_the_last_token_that_touches_the_subject(
    before, subject, after, style
):
    text = " ".join([*before, *subject, *after])
    start = len(" ".join([*before, ""]))
    end = start + len(" ".join(subject))
    encoded = encode(TOKENIZERS[style], text)
    touching = [
        index
        for index, (first, last) in enumerate(encoded.offsets)
        if last > first and text[max(first, start) : min(last, end)].strip()
    ]
    assert token_span(encoded, start, end) == TokenSpan(touching[0], touching[-1] + 1)


# -- padding --------------------------------------------------------------------------------------

TEXTS = ("The capital of Norway is", "Peru", "What language do people speak in Brazil? They")


def test_padding_goes_to_the_asked_side():
    batch = pad_batch([(5, 6, 7), (8,)], pad_id=0, side="left")
    assert batch.input_ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch.position_ids.tolist() == [[0, 1, 2], [0, 0, 0]]
    assert batch.pad == (0, 2)
    assert batch.index(1, 0) == 2
    batch = pad_batch([(5, 6, 7), (8,)], pad_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2], [0, 0, 0]]
    assert batch.index(1, 0) == 0


def test_a_row_without_tokens_is_refused():
    for rows in ([], [(1,), ()]):
        with pytest.raises(InvalidRequestError, match="row"):
            pad_batch(rows, pad_id=0)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_logits_are_the_same_alone_and_padded_on_either_side(family, kind):
    model = tiny_model(family, tokenizer=kind)
    rows = [model.encode(text).ids for text in TEXTS]
    left = pad_batch(rows, model.pad_id, "left")
    right = pad_batch(rows, model.pad_id, "right")
    left_logits, right_logits = model.logits(left), model.logits(right)
    for row, ids in enumerate(rows):
        alone = model.logits(pad_batch([ids], model.pad_id))[0]
        for where in range(len(ids)):
            from_left = left_logits[row, left.index(row, where)]
            from_right = right_logits[row, right.index(row, where)]
            assert torch.allclose(from_left, alone[where], atol=1e-4)
            assert torch.allclose(from_right, alone[where], atol=1e-4)
