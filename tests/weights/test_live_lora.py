"""Files of adapters beside diffusers' and peft's own; only where torch and these are."""

import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_lora import LORA, draw_adapters
from tiny_model import DIT_CONFIG

import sora_jax
from sora_jax.models.dit import DiT
from sora_jax.models.lora import scaled
from sora_jax.weights.__main__ import export_pipeline, import_open
from sora_jax.weights.diffusers import dit_from_diffusers
from sora_jax.weights.lora import FILE, lora_to_diffusers, merge_lora
from tests.weights.test_open_parity import sample

for _library in ("torch", "diffusers", "transformers", "peft"):
    pytest.importorskip(_library)

SEED = 7


def test_adapters_written_here_do_in_diffusers_what_they_do_here(tmp_path):
    import torch
    from diffusers import WanPipeline, WanTransformer3DModel
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    torch.manual_seed(SEED)
    network = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=64,
        num_layers=2,
    ).eval()
    base = {name: x.numpy() for name, x in network.state_dict().items()}
    params = dit_from_diffusers(base, DIT_CONFIG)
    adapters = scaled(draw_adapters(), LORA.scale)
    save_file(lora_to_diffusers(adapters, DIT_CONFIG), tmp_path / FILE)

    rng = np.random.default_rng(SEED)
    x, text = (rng.normal(size=s).astype(np.float32) for s in ((1, 2, 4, 6, 4), (1, 5, 16)))
    level = 0.3

    def theirs():
        with torch.no_grad():
            y = network(
                torch.from_numpy(x.transpose(0, 4, 1, 2, 3)),
                torch.tensor([1000 * level]),
                torch.from_numpy(text),
                return_dict=False,
            )[0]
        return y.numpy().transpose(0, 2, 3, 4, 1)

    def ours(variables):
        return DiT(DIT_CONFIG).apply(variables, x, np.full((1, 2), level, np.float32), text)

    plain = theirs()
    np.testing.assert_allclose(ours({"params": params}), plain, atol=1e-4 * np.abs(plain).max())
    # What `WanPipeline.load_lora_weights` does with a file.
    tensors, said = WanPipeline.lora_state_dict(tmp_path, return_lora_metadata=True)
    WanPipeline.load_lora_into_transformer(tensors, network, adapter_name="ours", metadata=said)
    expected = theirs()
    size = np.abs(expected).max()
    assert np.abs(expected - plain).max() > 0.01 * size
    found = ours({"params": params, "lora": adapters})
    np.testing.assert_allclose(found, expected, atol=1e-4 * size)

    # And back: what peft's own adapters, of another scale, are saved as, is read here.
    network.delete_adapters("ours")
    targets = ["to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2", "proj_out", "time_proj"]
    config = LoraConfig(
        r=3,
        lora_alpha=7,
        target_modules=targets,
        init_lora_weights=False,
        rank_pattern={r"blocks\.1\.attn\d.to_q": 2, "time_proj": 4},
        alpha_pattern={"proj_out": 5, r"attn1\..*": 2, "to_q": 9},
    )
    network.add_adapter(config, "theirs")
    expected = theirs()
    assert np.abs(expected - plain).max() > 0.01 * np.abs(expected).max()
    metadata = network.peft_config["theirs"].to_dict()
    layers = get_peft_model_state_dict(network, adapter_name="theirs")
    for said in (metadata, None):
        WanPipeline.save_lora_weights(
            tmp_path, layers, transformer_lora_adapter_metadata=said, weight_name=FILE
        )
        merged = dit_from_diffusers(base, DIT_CONFIG)
        merge_lora(merged, tmp_path, DIT_CONFIG)
        if said is None:  # then alpha is taken for the rank, there as well
            network.delete_adapters("theirs")
            tensors, said = WanPipeline.lora_state_dict(tmp_path, return_lora_metadata=True)
            WanPipeline.load_lora_into_transformer(tensors, network, metadata=said)
            expected = theirs()
        found = ours({"params": merged})
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_each_of_two_transformers_takes_its_adapters_there_as_here(tmp_path):
    """Beside the weights, and added to them in what is exported."""
    from diffusers import WanPipeline

    from tests.weights import run_pipelines, tiny_pipelines

    pipeline = tiny_pipelines.make_experts(tiny_pipelines.make_transformer(SEED + 3), SEED)
    pipeline.save_pretrained(tmp_path / "open")
    import_open(str(tmp_path / "open"), str(tmp_path / "model"))
    config = sora_jax.load(tmp_path / "model").dit_config
    folders = {"lora": tmp_path / "high", "lora_low": tmp_path / "low"}
    for seed, folder in enumerate(folders.values()):
        adapters = scaled(draw_adapters(seed=seed, config=config), LORA.scale)
        folder.mkdir()
        save_file(lora_to_diffusers(adapters, config), folder / FILE)

    def theirs(pipeline):
        return run_pipelines.run(pipeline, SEED, guidance=(4.0, 3.0))

    def check(expected, given):
        model = sora_jax.load(tmp_path / "model", **given)
        text = model.read([run_pipelines.PROMPT])
        latents, _ = sample(model, text, expected["noise"], guidance=None)
        np.testing.assert_allclose(latents, expected["latents"], atol=1e-4)

    plain = theirs(pipeline)["latents"]
    pipeline.load_lora_weights(folders["lora_low"], load_into_transformer_2=True)
    low = theirs(pipeline)
    check(low, {"lora_low": folders["lora_low"]})
    pipeline.load_lora_weights(folders["lora"])
    both = theirs(pipeline)
    check(both, folders)
    for one, other in ((plain, low["latents"]), (low["latents"], both["latents"])):
        assert np.abs(one - other).max() > 0.02
    export_pipeline(str(tmp_path / "model"), str(tmp_path / "out"), **folders)
    out = theirs(WanPipeline.from_pretrained(tmp_path / "out"))
    np.testing.assert_allclose(out["latents"], both["latents"], atol=1e-4)


def test_adapters_of_image_tokens_do_there_what_they_do_here(tmp_path):
    from tests.weights import run_pipelines, tiny_pipelines

    pipeline = tiny_pipelines.make_image_pipeline("clip", SEED)
    images = run_pipelines.draw_images(1, SEED)
    pipeline.save_pretrained(tmp_path / "open")
    config = sora_jax.load(tmp_path / "open").dit_config
    adapters = scaled(draw_adapters(config=config), LORA.scale)
    tensors = lora_to_diffusers(adapters, config)
    assert "transformer.blocks.1.attn2.add_k_proj.lora_B.weight" in tensors
    save_file(tensors, tmp_path / FILE)
    plain = run_pipelines.run_image(pipeline, images, SEED)
    pipeline.load_lora_weights(tmp_path, weight_name=FILE)
    theirs = run_pipelines.run_image(pipeline, images, SEED)
    assert np.abs(theirs["latents"] - plain["latents"]).max() > 0.02
    model = sora_jax.load(tmp_path / "open", lora=tmp_path)
    seen = model.look({0: images[0]}, run_pipelines.FRAMES)
    text = model.read([run_pipelines.PROMPT])
    latents, _ = sample(model, text, theirs["noise"], seen, guidance=None)
    np.testing.assert_allclose(latents, theirs["latents"], atol=1e-4)
