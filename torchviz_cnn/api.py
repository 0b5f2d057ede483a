"""The public names, from the rooms that have them. `import torchviz_cnn` gives them all: write `tvc.grad_cam`."""

from typing import TYPE_CHECKING

from torchviz_cnn.ascent import objectives, transformations
from torchviz_cnn.ascent.atlas import Atlas, filter_atlas
from torchviz_cnn.ascent.maximize import filter_patterns, maximize
from torchviz_cnn.ascent.recipes import Recipe
from torchviz_cnn.ascent.result import Patterns
from torchviz_cnn.attribution import metrics
from torchviz_cnn.attribution.cam.channel import channel_heatmap
from torchviz_cnn.attribution.cam.competition import competitive_cam
from torchviz_cnn.attribution.cam.exact import class_activation_map
from torchviz_cnn.attribution.cam.formulas import CAM_METHODS as _CAM_METHODS
from torchviz_cnn.attribution.cam.gradient_free import ablation_cam, score_cam
from torchviz_cnn.attribution.cam.heatmap import Heatmap, SignedHeatmap
from torchviz_cnn.attribution.cam.joined import join_heatmaps
from torchviz_cnn.attribution.explain import Explanation, explain, smoothed_cam
from torchviz_cnn.attribution.full_grad import full_grad
from torchviz_cnn.attribution.metrics.result import Measurement
from torchviz_cnn.attribution.occlusion import Occlusion, occlusion
from torchviz_cnn.attribution.result import Box
from torchviz_cnn.attribution.saliency import Saliency, guided_grad_cam, input_x_gradient, saliency
from torchviz_cnn.attribution.smoothing import integrated_gradients, smooth_grad
from torchviz_cnn.attribution.video import CamVideo, cam_video
from torchviz_cnn.core.errors import (
    CheckpointError,
    CheckpointWarning,
    DeadFilterWarning,
    EmptyMapWarning,
    GeometryWarning,
    HookError,
    ImageError,
    ImageWarning,
    InputError,
    LayerError,
    ModelError,
    OutputError,
    RankError,
    ShardError,
    SkippedWarning,
    TargetError,
    TorchvizError,
    TorchvizWarning,
    WorkerError,
)
from torchviz_cnn.deconv.compare import Comparison, FirstFilters, compare, first_filters
from torchviz_cnn.deconv.deconvnet import Deconvolution, deconvnet
from torchviz_cnn.deconv.unpooling import max_pool_with_switches, unpool
from torchviz_cnn.evaluation.result import Trust
from torchviz_cnn.evaluation.trust import trust
from torchviz_cnn.hooks.manager import HookManager
from torchviz_cnn.hooks.network import Network
from torchviz_cnn.hooks.relu_rules import ReluRule, relu_rule
from torchviz_cnn.hooks.untouched import untouched
from torchviz_cnn.layers.capture import Activations, capture
from torchviz_cnn.layers.defaults import layer_names
from torchviz_cnn.layers.describe import Description, describe
from torchviz_cnn.layers.units.similar import SimilarChannels, similar_channels
from torchviz_cnn.media.datasets.photo_folder import PhotoFolder
from torchviz_cnn.media.datasets.shards.tar_shards import TarShards
from torchviz_cnn.media.figures import panel
from torchviz_cnn.media.images import Preprocess, read_image
from torchviz_cnn.models import load_keras_weights, load_model, model_names
from torchviz_cnn.page.report import Report, report
from torchviz_cnn.scores import target_functions as targets
from torchviz_cnn.scores.predictions import Predictions
from torchviz_cnn.scores.targets import predict
from torchviz_cnn.surveys.result import Survey
from torchviz_cnn.surveys.survey import survey
from torchviz_cnn.topk.mining import top_activations
from torchviz_cnn.topk.pieces.merging import merge
from torchviz_cnn.topk.result import TopActivations
from torchviz_cnn.watch.watching import Watch

if TYPE_CHECKING:  # for type checkers, what the table gives at run time
    from torchviz_cnn.attribution.cam.formulas import *  # noqa: F403

Network.predict = predict
globals().update({name: method.function for name, method in _CAM_METHODS.items()})

__all__ = [
    "Activations",
    "Atlas",
    "Box",
    "CamVideo",
    "CheckpointError",
    "CheckpointWarning",
    "Comparison",
    "DeadFilterWarning",
    "Deconvolution",
    "Description",
    "EmptyMapWarning",
    "Explanation",
    "FirstFilters",
    "GeometryWarning",
    "Heatmap",
    "HookError",
    "HookManager",
    "ImageError",
    "ImageWarning",
    "InputError",
    "LayerError",
    "Measurement",
    "ModelError",
    "Network",
    "Occlusion",
    "OutputError",
    "Patterns",
    "PhotoFolder",
    "Predictions",
    "Preprocess",
    "RankError",
    "Recipe",
    "ReluRule",
    "Report",
    "Saliency",
    "ShardError",
    "SignedHeatmap",
    "SimilarChannels",
    "SkippedWarning",
    "Survey",
    "TarShards",
    "TargetError",
    "TopActivations",
    "TorchvizError",
    "TorchvizWarning",
    "Trust",
    "Watch",
    "WorkerError",
    "ablation_cam",
    "cam_video",
    "capture",
    "channel_heatmap",
    "class_activation_map",
    "compare",
    "competitive_cam",
    "deconvnet",
    "describe",
    "explain",
    "filter_atlas",
    "filter_patterns",
    "first_filters",
    "full_grad",
    "guided_grad_cam",
    "input_x_gradient",
    "integrated_gradients",
    "join_heatmaps",
    "layer_names",
    "load_keras_weights",
    "load_model",
    "max_pool_with_switches",
    "maximize",
    "merge",
    "metrics",
    "model_names",
    "objectives",
    "occlusion",
    "panel",
    "predict",
    "read_image",
    "relu_rule",
    "report",
    "saliency",
    "score_cam",
    "similar_channels",
    "smooth_grad",
    "smoothed_cam",
    "survey",
    "targets",
    "top_activations",
    "transformations",
    "trust",
    "unpool",
    "untouched",
]
__all__.extend(_CAM_METHODS)
