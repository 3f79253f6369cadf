"""Early stopping over sequences of scores."""

from __future__ import annotations

from pspnet.training.optimization.early_stopping import EarlyStopping


def stop_epoch(rule: EarlyStopping, scores: list[float]) -> int | None:
    """The epoch, from 1, after which the rule ends training."""
    for epoch, score in enumerate(scores, start=1):
        if rule.should_stop(epoch, score):
            return epoch
    return None


def test_patience_counts_epochs_without_gain_in_a_row() -> None:
    scores = [0.1, 0.3, 0.2, 0.4, 0.3, 0.39, 0.38]
    assert stop_epoch(EarlyStopping(min_epochs=1, patience=1), scores) == 3
    assert stop_epoch(EarlyStopping(min_epochs=1, patience=2), scores) == 6
    assert stop_epoch(EarlyStopping(min_epochs=1, patience=3), scores) == 7
    assert stop_epoch(EarlyStopping(min_epochs=1, patience=4), scores) is None


def test_epochs_before_min_epochs_neither_stop_nor_count() -> None:
    falling = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]
    assert stop_epoch(EarlyStopping(min_epochs=1, patience=2), falling) == 3
    assert stop_epoch(EarlyStopping(min_epochs=5, patience=1), falling) == 5
    assert stop_epoch(EarlyStopping(min_epochs=5, patience=2), falling) == 6
    assert stop_epoch(EarlyStopping(min_epochs=8, patience=1), falling) is None


def test_a_gain_before_min_epochs_is_the_mark_to_beat() -> None:
    assert stop_epoch(EarlyStopping(min_epochs=3, patience=2), [0.1, 0.6, 0.5, 0.55, 0.7]) == 4


def test_tolerance_is_relative_to_the_best_that_counted() -> None:
    scores = [0.50, 0.54, 0.549, 0.56, 0.60, 0.61]
    # With 10 %: 0.54 and 0.549 are below 0.55, 0.56 is a gain, 0.60 and 0.61 are below 0.616.
    assert stop_epoch(EarlyStopping(min_epochs=1, patience=2, tolerance=0.1), scores) == 3
    assert stop_epoch(EarlyStopping(min_epochs=1, patience=3, tolerance=0.1), scores) is None
    assert stop_epoch(EarlyStopping(min_epochs=1, patience=3, tolerance=0.1), [*scores, 0.612]) == 7
    assert stop_epoch(EarlyStopping(min_epochs=1, patience=1, tolerance=0.0), scores) is None


def test_an_equal_score_is_no_gain() -> None:
    assert stop_epoch(EarlyStopping(min_epochs=1, patience=2), [0.0, 0.0, 0.0, 0.0]) == 3
    assert stop_epoch(EarlyStopping(min_epochs=1, patience=2, tolerance=0.5), [0.0, 1e-9, 0.0, 0.0]) == 4


def test_the_users_own_job_cannot_stop_before_its_last_epoch() -> None:
    assert stop_epoch(EarlyStopping(min_epochs=10, patience=2), [0.5] * 10) is None


def test_early_stopping_goes_on_after_a_resume() -> None:
    first = EarlyStopping(min_epochs=1, patience=2)
    assert not first.should_stop(1, 0.5)
    assert not first.should_stop(2, 0.4)
    resumed = EarlyStopping(min_epochs=1, patience=2)
    resumed.load_state_dict(first.state_dict())
    assert resumed.should_stop(3, 0.45)
    fresh = EarlyStopping()
    fresh.load_state_dict(EarlyStopping().state_dict())
    assert fresh.best is None
