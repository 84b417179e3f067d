"""The images of a step together, padded to one size, as torchvision trains: `--batching=padded`.

Each loss is divided by the number of anchors or RoIs that are sampled from all images together; image by image, it is
the mean over images of losses divided by their own numbers. The two are equal where all images have as many samples.

N: images. K: anchors, R: proposals, S: sampled RoIs, G: ground-truth boxes of an image. L: foreground classes.
"""

import torch

from model.utils.array_tool import call_creator, upload
from model.utils.bbox_tools import resize_bbox
from trainer import FasterRCNNTrainer, Losses, Stats, count_correct, detection_losses


class PaddedTrainer(FasterRCNNTrainer):
    """`FasterRCNNTrainer` of a network whose extractor and head take several images, such as a pyramid's."""

    def train_step(self, samples, n_sample=None):
        """Take one optimizer step on the losses of `samples` together; see `FasterRCNNTrainer.train_step`."""
        return super().train_step([samples] if samples else [], n_sample or len(samples))

    def compute_losses(self, samples):
        """Compute the losses of N `data.Sample`, multiplied by N: `train_step` divides by the number of images."""
        inputs = [self.model.prepare(sample.img) for sample in samples]  # (1, 3, H', W') and resize factor
        with torch.autocast(self.model.device.type, self.dtype, enabled=self.dtype is not None):
            feature = self.model.extractor(*(x for x, _ in inputs))
            images = zip(samples, inputs, feature.split(), strict=True)
            rpns, anchor_targets, roi_targets = zip(*(self.propose(*image) for image in images), strict=True)
            rois, gt_roi_loc, gt_roi_label = zip(*roi_targets, strict=True)
            roi_cls_loc, roi_score = self.model.head(feature, *rois)  # (N * S, L + 1, 4), (N * S, L + 1)
        gt_roi_loc, gt_roi_label = torch.cat(gt_roi_loc), torch.cat(gt_roi_label)  # (N * S, 4), (N * S,)
        roi_loc = roi_cls_loc[torch.arange(len(roi_score), device=roi_score.device), gt_roi_label.clamp(min=0)]
        roi_losses = detection_losses(roi_loc, roi_score, gt_roi_loc, gt_roi_label, self.roi_sigma)
        rpn_loc, rpn_score = (torch.cat([rpn[i] for rpn in rpns]) for i in range(2))  # (N * K, 4), (N * K, 2)
        gt_loc, gt_label = map(torch.cat, zip(*anchor_targets, strict=True))  # (N * K, 4), (N * K,)
        rpn_losses = self.rpn_loss(rpn_loc, rpn_score, gt_loc, gt_label, self.rpn_sigma)
        losses = [loss * len(samples) for loss in (*rpn_losses, *roi_losses)]
        same_score = torch.isclose(roi_score, roi_score[:1], rtol=1e-3).all()
        counts = *count_correct(rpn_score, gt_label), *count_correct(roi_score, gt_roi_label)
        n_image, n_proposal = (gt_label.new_tensor(n) for n in (len(samples), sum(len(rpn.roi) for rpn in rpns)))
        return Losses(*losses, sum(losses), Stats(n_image, n_proposal, *counts, same_score * n_image))

    def propose(self, sample, prepared, feature):
        """Run the RPN on one image and sample the targets.

        Args:
            sample: `data.Sample` with a generator.
            prepared: what `FasterRCNN.prepare` makes of it.
            feature: its feature maps.

        Returns:
            `RPNOutput`, `AnchorTarget`, `ProposalTarget`.
        """
        x, scale = prepared
        img_size, sizes, device = tuple(x.shape[2:]), (sample.img.shape[:2], x.shape[2:]), x.device
        bbox, label = upload(resize_bbox(sample.bbox, *sizes), device), upload(sample.label, device)  # (G, 4), (G,)
        rpn = self.model.rpn(feature, img_size, scale, train=True)
        if sample.roi is not None:
            rpn = rpn._replace(roi=upload(resize_bbox(sample.roi, *sizes), device))
        anchor_target = call_creator(self.anchor_target_creator, bbox, rpn.anchor, img_size, sample.rng)
        return rpn, anchor_target, call_creator(self.proposal_target_creator, rpn.roi, bbox, label, sample.rng)
