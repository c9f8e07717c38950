"""Numbers that bound a server."""

import pytest

from lightvlm_fx.errors import InputError
from lightvlm_fx.serving import rate
from lightvlm_fx.serving.gate import Gate
from lightvlm_fx.serving.limits import Limits
from lightvlm_fx.serving.problems import Refusal


def test_an_address_has_its_share_a_minute_and_no_other_pays_for_it():
    share = rate.Rate(60)
    for _ in range(60):
        share.take("a", now=0)
    with pytest.raises(Refusal, match="more than 60 requests a minute; try again in 1 s") as caught:
        share.take("a", now=0)
    assert (caught.value.status, caught.value.headers()) == (429, {"retry-after": "1"})
    share.take("b", now=0)
    share.take("a", now=1.01)
    with pytest.raises(Refusal):
        share.take("a", now=1.02)


def test_addresses_are_forgotten(monkeypatch):
    monkeypatch.setattr(rate, "MOST", 10)
    share = rate.Rate(1)
    for number in range(100):
        share.take(f"a{number}", now=number * 10)
        assert len(share._left) <= 10
    for number in range(100):  # all at once, so that none has its share again
        share.take(f"b{number}", now=2000)
        assert len(share._left) <= 10


def test_no_limit():
    share = rate.Rate(0)
    for _ in range(1000):
        share.take("a")


def test_a_gate_takes_so_many_and_a_place_is_given_back_once():
    gate = Gate(2)
    first, _ = gate.enter(), gate.enter()
    with pytest.raises(Refusal, match="2 requests are being answered or wait") as caught:
        gate.enter()
    assert caught.value.status == 503
    first.leave()
    first.leave()
    assert gate.inside == 1
    gate.enter()


@pytest.mark.parametrize(("name", "value"), [("tokens", 0), ("seconds", -1), ("queue", -1), ("picture_bytes", 0)])
def test_refuses_limits_that_let_nothing_through(name, value):
    with pytest.raises(InputError, match=f"the limit {name} must be above 0, got {value}"):
        Limits(**{name: value})
