"""Tiny random pipelines of diffusers, of every kind that is read here; needs torch.

Their weights are drawn by a seed, in float32, and small enough to be kept in golden/.
"""

import pathlib
import shutil

import tokenizers
import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

from tests.models.make_golden import randomise

FOLDER = pathlib.Path(__file__).parent / "golden"
TOKENIZER = FOLDER / "pipeline" / "tokenizer" / "tokenizer.json"
EXPERTS = {"shift": 12.0, "boundary_ratio": 0.875, "guidance": (4.0, 3.0)}  # of Wan 2.2 T2V A14B


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tiny one of UMT5's kind: unigram pieces, padding 0, end 1, which its template adds.

    The one in golden/ is kept: training puts pieces that are equally likely in any order.
    """
    if TOKENIZER.is_file():
        return wrapped(tokenizers.Tokenizer.from_file(str(TOKENIZER)))
    model = tokenizers.Tokenizer(models.Unigram())
    model.normalizer = normalizers.NFKC()
    model.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=100,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    model.train_from_iterator(["a red circle moves & turns right", "A blue square."] * 4, trainer)
    model.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return wrapped(model)


def wrapped(model: tokenizers.Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def make_transformer(seed: int, **image: int) -> WanTransformer3DModel:
    """A tiny one; `image` is what it takes of images."""
    sizes = {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 12,
        "freq_dim": 16,
        "ffn_dim": 40,
        "num_layers": 2,
        "rope_max_seq_len": 16,
    }
    return randomise(WanTransformer3DModel(**{**sizes, **image}), seed)


def make_vae(seed: int, *, of_22: bool = False) -> AutoencoderKLWan:
    """Of 2.1's kind, or of 2.2's: shortcuts, pixel patches, a wider decoder."""
    more = {
        "is_residual": True,
        "patch_size": 2,
        "in_channels": 12,
        "out_channels": 12,
        "decoder_base_dim": 3,
        "scale_factor_spatial": 16,
    }
    vae = AutoencoderKLWan(
        base_dim=2,
        dim_mult=[1, 1, 2, 2],
        num_res_blocks=1,
        z_dim=4,
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[0.5, 1.2, 0.8, 1.0],
        **(more if of_22 else {}),
    )
    randomise(vae, seed)
    # The decoder's output is clipped to [-1, 1]; small values show all of it.
    vae.decoder.conv_out.weight.data = (vae.decoder.conv_out.weight / 4).half().float()
    return vae


def make_scheduler(shift: float) -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=shift
    )


def make_pipeline(seed: int = 0) -> WanPipeline:
    """A tiny random pipeline in float32."""
    text = UMT5Config(
        vocab_size=112, d_model=12, d_kv=5, d_ff=20, num_layers=2, num_heads=3, dropout_rate=0.0
    )
    return WanPipeline(
        tokenizer=make_tokenizer(),
        text_encoder=randomise(UMT5EncoderModel(text), seed + 1),
        transformer=make_transformer(seed + 2),
        vae=make_vae(seed),
        scheduler=make_scheduler(5.0),
    )


def make_ti2v(seed: int = 0) -> WanPipeline:
    """A tiny random pipeline of TI2V 5B's kind."""
    parts = make_pipeline(seed).components
    vae = make_vae(seed, of_22=True)
    return WanPipeline(**{**parts, "vae": vae, "expand_timesteps": True})


def animating(pipeline: WanPipeline) -> WanImageToVideoPipeline:
    """The same networks, given an image."""
    return WanImageToVideoPipeline(**pipeline.components, expand_timesteps=True)


def make_experts(second: WanTransformer3DModel, seed: int = 0) -> WanPipeline:
    """A tiny random pipeline with a second transformer for low noise."""
    parts = make_pipeline(seed).components
    more = {"transformer_2": second, "scheduler": make_scheduler(EXPERTS["shift"])}
    return WanPipeline(**{**parts, **more, "boundary_ratio": EXPERTS["boundary_ratio"]})


def turned_round(transformer: WanTransformer3DModel) -> WanTransformer3DModel:
    """One with each tensor reversed along its first axis."""
    other = WanTransformer3DModel.from_config(transformer.config)
    other.load_state_dict({k: x.flip(0) for k, x in transformer.state_dict().items()})
    return other.eval()


def make_image_pipeline(kind: str = "clip", seed: int = 0) -> WanImageToVideoPipeline:
    """One that animates images, the rest of it as `make_pipeline` makes it.

    Args:
      kind: what the transformer sees besides channels: "clip" image tokens, "both" those of a first
        and a last frame, "none". "experts" are two transformers of that.
      seed: of the weights.
    """
    pipeline = make_pipeline(seed)
    image = {"clip": {}, "both": {"pos_embed_seq_len": 10}}.get(kind)
    two = kind == "experts"
    reader = None if image is None else {"image_dim": 16, "added_kv_proj_dim": 24, **image}
    sizes = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        hidden_act="gelu",
    )
    return WanImageToVideoPipeline(
        tokenizer=pipeline.tokenizer,
        text_encoder=pipeline.text_encoder,
        vae=pipeline.vae,
        scheduler=pipeline.scheduler,
        transformer=make_transformer(seed + 2, in_channels=12, **(reader or {})),
        transformer_2=make_transformer(seed + 4, in_channels=12) if two else None,
        boundary_ratio=0.9 if two else None,
        image_encoder=reader and randomise(CLIPVisionModel(sizes), seed + 3),
        image_processor=reader
        and CLIPImageProcessorPil(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
        ),
    )


def save_pipeline(pipeline: WanPipeline, folder: pathlib.Path) -> None:
    """Writes a diffusers folder in float16; its transformer in several files with an index."""
    pipeline.to(torch.float16)
    pipeline.save_pretrained(folder)
    shutil.rmtree(folder / "transformer")
    pipeline.transformer.save_pretrained(folder / "transformer", max_shard_size="40KB")
    pipeline.to(torch.float32)
