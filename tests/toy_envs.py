"""Small environments whose truth is known, which compile in about a second.

Two families: those with Brax's interface, for the adapter, and those with azjax's own protocol.
"""

from __future__ import annotations

from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

import azjax

NEVER = 1_000_000


# ---------------------------------------------------------------------------------------------------------------------
# Brax's interface
# ---------------------------------------------------------------------------------------------------------------------


@flax.struct.dataclass
class ToyState:
    """Shaped like ``brax.envs.State``."""

    pipeline_state: Any
    obs: Any
    reward: jax.Array
    done: jax.Array
    metrics: dict[str, Any]
    info: dict[str, Any]


class BraxCounter:
    """Counts its steps: obs ``[count, tag]``, reward is the new count, the tag is drawn at the reset.

    Ends at step ``ends_at``; that end is a time limit of its own (``info["truncation"]``) if ``own_time_limit``. Like
    many Brax environments it writes into the dicts of the state that it is given, nested ones included, carries a typed
    key in ``info``, and resets to weakly typed zeros.
    """

    action_size = 2
    backend = "toy"
    dt = 0.5

    def __init__(self, ends_at: int = NEVER, own_time_limit: bool = False) -> None:
        self._ends_at = ends_at
        self._own_time_limit = own_time_limit

    def reset(self, rng: jax.Array) -> ToyState:
        rng, key_tag = jax.random.split(rng)
        tag = jax.random.uniform(key_tag)
        return ToyState(
            pipeline_state=jnp.zeros(()),
            obs=jnp.stack([jnp.zeros(()), tag]),
            reward=jnp.zeros(()),
            done=jnp.zeros(()),
            metrics={"steps": 0.0},
            info={"rng": rng, "nested": {"count": 0}, "truncation": jnp.zeros(())},
        )

    def step(self, state: ToyState, action: jax.Array) -> ToyState:
        count = state.pipeline_state + 1
        over = jnp.where(count >= self._ends_at, 1.0, 0.0)
        state.metrics["steps"] = state.metrics["steps"] + 1.0
        state.metrics["action"] = action.sum()
        state.metrics.pop("action")
        state.info["rng"] = jax.random.split(state.info["rng"])[0]
        state.info["nested"]["count"] = state.info["nested"]["count"] + 1
        state.info["truncation"] = over if self._own_time_limit else jnp.zeros(())
        return state.replace(pipeline_state=count, obs=jnp.stack([count, state.obs[1]]), reward=count, done=over)


@flax.struct.dataclass
class BareState:
    """The least that the adapter's docstring asks for."""

    obs: jax.Array
    reward: jax.Array
    done: jax.Array


class BareBrax:
    """A Brax-like environment whose state has neither info nor metrics."""

    action_size = 1

    def reset(self, rng: jax.Array) -> BareState:
        return BareState(obs=jax.random.uniform(rng, (1,)), reward=jnp.zeros(()), done=jnp.zeros(()))

    def step(self, state: BareState, action: jax.Array) -> BareState:
        return state.replace(obs=state.obs + action, reward=action[0], done=jnp.zeros(()))


class DictBrax:
    """A Brax-like environment with an asymmetric pair of observations."""

    action_size = 1
    backend = "toy"

    def reset(self, rng: jax.Array) -> ToyState:
        x = jax.random.normal(rng, (2,))
        return ToyState(
            pipeline_state=x,
            obs={"state": x[:1], "privileged_state": jnp.concatenate([x, x**2])},
            reward=jnp.zeros(()),
            done=jnp.zeros(()),
            metrics={},
            info={},
        )

    def step(self, state: ToyState, action: jax.Array) -> ToyState:
        x = 0.9 * state.pipeline_state + 0.1 * action
        return state.replace(
            pipeline_state=x,
            obs={"state": x[:1], "privileged_state": jnp.concatenate([x, x**2])},
            reward=-jnp.square(x).sum(),
            done=jnp.zeros(()),
        )


# ---------------------------------------------------------------------------------------------------------------------
# azjax's protocol
# ---------------------------------------------------------------------------------------------------------------------


def float_spec(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


class Toy:
    """What the environments below share: no params, a name, a time limit."""

    backend = "toy"
    observation_spec: Any = float_spec(1)
    action_spec: Any = azjax.Box(1)

    def __init__(self, episode_length: int = 1000) -> None:
        self.name = type(self).__name__.lower()
        self.episode_length = episode_length

    def sample_params(self, key: jax.Array) -> Any:
        return ()

    @staticmethod
    def state(
        inner: Any, params: Any, observation: Any, reward: Any = 0.0, terminated: Any = False, truncated: Any = False
    ) -> azjax.EnvState:
        return azjax.EnvState(
            inner=inner,
            params=params,
            observation=observation,
            reward=jnp.asarray(reward, jnp.float32),
            terminated=jnp.asarray(terminated, bool),
            truncated=jnp.asarray(truncated, bool),
        )


class Scripted(Toy):
    """Does at each step what its params say: obs ``[count, tag, position]``, reward ``count + tag``.

    The tag in [0, 1) is drawn at the reset and stays for the episode, so that a rollout shows which episode a step
    belongs to. The position adds up the actions. Each param is the count at which something happens, drawn uniformly
    from its range: the task ends, the environment cuts the episode short, the observation or the reward is NaN.
    """

    observation_spec = float_spec(3)

    def __init__(self, episode_length: int = 1000, **ranges: tuple[int, int]) -> None:
        super().__init__(episode_length)
        never = (NEVER, NEVER)
        events = ("terminate", "truncate", "nan_observation", "nan_reward")
        assert set(ranges) <= set(events)
        self._ranges = {name: ranges.get(name, never) for name in events}

    def sample_params(self, key: jax.Array) -> dict[str, jax.Array]:
        keys = jax.random.split(key, len(self._ranges))
        return {
            name: jax.random.randint(k, (), low, high + 1)
            for (name, (low, high)), k in zip(self._ranges.items(), keys, strict=True)
        }

    def reset(self, key: jax.Array, params: Any) -> azjax.EnvState:
        tag = jax.random.uniform(key)
        inner = {"count": jnp.zeros((), jnp.int32), "tag": tag, "position": jnp.zeros(())}
        return self.state(inner, params, jnp.stack([jnp.zeros(()), tag, jnp.zeros(())]))

    def step(self, state: azjax.EnvState, action: jax.Array) -> azjax.EnvState:
        count = state.inner["count"] + 1
        tag, position = state.inner["tag"], state.inner["position"] + action[0]
        params = state.params
        observation = jnp.stack([count.astype(jnp.float32), tag, position])
        observation = jnp.where(count == params["nan_observation"], jnp.nan, observation)
        return self.state(
            {"count": count, "tag": tag, "position": position},
            params,
            observation,
            jnp.where(count == params["nan_reward"], jnp.nan, count + tag),
            count >= params["terminate"],
            count >= params["truncate"],
        )


class DictTask(Toy):
    """The reward is highest where the action is half of the entry ``hidden``, which the entry ``seen`` shows too."""

    observation_spec = {"seen": float_spec(2), "hidden": float_spec(1, 1)}  # noqa: RUF012

    def reset(self, key: jax.Array, params: Any) -> azjax.EnvState:
        x = jax.random.uniform(key, (), minval=-1.0, maxval=1.0)
        return self.state(x, params, {"seen": jnp.stack([x, 1.0 - x]), "hidden": x.reshape(1, 1)})

    def step(self, state: azjax.EnvState, action: jax.Array) -> azjax.EnvState:
        reward = 1.0 - jnp.square(action[0] - 0.5 * state.inner)
        return state.replace(reward=reward, terminated=jnp.asarray(True))


class ObservedReward(Toy):
    """Probe: one step, the observation is 1 or -1 and so is the reward: V(x) = x."""

    def reset(self, key: jax.Array, params: Any) -> azjax.EnvState:
        x = 2.0 * jax.random.bernoulli(key, shape=(1,)).astype(jnp.float32) - 1.0
        return self.state((), params, x)

    def step(self, state: azjax.EnvState, action: jax.Array) -> azjax.EnvState:
        return self.state((), state.params, state.observation, state.observation[0], terminated=True)


class DelayedReward(Toy):
    """Probe: two steps, reward 1 on the second: V(0) = gamma, V(1) = 1."""

    def reset(self, key: jax.Array, params: Any) -> azjax.EnvState:
        return self.state((), params, jnp.zeros(1))

    def step(self, state: azjax.EnvState, action: jax.Array) -> azjax.EnvState:
        second = state.observation[0] > 0.5
        return self.state((), state.params, jnp.ones(1), jnp.where(second, 1.0, 0.0), terminated=second)


class EndlessReward(Toy):
    """Probe: reward 1 for ever; only a time limit ends an episode: V = 1 / (1 - gamma)."""

    def reset(self, key: jax.Array, params: Any) -> azjax.EnvState:
        return self.state((), params, jnp.ones(1))

    def step(self, state: azjax.EnvState, action: jax.Array) -> azjax.EnvState:
        return self.state((), state.params, jnp.ones(1), 1.0)


class Target(Toy):
    """Probe: one step, the best action is half of the observation and earns 1."""

    def reset(self, key: jax.Array, params: Any) -> azjax.EnvState:
        return self.state((), params, jax.random.uniform(key, (1,), minval=-1.0, maxval=1.0))

    def step(self, state: azjax.EnvState, action: jax.Array) -> azjax.EnvState:
        reward = 1.0 - jnp.square(action[0] - 0.5 * state.observation[0])
        return self.state((), state.params, state.observation, reward, terminated=True)


class Corridor(Toy):
    """Discrete: start at 0, action 2 goes right, 0 left, 1 stays; -0.1 a step, 1 more on reaching the end at 4."""

    END = 4
    OPTIMAL_RETURN = 0.6
    observation_spec = float_spec(END + 1)
    action_spec = azjax.Discrete(3)

    def _observation(self, position: jax.Array) -> jax.Array:
        return jax.nn.one_hot(position, self.END + 1)

    def reset(self, key: jax.Array, params: Any) -> azjax.EnvState:
        position = jnp.zeros((), jnp.int32)
        return self.state(position, params, self._observation(position))

    def step(self, state: azjax.EnvState, action: jax.Array) -> azjax.EnvState:
        position = jnp.clip(state.inner + action.astype(jnp.int32) - 1, 0, self.END)
        arrived = position == self.END
        reward = jnp.where(arrived, 0.9, -0.1)
        return self.state(position, state.params, self._observation(position), reward, terminated=arrived)


# ---------------------------------------------------------------------------------------------------------------------
# Looking inside
# ---------------------------------------------------------------------------------------------------------------------


def spy(learner: azjax.Learner, axis_name: str | None = None) -> azjax.Learner:
    """The learner, and what it was given: ``metrics.learner`` also has ``rollout`` and ``batch``, of all lanes."""

    seen: dict[str, Any] = {}  # of the trace in progress

    def estimate(state: Any, rollout: azjax.Rollout) -> azjax.Batch:
        seen["rollout"] = rollout
        return learner.estimate(state, rollout)

    def fit(state: Any, batch: azjax.Batch, key: jax.Array) -> Any:
        state, info = learner.fit(state, batch, key)
        return state, {**info, **of_all_lanes({"rollout": seen["rollout"], "batch": batch}, axis_name)}

    return learner._replace(estimate=estimate, fit=fit)


def idle(axis_name: str | None = None) -> azjax.Learner:
    """Acts at random and learns nothing; ``metrics.learner`` has the rollout: the cheapest way to look at lanes."""

    def act(params: Any, observation: Any, carry: Any, key: Any, *, deterministic: bool = False) -> Any:
        action = jnp.zeros(1) if deterministic else jax.random.uniform(key, (1,), minval=-1.0, maxval=1.0)
        return action, carry, azjax.ActInfo(log_prob=jnp.zeros(()), raw_action=action)

    return azjax.Learner(
        init=lambda key, observation_spec, action_spec, hyperparameters=None: IdleState(params=jnp.zeros(())),
        act=act,
        estimate=lambda state, rollout: rollout,
        fit=lambda state, batch, key: (state, {"rollout": of_all_lanes(batch, axis_name)}),
        axis_name=axis_name,
    )


@flax.struct.dataclass
class IdleState:
    params: jax.Array


def of_all_lanes(tree: Any, axis_name: str | None) -> Any:
    """``[T, B, ...]`` leaves of this device's lanes to those of all devices."""
    if axis_name is None:
        return tree
    return jax.tree.map(lambda x: jax.lax.all_gather(x, axis_name, axis=1, tiled=True), tree)


# ---------------------------------------------------------------------------------------------------------------------
# References in plain Python
# ---------------------------------------------------------------------------------------------------------------------


def numpy_gae(
    reward: Any, value: Any, next_value: Any, terminated: Any, truncated: Any, gamma: float, lam: float
) -> tuple[np.ndarray, np.ndarray]:
    """GAE of ``[T, B]`` arrays, lane by lane and step by step backwards: ``(advantages, returns)``."""
    reward, value, next_value = (np.asarray(x, np.float64) for x in (reward, value, next_value))
    advantages = np.zeros_like(reward)
    for lane in range(reward.shape[1]):
        following = 0.0
        for t in reversed(range(reward.shape[0])):
            bootstrap = 0.0 if terminated[t, lane] else next_value[t, lane]
            delta = reward[t, lane] + gamma * bootstrap - value[t, lane]
            over = terminated[t, lane] or truncated[t, lane]
            following = delta + (0.0 if over else gamma * lam * following)
            advantages[t, lane] = following
    return advantages, advantages + value
