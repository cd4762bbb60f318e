// Numbers that the kernels and the host share, each declared once: kernels/launch.py writes them into src/cuda/codes.rs.
#pragma once

/// What `glu` computes of a gate g and the other half u.
enum GluKind : int {
    GLU_SILU,       /// silu(g) * u.
    GLU_SILU_CLAMP, /// silu(g) * u, with g at most `limit` and u within -`limit`..`limit`.
    GLU_OAI,        /// g * sigmoid(1.702 g) * (u + 1), both clamped as for `GLU_SILU_CLAMP`.
    GLU_SIGMOID,    /// sigmoid(g) * u.
    GLU_GELU,       /// gelu(g) * u, with gelu(g) = 0.5 g (1 + tanh(sqrt(2 / pi) (g + 0.044715 g^3))).
    GLU_GELU_ERF,   /// gelu(g) * u, with gelu(g) = 0.5 g (1 + erf(g / sqrt(2))).
    GLU_RELU_SQ,    /// max(u, 0)^2: there is no gate, and g is not read.
    GLU_RELU,       /// max(g, 0) * u.
    GLU_SILU_CAP,   /// silu(g) * u, with silu(g) at most `limit` and u within -`limit`..`limit`.
    GLU_SOFTPLUS,   /// log(1 + e^g) * u.
    GLU_MULTIPLY,   /// g * u.
    GLU_SITU,       /// limit tanh(g / limit) sigmoid(g) * limit_u tanh(u / limit_u), or u itself where `limit_u` is 0.
};

/// How the router's logits become scores.
enum RouterGate : int {
    GATE_SOFTMAX,           /// Softmax over all experts, then the best are chosen.
    GATE_SIGMOID,           /// A sigmoid of each logit.
    GATE_SOFTMAX_OF_CHOSEN, /// The best logits are chosen, then softmax over those.
    GATE_SQRT_SOFTPLUS,     /// sqrt(log(1 + e^x)).
};

/// Which values of a head rope rotates together.
enum RopePairs : int {
    ROPE_HALVES,   /// Value i of the first half with value i of the second.
    ROPE_ADJACENT, /// Neighbours.
};

/// The format of a cache's rows, by the number that GGUF gives it.
enum CacheType : int {
    CACHE_F32 = 0,     /// F32.
    CACHE_F16 = 1,     /// F16.
    CACHE_Q4_0 = 2,    /// Blocks of 32 codes of 4 bits with an f16 scale.
    CACHE_Q4_1 = 3,    /// Blocks of 32 codes of 4 bits with an f16 scale and an f16 minimum.
    CACHE_Q5_0 = 6,    /// Blocks of 32 codes of 5 bits with an f16 scale.
    CACHE_Q5_1 = 7,    /// Blocks of 32 codes of 5 bits with an f16 scale and an f16 minimum.
    CACHE_Q8_0 = 8,    /// Blocks of 32 codes of 8 bits with an f16 scale.
    CACHE_IQ4_NL = 20, /// Blocks of 32 codes of 4 bits for uneven values with an f16 scale.
    CACHE_BRAIN = 30,  /// The upper halves of F32.
};

enum {
    TILE_ROWS = 128,     /// Rows of a matrix that one block of `matmul` multiplies.
    TILE_PAIRS = 128,    /// Pairs of a tile: those of one matrix that a block of `matmul` multiplies.
    MOST_EXPERTS = 1024, /// Experts that `route` can choose from.
    MOST_CHOSEN = 64,    /// Experts that `route` can choose for a token.
    MOST_GROUPS = 32,    /// Groups of experts that `route` can choose among.
    MOST_STREAMS = 8,    /// Streams of hyper-connections.
    MOST_SOURCES = 64,   /// Sources that `mix_sources` can mix.
    ARGMAX_PARTS = 32,   /// Parts of a row that are searched by blocks of their own, then joined by one warp.
};
