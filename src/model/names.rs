//! placeholder until the checkpoint branch lands
pub const EMBEDDING: &str = "model.embed_tokens.weight";
pub const NORM: &str = "model.norm.weight";
pub const HEAD: &str = "lm_head.weight";
pub fn weight(module: &str) -> String {
    format!("{module}.weight")
}
pub fn input_norm(l: usize) -> String {
    format!("model.layers.{l}.input_layernorm.weight")
}
pub fn post_attention_norm(l: usize) -> String {
    format!("model.layers.{l}.post_attention_layernorm.weight")
}
pub fn q_proj(l: usize) -> String {
    format!("model.layers.{l}.self_attn.q_proj")
}
pub fn k_proj(l: usize) -> String {
    format!("model.layers.{l}.self_attn.k_proj")
}
pub fn v_proj(l: usize) -> String {
    format!("model.layers.{l}.self_attn.v_proj")
}
pub fn o_proj(l: usize) -> String {
    format!("model.layers.{l}.self_attn.o_proj")
}
pub fn gate_proj(l: usize) -> String {
    format!("model.layers.{l}.mlp.gate_proj")
}
pub fn up_proj(l: usize) -> String {
    format!("model.layers.{l}.mlp.up_proj")
}
pub fn down_proj(l: usize) -> String {
    format!("model.layers.{l}.mlp.down_proj")
}
pub fn router(l: usize) -> String {
    format!("model.layers.{l}.block_sparse_moe.gate")
}
pub fn w1(l: usize, e: usize) -> String {
    format!("model.layers.{l}.block_sparse_moe.experts.{e}.w1")
}
pub fn w2(l: usize, e: usize) -> String {
    format!("model.layers.{l}.block_sparse_moe.experts.{e}.w2")
}
pub fn w3(l: usize, e: usize) -> String {
    format!("model.layers.{l}.block_sparse_moe.experts.{e}.w3")
}
