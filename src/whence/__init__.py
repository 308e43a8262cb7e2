"""whence: probabilistic models as Equinox modules, any engine, one diagnosed posterior."""

import importlib.metadata

from .calibration import geweke as geweke, sbc as sbc
from .core import (
    RESULTS as RESULTS,
    AbstractDataTarget as AbstractDataTarget,
    AbstractDescribedTarget as AbstractDescribedTarget,
    AbstractEngine as AbstractEngine,
    AbstractOnlineEngine as AbstractOnlineEngine,
    AbstractPausingEngine as AbstractPausingEngine,
    AbstractPausingProcedure as AbstractPausingProcedure,
    AbstractProcedure as AbstractProcedure,
    AbstractTarget as AbstractTarget,
    InferenceError as InferenceError,
    InferenceWarning as InferenceWarning,
    Info as Info,
    Sample as Sample,
    Schedule as Schedule,
    Stream as Stream,
    Trace as Trace,
    enable_x64 as enable_x64,
)
from .frontends import (
    FanIn as FanIn,
    bayesian as bayesian,
    classification as classification,
    from_log_density as from_log_density,
    from_numpyro as from_numpyro,
    from_tfp as from_tfp,
    poisson as poisson,
    regression as regression,
)
from .inference.hmc import HMC as HMC, MCLMC as MCLMC, NUTS as NUTS, ChEES as ChEES
from .inference.point import MAP as MAP
from .inference.sgmcmc import (
    SGHMC as SGHMC,
    SGLD as SGLD,
    SGMCMC as SGMCMC,
    SGNHT as SGNHT,
    CyclicalSGLD as CyclicalSGLD,
    FederatedSGLD as FederatedSGLD,
    StructuredSGMCMC as StructuredSGMCMC,
)
from .inference.smc import (
    SMC2 as SMC2,
    DataTemperedSMC as DataTemperedSMC,
    FeynmanKacSMC as FeynmanKacSMC,
    FixedLag as FixedLag,
    ParticleFilter as ParticleFilter,
    ParticleGibbs as ParticleGibbs,
    ParticleMH as ParticleMH,
    TemperedSMC as TemperedSMC,
    filter as filter,
    smooth as smooth,
)
from .inference.variational import (
    BBVI as BBVI,
    CIWAE as CIWAE,
    ELBO as ELBO,
    IWAE as IWAE,
    MIWAE as MIWAE,
    PIWAE as PIWAE,
    SVGD as SVGD,
    Amortised as Amortised,
    Autoregressive as Autoregressive,
    Blocks as Blocks,
    BuresWasserstein as BuresWasserstein,
    ClosedFormEntropy as ClosedFormEntropy,
    Coupling as Coupling,
    Factors as Factors,
    Flow as Flow,
    ForwardKL as ForwardKL,
    FullRank as FullRank,
    Gamma as Gamma,
    Laplace as Laplace,
    Local as Local,
    LogVariance as LogVariance,
    LowRank as LowRank,
    MeanField as MeanField,
    PathDerivative as PathDerivative,
    Pathfinder as Pathfinder,
    Planar as Planar,
    Point as Point,
    Proximal as Proximal,
    Radial as Radial,
    RejectionSampling as RejectionSampling,
    Renyi as Renyi,
    ScaleMixtureFamily as ScaleMixtureFamily,
    ScoreFunction as ScoreFunction,
    TotalDerivative as TotalDerivative,
)
from .language import (
    Model as Model,
    ModelTarget as ModelTarget,
    categories as categories,
    check as check,
    condition as condition,
    derived as derived,
    graph as graph,
    latent as latent,
)
from .models.state_space import StateSpaceModel as StateSpaceModel
from .posterior import (
    Posterior as Posterior,
    bridge_sampling as bridge_sampling,
    compare as compare,
    prior_predictive as prior_predictive,
)
from .running import (
    Trained as Trained,
    Until as Until,
    distributed as distributed,
    extend as extend,
    infer as infer,
    infer_many as infer_many,
    load as load,
    mesh as mesh,
    replay as replay,
    resume as resume,
    train as train,
)

__version__ = importlib.metadata.version("whence")
