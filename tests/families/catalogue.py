"""Model families: a small configuration of each, and what must be found in its graph."""

from __future__ import annotations

from tests.families.family import ATTENTION, EXPERTS, LAYERS, VOCABULARY, Family

_ROUTER = {"mlp.gate": "router"}
_SHARED = {f"mlp.shared_expert.{name}_proj": f"glu_{name}" for name in ("gate", "up", "down")}
_SHARED_EXPERTS = {path.replace("expert", "experts"): role for path, role in _SHARED.items()}


_NO_GLU = "no GLU: refused, and with `--allow-no-glu` quantized all the same"
_HEADS = {"head_dim": 8}
_CHOICE = {"num_experts_per_tok": 2}
_CHOSEN = ("swiglu",) * EXPERTS
_CHOSEN_AND_SHARED = ("swiglu",) * (EXPERTS + 1)
_GROUPS = _CHOICE | {
    "n_routed_experts": EXPERTS,
    "n_shared_experts": 1,
    "moe_intermediate_size": 24,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 0,
}

DECODERS: tuple[Family, ...] = (
    Family("llama", "Llama 2 and 3", "LlamaForCausalLM"),
    Family("mistral", "Mistral", "MistralForCausalLM", settings={"sliding_window": 8}),
    Family("qwen2", "Qwen2", "Qwen2ForCausalLM"),
    Family("qwen3", "Qwen3", "Qwen3ForCausalLM", settings=_HEADS),
    Family("gemma2", "Gemma 2", "Gemma2ForCausalLM", settings=_HEADS | {"sliding_window": 4}, kinds=("geglu",)),
    Family(
        "gemma3",
        "Gemma 3 (text)",
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        settings=_HEADS | {"sliding_window": 4},
        kinds=("geglu",),
    ),
    Family(
        "phi3",
        "Phi-3",
        "Phi3ForCausalLM",
        modules={
            "self_attn.qkv_proj": "attn_qkv",
            "self_attn.o_proj": "attn_o",
            "mlp.gate_up_proj": "glu_gate_up",
            "mlp.down_proj": "glu_down",
        },
    ),
    Family("olmo2", "OLMo 2", "Olmo2ForCausalLM"),
    Family("smollm3", "SmolLM3", "SmolLM3ForCausalLM"),
    Family("granite", "Granite", "GraniteForCausalLM"),
    Family(
        "bitnet",
        "BitNet b1.58",
        "BitNetForCausalLM",
        kinds=("squared_reglu",),
        note="a norm stands between the product and `down_proj`",
    ),
    Family(
        "mixtral",
        "Mixtral",
        "MixtralForCausalLM",
        settings=_CHOICE | {"num_local_experts": EXPERTS},
        modules=ATTENTION | _ROUTER,
        experts="mlp.experts",
        kinds=_CHOSEN,
    ),
    Family(
        "qwen2_moe",
        "Qwen2-MoE",
        "Qwen2MoeForCausalLM",
        settings=_CHOICE | {"num_experts": EXPERTS, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40},
        modules=ATTENTION | _SHARED | _ROUTER | {"mlp.shared_expert_gate": "router"},
        experts="mlp.experts",
        kinds=_CHOSEN_AND_SHARED,
    ),
    Family(
        "qwen3_moe",
        "Qwen3-MoE",
        "Qwen3MoeForCausalLM",
        settings=_HEADS | _CHOICE | {"num_experts": EXPERTS, "moe_intermediate_size": 24},
        modules=ATTENTION | _ROUTER,
        experts="mlp.experts",
        kinds=_CHOSEN,
    ),
    Family(
        "olmoe",
        "OLMoE",
        "OlmoeForCausalLM",
        settings=_CHOICE | {"num_experts": EXPERTS},
        modules=ATTENTION | _ROUTER,
        experts="mlp.experts",
        kinds=_CHOSEN,
    ),
    Family(
        "deepseek_v3",
        "DeepSeek-V3",
        "DeepseekV3ForCausalLM",
        settings=_GROUPS
        | {
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "num_key_value_heads": 4,
        },
        modules={
            "self_attn.q_a_proj": "other",
            "self_attn.q_b_proj": "attn_q",
            "self_attn.kv_a_proj_with_mqa": "other",
            "self_attn.kv_b_proj": "attn_v",
            "self_attn.o_proj": "attn_o",
        }
        | _SHARED_EXPERTS
        | _ROUTER,
        experts="mlp.experts",
        kinds=_CHOSEN_AND_SHARED,
        unmatched=("attn_k comes from several projections",),
        note="keys come from two projections",
    ),
    Family(
        "glm4_moe",
        "GLM-4.5",
        "Glm4MoeForCausalLM",
        settings=_GROUPS | _HEADS,
        modules=ATTENTION | _SHARED_EXPERTS | _ROUTER,
        experts="mlp.experts",
        kinds=_CHOSEN_AND_SHARED,
    ),
    Family(
        "gpt_oss",
        "GPT-OSS",
        "GptOssForCausalLM",
        settings=_HEADS | _CHOICE | {"num_local_experts": EXPERTS, "sliding_window": 4},
        modules=ATTENTION | {"mlp.router": "router"},
        experts="mlp.experts",
        kinds=_CHOSEN,
    ),
    Family(
        "granite_moe",
        "Granite-MoE",
        "GraniteMoeForCausalLM",
        settings=_CHOICE | {"num_local_experts": EXPERTS},
        modules=ATTENTION | {"block_sparse_moe.router": "router"},
        experts="block_sparse_moe.experts",
        kinds=_CHOSEN,
    ),
    Family(
        "phi_moe",
        "Phi-3.5-MoE",
        "PhimoeForCausalLM",
        settings=_CHOICE | {"num_local_experts": EXPERTS, "initializer_range": 0.15},
        modules=ATTENTION | {"mlp.router": "router"},
        experts="mlp.experts",
        kinds=_CHOSEN,
    ),
    Family(
        "gpt2",
        "GPT-2",
        "GPT2LMHeadModel",
        common=False,
        settings={
            "vocab_size": VOCABULARY,
            "n_embd": 32,
            "n_layer": LAYERS,
            "n_head": 4,
            "n_positions": 128,
            "initializer_range": 0.2,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        modules={"attn.c_attn": "attn_qkv", "attn.c_proj": "attn_o", "mlp.c_fc": "other", "mlp.c_proj": "other"},
        kinds=(),
        prefix="transformer.h.{}",
        note=_NO_GLU,
    ),
    Family(
        "opt",
        "OPT",
        "OPTForCausalLM",
        settings={"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.2},
        modules={
            f"self_attn.{part}": role
            for part, role in (("q_proj", "attn_q"), ("k_proj", "attn_k"), ("v_proj", "attn_v"), ("out_proj", "attn_o"))
        }
        | {"fc1": "other", "fc2": "other"},
        kinds=(),
        prefix="model.decoder.layers.{}",
        note=_NO_GLU,
    ),
    Family(
        "phi2",
        "Phi-2",
        "PhiForCausalLM",
        modules={
            f"self_attn.{part}": role
            for part, role in (("q_proj", "attn_q"), ("k_proj", "attn_k"), ("v_proj", "attn_v"), ("dense", "attn_o"))
        }
        | {"mlp.fc1": "other", "mlp.fc2": "other"},
        kinds=(),
        note=_NO_GLU,
    ),
)

_GIVES_NO_TOKENS = "its ONNX graph can be inspected"
ENCODERS: tuple[Family, ...] = (
    Family(
        "bert",
        "BERT",
        "BertModel",
        settings={"type_vocab_size": 1},
        modules={
            "attention.self.query": "attn_q",
            "attention.self.key": "attn_k",
            "attention.self.value": "attn_v",
            "attention.output.dense": "attn_o",
            "intermediate.dense": "other",
            "output.dense": "other",
        },
        kinds=(),
        prefix="encoder.layer.{}",
        outside={"pooler.dense": "other"},
        refused="not a causal language model",
        note=f"an encoder without GLU: the folder is refused, {_GIVES_NO_TOKENS}",
    ),
    Family(
        "t5",
        "T5 1.1 (encoder)",
        "T5EncoderModel",
        "T5Config",
        common=False,
        settings={
            "vocab_size": VOCABULARY,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": LAYERS,
            "num_heads": 4,
            "feed_forward_proj": "gated-gelu",
            "initializer_factor": 4.0,
        },
        modules={f"layer.0.SelfAttention.{letter}": f"attn_{letter}" for letter in "qkvo"}
        | {
            "layer.1.DenseReluDense.wi_0": "glu_gate",
            "layer.1.DenseReluDense.wi_1": "glu_up",
            "layer.1.DenseReluDense.wo": "glu_down",
        },
        kinds=("geglu",),
        prefix="encoder.block.{}",
        outside={},
        refused="not a causal language model",
        note=f"no decoder: the folder is refused, {_GIVES_NO_TOKENS}",
    ),
)
FAMILIES = {family.name: family for family in (*DECODERS, *ENCODERS)}
# One with everything separate, one with GeGLU, one with everything packed, one with experts.
LIGHT = ("llama", "gemma2", "phi3", "qwen2_moe")
