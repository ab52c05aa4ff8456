"""Task spaces: parameters, the unit cube, families of types, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from azjax.config import ConfigError
from azjax.selfplay import BODIES, Parameter, Proposal, TaskFamily, TaskSpace, task_family

GOAL = TaskSpace({"distance": Parameter(1.0, 5.0, 2.0), "gears": Parameter(-1, 2, 0, "integer")})
GRIP = TaskSpace({"friction": Parameter(0.25, 4.0, 1.0, "log")})
FAMILY = TaskFamily({"goal": GOAL, "grip": GRIP})


def proposal(type_: Any, cube: Any) -> Proposal:
    return Proposal(jnp.asarray(type_, jnp.int32), jnp.asarray(cube, jnp.float32))


# ---------------------------------------------------------------------------------------------------------------------
# One space
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameter", "values"),
    [
        (Parameter(1.0, 5.0, 0.0), [1.0, 2.0, 3.0, 5.0]),
        (Parameter(0.25, 4.0, 1.0, "log"), [0.25, 0.5, 1.0, 4.0]),
        (Parameter(-1, 2, 0, "integer"), [-1, 0, 1, 2]),
    ],
)
def test_a_parameter_fills_the_unit_interval_with_its_values(parameter, values):
    decoded = parameter.decode(jnp.array([0.0, 0.25, 0.5, 1.0]))
    np.testing.assert_allclose(decoded, values, rtol=1e-6)
    assert parameter.contains(decoded).all()
    assert decoded.dtype == (jnp.int32 if parameter.kind == "integer" else jnp.float32)


def test_an_integer_is_encoded_at_the_centre_of_its_cell():
    np.testing.assert_allclose(Parameter(-1, 2, 0, "integer").encode(jnp.arange(-1, 3)), [0.125, 0.375, 0.625, 0.875])


@settings(deadline=None, max_examples=50)
@given(
    low=st.floats(-50.0, 50.0),
    width=st.floats(0.5, 100.0),
    u=st.floats(0.0, 1.0, width=32),
    kind=st.sampled_from(["linear", "log", "integer"]),
)
def test_decoding_and_encoding_undo_each_other(low, width, u, kind):
    low = {"linear": low, "log": abs(low) + 0.1, "integer": math.floor(low)}[kind]
    high = low + (math.ceil(width) if kind == "integer" else width)
    parameter = Parameter(low, high, low, kind)
    parameter.validate("x")
    value = parameter.decode(jnp.float32(u))
    assert parameter.contains(value)
    assert 0.0 - 1e-4 <= float(parameter.encode(value)) <= 1.0 + 1e-4
    if kind == "integer":
        assert int(parameter.decode(parameter.encode(value))) == int(value)
    else:
        assert float(parameter.encode(value)) == pytest.approx(u, abs=1e-3)


def test_a_space_names_its_values_and_goes_back():
    cube = jnp.array([[0.0, 0.1], [0.5, 0.9]])
    values = GOAL.decode(cube)
    np.testing.assert_allclose(values["distance"], [1.0, 3.0])
    np.testing.assert_array_equal(values["gears"], [-1, 2])
    np.testing.assert_allclose(GOAL.encode(values), [[0.0, 0.125], [0.5, 0.875]])


def test_a_grid_has_the_centre_of_every_cell_once():
    grid = np.asarray(GOAL.grid(2))
    np.testing.assert_allclose(grid, [[0.25, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.75]])
    assert GRIP.grid(3).shape == (3, 1)


# ---------------------------------------------------------------------------------------------------------------------
# A family
# ---------------------------------------------------------------------------------------------------------------------


def test_a_task_has_its_own_values_and_the_neutral_ones_of_the_others():
    task = FAMILY.decode(proposal([0, 1], [[0.5, 0.1], [1.0, 0.1]]), run=7)
    np.testing.assert_array_equal(task.type, [0, 1])
    np.testing.assert_allclose(task.values["distance"], [3.0, 2.0])
    np.testing.assert_allclose(task.values["gears"], [-1.0, 0.0])
    np.testing.assert_allclose(task.values["friction"], [1.0, 4.0], rtol=1e-6)
    np.testing.assert_array_equal(task.run, [7, 7])
    assert {x.dtype for x in task.values.values()} == {jnp.dtype(jnp.float32)}


def test_a_family_goes_back_to_proposals():
    original = proposal([0, 1, 0], [[0.5, 0.125], [0.75, 0.0], [0.2, 0.875]])
    encoded = jax.jit(lambda p: FAMILY.encode(FAMILY.decode(p)))(original)
    np.testing.assert_array_equal(encoded.type, original.type)
    np.testing.assert_allclose(encoded.cube, original.cube, atol=1e-6)


@pytest.mark.parametrize(
    ("type_", "cube", "inside"),
    [
        (0, [0.0, 1.0], True),
        (0, [-0.01, 0.5], False),
        (0, [0.5, 1.01], False),
        (0, [0.5, math.nan], False),
        (0, [math.inf, 0.5], False),
        (1, [0.5, math.nan], True),  # the second axis isn't one of this type's
        (1, [math.nan, 0.5], False),
        (2, [0.5, 0.5], False),
        (-1, [0.5, 0.5], False),
    ],
)
def test_what_is_inside(type_, cube, inside):
    assert bool(FAMILY.contains(proposal(type_, cube))) is inside


def test_uniform_proposals_are_inside_and_fill_types_and_cube():
    drawn = FAMILY.sample(jax.random.key(0), (4000,))
    assert FAMILY.contains(drawn).all()
    assert abs(float(drawn.type.mean()) - 0.5) < 0.05
    cube, goals = np.asarray(drawn.cube), np.asarray(drawn.type) == 0
    for own in (cube[goals], cube[~goals, :1]):
        assert np.abs(own.mean(0) - 0.5).max() < 0.03
        assert np.abs(own.std(0) - 12**-0.5).max() < 0.03
    assert abs(np.corrcoef(cube[goals].T)[0, 1]) < 0.06
    assert (cube[~goals, 1] == 0.0).all()  # grips have one axis
    assert FAMILY.sample(jax.random.key(0)).cube.shape == (2,)


def test_fewer_types_keep_the_parameters_of_the_rest_neutral():
    only = FAMILY.only(("grip",))
    assert (only.types, only.size) == (("grip",), 1)
    task = only.decode(proposal(0, [0.0]))
    assert {name: float(x) for name, x in task.values.items()} == pytest.approx(
        {"friction": 0.25, "distance": 2.0, "gears": 0.0}
    )


@pytest.mark.parametrize("body", sorted(BODIES))
def test_the_families_of_the_bodies_make_sense(body):
    family = task_family(body)
    family.validate()
    assert family.types == ("goal", "command", "disturbance")

    @jax.jit
    def there_and_back(key: jax.Array) -> Any:
        drawn = family.sample(key, (64,))
        return drawn.cube, family.encode(family.decode(drawn)).cube, family.contains(drawn)

    drawn, back, inside = there_and_back(jax.random.key(1))
    assert inside.all()
    np.testing.assert_allclose(back, drawn, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# What is refused
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        (Parameter(2.0, 1.0, 1.0), "x goes from 2.0 to 1.0; low must be less than high"),
        (Parameter(1.0, 1.0, 1.0), "x goes from 1.0 to 1.0; low must be less than high"),
        (Parameter(math.nan, 1.0, 1.0), "low of task parameter x is nan"),
        (Parameter(0.0, math.inf, 1.0), "high of task parameter x is inf"),
        (Parameter(0.0, 1.0, math.nan), "neutral of task parameter x is nan"),
        (Parameter(0.0, 1.0, 1.0, "log"), "low of task parameter x is 0.0; the kind log needs"),
        (Parameter(0.5, 4, 1, "integer"), "low of task parameter x is 0.5; the kind integer needs a whole number"),
        (Parameter(0, 1, 1, "intger"), "no kind 'intger'; did you mean 'integer'?"),  # type: ignore[arg-type]
    ],
)
def test_bounds_that_make_no_sense_are_one_clear_line(parameter, message):
    with pytest.raises(ConfigError) as error:
        TaskFamily({"goal": TaskSpace({"x": parameter})}).validate()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (TaskFamily({}), "no types of task"),
        (TaskFamily({"goal": TaskSpace({})}), "no parameters"),
        (
            TaskFamily({"a": TaskSpace({"x": Parameter(0, 1, 0)}), "b": TaskSpace({"x": Parameter(0, 1, 1)})}),
            "task parameter x is neutral at 1 and at 0",
        ),
    ],
)
def test_families_that_make_no_sense_are_refused(family, message):
    with pytest.raises(ConfigError, match=message):
        family.validate()


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown type of task 'goals'; did you mean 'goal'\?"):
        task_family("ant", ("goals",))
    with pytest.raises(ConfigError, match="repeat one"):
        task_family("ant", ("goal", "goal"))
    with pytest.raises(ConfigError, match="no tasks for 'ants'; did you mean 'ant'"):
        task_family("ants")
