"""The recipe: everything that defines a run, as typed data.

A recipe is one YAML file. Every model here is frozen and closed: a value of the wrong type, an
unknown key or a contradiction is refused before anything starts. Imports nothing heavy.
"""

from caravan.config import Config
from caravan.recipe.base import BaseModelConfig, ImportedBase, PretrainedBase
from caravan.recipe.common import (
    ChatTemplate,
    Fraction,
    LearningRate,
    Name,
    PassTokens,
    Resources,
    Sampling,
)
from caravan.recipe.data import (
    DecontaminateConfig,
    MixComponent,
    MixConfig,
    SynthesisTask,
    SynthesizeConfig,
)
from caravan.recipe.engines import (
    EngineConfig,
    OpenAIEngineConfig,
    ProgramEngineConfig,
    TransformersEngineConfig,
    VLLMEngineConfig,
)
from caravan.recipe.evaluation import EvalTask, EvaluateConfig, ReportConfig, SafetyJudge
from caravan.recipe.preferences import (
    JudgeConfig,
    JudgeEngine,
    LLMJudge,
    PairConfig,
    PairSource,
    PoolMember,
    ProgramJudge,
    PromptComponent,
    RespondConfig,
    SamplePromptsConfig,
)
from caravan.recipe.recipe import Recipe
from caravan.recipe.rlvr import (
    GRPOConfig,
    PPOConfig,
    RLVRConfig,
    TransformersRollouts,
    VLLMRollouts,
)
from caravan.recipe.sources import (
    CurateConfig,
    FileSource,
    GeneratedSource,
    HubSource,
    Source,
    SourceOrigin,
)
from caravan.recipe.training import (
    DPOConfig,
    DPOLoss,
    LoRAConfig,
    PolicyConfig,
    RewardModelConfig,
    SelectConfig,
    SFTConfig,
    TrainingConfig,
)

__all__ = [
    "BaseModelConfig",
    "ChatTemplate",
    "Config",
    "CurateConfig",
    "DPOConfig",
    "DPOLoss",
    "DecontaminateConfig",
    "EngineConfig",
    "EvalTask",
    "EvaluateConfig",
    "FileSource",
    "Fraction",
    "GRPOConfig",
    "GeneratedSource",
    "HubSource",
    "ImportedBase",
    "JudgeConfig",
    "JudgeEngine",
    "LLMJudge",
    "LearningRate",
    "LoRAConfig",
    "MixComponent",
    "MixConfig",
    "Name",
    "OpenAIEngineConfig",
    "PPOConfig",
    "PairConfig",
    "PairSource",
    "PassTokens",
    "PolicyConfig",
    "PoolMember",
    "PretrainedBase",
    "ProgramEngineConfig",
    "ProgramJudge",
    "PromptComponent",
    "RLVRConfig",
    "Recipe",
    "ReportConfig",
    "Resources",
    "RespondConfig",
    "RewardModelConfig",
    "SFTConfig",
    "SafetyJudge",
    "SamplePromptsConfig",
    "Sampling",
    "SelectConfig",
    "Source",
    "SourceOrigin",
    "SynthesisTask",
    "SynthesizeConfig",
    "TrainingConfig",
    "TransformersEngineConfig",
    "TransformersRollouts",
    "VLLMEngineConfig",
    "VLLMRollouts",
]
