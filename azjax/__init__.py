"""azjax: massively parallel reinforcement learning in JAX, the whole training step one XLA program.

Everything here is a pure function or a small immutable type; ``azjax.runs`` and ``azjax.cli`` are the parts that touch
the outside world.
"""

from azjax.advantages import gae, gae_associative, lambda_returns, n_step, td_residuals
from azjax.batching import minor_vmap
from azjax.conjugate_gradient import ConjugateGradientInfo, conjugate_gradient
from azjax.counters import Counter, counter_add, counter_to_int
from azjax.distributions import Categorical, Distribution, Normal, TanhNormal
from azjax.envs import Environment, EnvState, Randomization, make_env, to_gymnasium
from azjax.evaluation import Episodes, compile_evaluator, make_evaluator, summarize
from azjax.fisher import double_backward_product, fisher_product, gauss_newton_product
from azjax.line_search import LineSearchInfo, Measurement, backtracking_line_search
from azjax.networks import ActorCritic, Network
from azjax.normalization import RunningStatistics, init_statistics, normalize, update_statistics
from azjax.on_policy import PolicyParams
from azjax.population import (
    Population,
    PopulationMetrics,
    PopulationState,
    compile_population,
    make_population,
    make_population_mesh,
    stack_hyperparameters,
)
from azjax.ppo import Minibatch, PPOConfig, PPOState, ppo, ppo_loss
from azjax.training import (
    CompiledTrainer,
    EpisodeTotals,
    LaneState,
    Metrics,
    Trainer,
    TrainState,
    compile,
    make_mesh,
    make_trainer,
)
from azjax.trpo import TRPOConfig, TRPOState, trpo
from azjax.types import ActInfo, Batch, Box, Discrete, Learner, Rollout

__version__ = "0.1.0"

__all__ = [
    "ActInfo",
    "ActorCritic",
    "Batch",
    "Box",
    "Categorical",
    "CompiledTrainer",
    "ConjugateGradientInfo",
    "Counter",
    "Discrete",
    "Distribution",
    "EnvState",
    "Environment",
    "EpisodeTotals",
    "Episodes",
    "LaneState",
    "Learner",
    "LineSearchInfo",
    "Measurement",
    "Metrics",
    "Minibatch",
    "Network",
    "Normal",
    "PPOConfig",
    "PPOState",
    "PolicyParams",
    "Population",
    "PopulationMetrics",
    "PopulationState",
    "Randomization",
    "Rollout",
    "RunningStatistics",
    "TRPOConfig",
    "TRPOState",
    "TanhNormal",
    "TrainState",
    "Trainer",
    "__version__",
    "backtracking_line_search",
    "compile",
    "compile_evaluator",
    "compile_population",
    "conjugate_gradient",
    "counter_add",
    "counter_to_int",
    "double_backward_product",
    "fisher_product",
    "gae",
    "gae_associative",
    "gauss_newton_product",
    "init_statistics",
    "lambda_returns",
    "make_env",
    "make_evaluator",
    "make_mesh",
    "make_population",
    "make_population_mesh",
    "make_trainer",
    "minor_vmap",
    "n_step",
    "normalize",
    "ppo",
    "ppo_loss",
    "stack_hyperparameters",
    "summarize",
    "td_residuals",
    "to_gymnasium",
    "trpo",
    "update_statistics",
]
