import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightvlm_fx.errors import InputError, ScheduleError
from lightvlm_fx.model.layout import Layout, Placeholders
from lightvlm_fx.ops.segments import PADDING, TEXT
from lightvlm_fx.schedule import Cut, Schedule

P, T, BREAK, END = 7, 1, 8, 9  # a picture's placeholder, some text, a row break, an end marker
VIDEO = 6


def layout(*rows, per_image=None, ends_last_row=None):
    """Layout of rows of ids, padded on the left with zeros."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return Layout.of(ids, mask, Placeholders((VIDEO, P), per_image, ends_last_row))


def half(**options):
    return Schedule(cuts=[Cut(layer=1, keep=0.5, **options)])


def test_numbers_the_pictures_of_each_row():
    made = layout([T, P, P, T, P, T], [P, P, P, T])
    assert made.segment.tolist() == [[TEXT, 0, 0, TEXT, 1, TEXT], [PADDING, PADDING, 0, 0, 0, TEXT]]
    assert made.images == ((2, 1), (3,))
    assert made.has_images


def test_without_a_mask_nothing_is_padding():
    made = Layout.of(torch.tensor([[0, P, T]]), None, Placeholders((P,)))
    assert made.segment.tolist() == [[TEXT, 0, TEXT]]


def test_text_alone_has_no_pictures():
    made = layout([T, T], [T])
    assert not made.has_images
    assert made.images == ((), ())


def test_a_picture_and_a_video_side_by_side_are_two():
    assert layout([T, P, P, VIDEO, VIDEO, VIDEO, T]).images == ((2, 3),)


def test_pictures_side_by_side_are_told_apart_by_their_fixed_length():
    row = [T, *[P] * 8, T]
    assert layout(row, per_image=4).images == ((4, 4),)
    assert layout(row, per_image=4).segment.tolist() == [[TEXT, 0, 0, 0, 0, 1, 1, 1, 1, TEXT]]
    assert layout(row, per_image=8).images == ((8,),)
    assert layout(row).images == ((8,),)


def test_a_run_that_is_no_multiple_of_the_fixed_length_is_one_picture():
    assert layout([T, *[P] * 6, T], per_image=4).images == ((6,),)


def test_rows_with_breaks_are_one_picture():
    rows = [P, P, BREAK, P, P, BREAK, P, P, END]
    assert layout([T, *rows, T], ends_last_row=True).images == ((6,),)
    assert layout([T, *rows, T]).images == ((2, 2, 2),)
    assert layout([T, *rows, T, *rows, T], ends_last_row=True).images == ((6, 6),)


def test_the_token_after_the_last_row_ends_a_picture():
    one, two = [P, P, END], [P, BREAK, P, END]
    assert layout([T, *one, *one, T], ends_last_row=True).images == ((2, 2),)
    assert layout([T, *two, *one, *two, T], ends_last_row=True).images == ((2, 2, 2),)
    assert layout([T, P, BREAK, P], ends_last_row=True).images == ((2,),)  # cut off before its end


def test_without_a_token_of_its_own_the_last_row_ends_where_other_text_begins():
    rows = [P, P, BREAK, P, P, BREAK]
    assert layout([T, *rows, T, *rows, T], ends_last_row=False).images == ((4, 4),)


def test_breaks_stay_as_text():
    made = layout([T, P, BREAK, P, END, T], ends_last_row=True)
    assert made.segment.tolist() == [[TEXT, 0, TEXT, 0, TEXT, TEXT]]


def test_refuses_padding_on_the_right_and_names_the_rows():
    ids = torch.tensor([[T, P, T], [P, T, 0], [T, T, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 0]])
    with pytest.raises(
        InputError, match=r"rows \[1, 2\] of the batch are padded on the right; pad on the left"
    ):
        Layout.of(ids, mask, Placeholders((P,)))


def test_a_plan_budgets_every_picture():
    plan = layout([T, *[P] * 8, T, *[P] * 4, T], [T, *[P] * 4, T]).plan(half())
    assert [b.tolist() for b in plan.budgets] == [[[4, 2, 0, 0], [2, 0, 0, 0]]]


def test_a_row_loses_what_the_longest_row_can_spare():
    """Row 0 keeps 3 text and 6 visual tokens of 15, so every row goes from 15 to 9, whatever it holds."""
    plan = layout([T, *[P] * 8, T, *[P] * 4, T], [T, *[P] * 4, T]).plan(half())
    assert (plan.length, plan.stay) == (15, (9,))
    assert plan.masked


def test_even_rows_need_no_mask():
    assert not layout([T, *[P] * 8, T]).plan(half()).masked
    assert not layout([T, *[P] * 8, T], [*[P] * 8, T, T]).plan(half()).masked
    assert layout([T, *[P] * 8, T], [*[P] * 8, T]).plan(half()).masked  # padded
    assert (
        layout([T, *[P] * 8, T, T], [T, *[P] * 4, *[T] * 6][:11]).plan(half()).masked
    )  # as long, but keeps more


def test_many_pictures_widen_the_budgets_to_a_power_of_two():
    plan = layout([T, *[P, T] * 5]).plan(half())
    assert plan.budgets[0].shape == (1, 8)
    assert layout([T, T]).plan(half()).budgets[0].shape == (1, 4)


def test_a_count_above_a_picture_is_refused():
    with pytest.raises(ScheduleError, match="keep=5 is above the 4 visual tokens of an image"):
        layout([T, *[P] * 8, T, *[P] * 4, T]).plan(Schedule(cuts=[Cut(layer=1, keep=5)]))


row = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 9)), max_size=3)


@given(st.lists(row, min_size=1, max_size=3), st.floats(0.01, 1))
def test_every_row_fits_after_every_cut(rows, keep):
    """Counts per layer equal the schedule: the longest row is full, budgets are the schedule's."""
    made = layout(*[[x for text, n in parts for x in [T] * text + [P] * n] + [T] for parts in rows])
    schedule = Schedule.preset("uniform", keep=keep, layers=(1, 2, 3))
    plan, length = made.plan(schedule), made.segment.shape[1]
    for cut in range(3):
        length = plan.stay[cut]
        survivors = []
        for b, images in enumerate(made.images):
            wanted = [schedule.budgets(n)[cut] for n in images]
            assert plan.budgets[cut][b, : len(images)].tolist() == wanted
            survivors.append(int((made.segment[b] == TEXT).sum()) + sum(wanted))
        assert max(survivors) == length
        assert plan.masked or len(set(survivors)) == 1
