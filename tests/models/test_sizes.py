"""What is no size is told from what is one."""

import types

import jax
import pytest

from sora_jax.models.sizes import abstract_params, check_positive, is_counts


def test_only_the_named_fields_are_checked():
    sizes = types.SimpleNamespace(width=1, depth=0)
    check_positive(sizes, "width")
    with pytest.raises(ValueError, match=r"SimpleNamespace.depth is 0; it must be at least 1"):
        check_positive(sizes, "width", "depth")


@pytest.mark.parametrize("value", [1.5, 2.0, True, "2", None, 2**31])
def test_a_size_is_a_whole_number(value):
    with pytest.raises(ValueError, match=f"SimpleNamespace.width is {value!r}; it must be at"):
        check_positive(types.SimpleNamespace(width=value), "width")


@pytest.mark.parametrize("value", [1, [1, 2], (1, 0), (1, 2.0), (1, True), ((1,), 2), "12"])
def test_what_is_no_tuple_of_counts(value):
    assert not is_counts(value)


def test_what_is_a_tuple_of_counts():
    assert is_counts((1, 2, 3)) and is_counts(())


def test_shapes_are_the_caller_s_to_change():
    def init(width, key):
        return {"layer": {"kernel": jax.random.normal(key, (width, 3))}}

    abstract_params(init, 2)["layer"].clear()
    assert abstract_params(init, 2)["layer"]["kernel"].shape == (2, 3)
    assert abstract_params(init, 4)["layer"]["kernel"].shape == (4, 3)
