"""Where the evidence for a target lies: class heatmaps, saliency and occlusion."""
