"""Which form an answer takes: quality values, wildcards, parameters, custom attributes."""

from __future__ import annotations

import pytest

from pspnet.serving.protocol.accept import FORMS, AnswerForm, choose_answer
from pspnet.serving.protocol.request_error import RequestError

PNG = ("image/png", "mask")
JSON = ("application/json", "summary")
OVERLAY = ("image/jpeg", "overlay")
PALETTE = ("image/png", "palette")
PROTOBUF = ("application/x-protobuf", "probabilities")


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, PNG), ("", PNG), ("  ", PNG), (",,", PNG), (";;", PNG),
        ("*/*", PNG), ("image/*;q=0.8", PNG), ("image/png", PNG), ("Image/PNG ; Q=1.0", PNG),
        ("image/jpeg", OVERLAY), ("image/jpg", OVERLAY), ("Application/JSON", JSON), ("application/*", JSON),
        ("application/json; charset=utf-8", JSON),
        ("application/x-protobuf", PROTOBUF),
        ("application/x-recordio-protobuf", ("application/x-recordio-protobuf", "probabilities")),
        ("application/x-npy", ("application/x-npy", "mask")),
        ("application/x-npz", ("application/x-npz", "mask")),
        # a browser's
        ("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8", PNG),
        # the highest quality wins, wherever it stands
        ("image/png;q=0.5, application/json;q=0.9", JSON),
        ("text/html, application/json;q=0.9, */*;q=0.1", JSON),
        ("application/json;q=0.9, */*", PNG),
        ("application/json;q=0.001, text/html", JSON),
        # the most specific range says the quality of a form
        ("image/*;q=0.9, image/png;q=0.1", OVERLAY),
        ("*/*, image/png;q=0.2", JSON),
        # between equals: the more specific, then the earlier
        ("*/*, application/json", JSON), ("application/json, image/png", JSON), ("image/png, application/json", PNG),
        # what is refused
        ("image/png;q=0, */*", JSON), ("image/*;q=0, */*", JSON), ("image/png;q=0, image/*", OVERLAY),
        ("image/png;q=0.0, application/json;q=0.000, image/*;q=0.5", OVERLAY),
        ("image/png;q=2, application/json", JSON), ("image/png;q=-1, image/jpeg", OVERLAY),
        ("image/png;q=, image/jpeg", OVERLAY), ("image/png;q=0.1234, image/jpeg;q=0.1", OVERLAY),
        # parameters
        ("image/png;palette=true", PALETTE), ('image/png; palette="TRUE"; q=0.3', PALETTE),
        ("image/png; palette=false", PNG), ("image/png;palette=true, image/png;q=0.5", PALETTE),
        ("image/png;palette=true;q=0.5, image/png", PNG), ("image/png;q=0, image/png;palette=true", PALETTE),
    ],
)  # fmt: skip
def test_the_answer_follows_the_accept_header(accept: str | None, expected: tuple[str, str]) -> None:
    form = choose_answer(accept)
    assert (form.media_type, form.kind) == expected


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("media_type", ["application/x-npy", "application/x-npz"])
def test_probabilities_in_arrays_name_their_type(media_type: str, dtype: str) -> None:
    form = choose_answer(f"{media_type}; probabilities={dtype}")
    assert form == AnswerForm(media_type, "probabilities", dtype)
    assert form.needs_probabilities


@pytest.mark.parametrize(
    "accept",
    ["text/html", "image/webp", "*/*;q=0", "image/png;q=0", "image/png;q=high", "application/x-npy;probabilities=int8",
     "image/png;palette=maybe", "image/jpeg;palette=true", "image", "/", "*", "*/png", "image/png/x", "\x00"],
)  # fmt: skip
def test_an_answer_that_is_not_offered(accept: str) -> None:
    with pytest.raises(RequestError) as caught:
        choose_answer(accept)
    assert caught.value.status == 406
    assert str(caught.value).startswith(
        f"The answer cannot be {accept!r}; accept image/png, image/jpeg, application/js"
    )


def test_a_long_header_is_cut_in_the_sentence() -> None:
    with pytest.raises(RequestError) as caught:
        choose_answer("text/x;" * 10_000)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("accept", "attributes", "expected"),
    [
        (None, "answer=mask", PNG), (None, "answer=palette", PALETTE), ("*/*", "answer=overlay", OVERLAY),
        ("", "answer=summary", JSON), (None, "answer=probabilities", PROTOBUF),
        ("image/png", "answer=palette", PALETTE), ("image/*", "trace=7, ANSWER=Palette", PALETTE),
        ("application/*", "answer=mask", ("application/x-npy", "mask")),
        ("application/x-npy", "answer=probabilities", ("application/x-npy", "probabilities")),
        ("image/png;palette=true", "answer=palette", PALETTE),
        (None, "", PNG), (None, "c000b4f9-df62-4c85-a0bf-7c525f9104a4", PNG), ("image/jpeg", "x=answer;y", OVERLAY),
    ],
)  # fmt: skip
def test_a_custom_attribute_narrows_the_choice(accept: str | None, attributes: str, expected: tuple[str, str]) -> None:
    form = choose_answer(accept, attributes)
    assert (form.media_type, form.kind) == expected


def test_a_type_of_probabilities_goes_with_the_attribute() -> None:
    form = choose_answer("application/x-npz;probabilities=uint8", "answer=probabilities")
    assert (form.media_type, form.dtype) == ("application/x-npz", "uint8")


def test_attributes_that_fit_nothing() -> None:
    with pytest.raises(RequestError, match=r"'image/png' with answer=overlay; accept") as caught:
        choose_answer("image/png", "answer=overlay")
    assert caught.value.status == 406
    with pytest.raises(
        RequestError, match=r"answer='video' is none of mask, palette, overlay, summary, prob"
    ) as caught:
        choose_answer(None, "answer=video")
    assert caught.value.status == 400


def test_every_form_can_be_asked_for() -> None:
    for form in FORMS:
        parameter = {"palette": ";palette=true"}.get(form.kind, "")
        if form.kind == "probabilities" and "x-np" in form.media_type:
            parameter = f";probabilities={form.dtype}"
        assert choose_answer(form.media_type + parameter) == form
    assert len(set(FORMS)) == len(FORMS)
