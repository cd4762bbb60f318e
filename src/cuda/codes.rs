//! The numbers that kernels and host share.
//!
//! kernels/launch.py makes this file from kernels/codes.cuh.

/// What `glu` computes of a gate g and the other half u.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(i32)]
pub enum GluKind {
    /// silu(g) * u.
    #[default]
    Silu = 0,
    /// silu(g) * u, with g at most `limit` and u within -`limit`..`limit`.
    SiluClamp = 1,
    /// g * sigmoid(1.702 g) * (u + 1), both clamped as for `GLU_SILU_CLAMP`.
    Oai = 2,
    /// sigmoid(g) * u.
    Sigmoid = 3,
    /// gelu(g) * u, with gelu(g) = 0.5 g (1 + tanh(sqrt(2 / pi) (g + 0.044715 g^3))).
    Gelu = 4,
    /// gelu(g) * u, with gelu(g) = 0.5 g (1 + erf(g / sqrt(2))).
    GeluErf = 5,
    /// max(u, 0)^2: there is no gate, and g is not read.
    ReluSq = 6,
    /// max(g, 0) * u.
    Relu = 7,
    /// silu(g) * u, with silu(g) at most `limit` and u within -`limit`..`limit`.
    SiluCap = 8,
    /// log(1 + e^g) * u.
    Softplus = 9,
    /// g * u.
    Multiply = 10,
    /// limit tanh(g / limit) sigmoid(g) * limit_u tanh(u / limit_u), or u itself where `limit_u` is
    /// 0.
    Situ = 11,
}

/// How the router's logits become scores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(i32)]
pub enum RouterGate {
    /// Softmax over all experts, then the best are chosen.
    #[default]
    Softmax = 0,
    /// A sigmoid of each logit.
    Sigmoid = 1,
    /// The best logits are chosen, then softmax over those.
    SoftmaxOfChosen = 2,
    /// sqrt(log(1 + e^x)).
    SqrtSoftplus = 3,
}

/// Which values of a head rope rotates together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(i32)]
pub enum RopePairs {
    /// Value i of the first half with value i of the second.
    #[default]
    Halves = 0,
    /// Neighbours.
    Adjacent = 1,
}

/// The format of a cache's rows, by the number that GGUF gives it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(i32)]
pub enum CacheType {
    /// F32.
    #[default]
    F32 = 0,
    /// F16.
    F16 = 1,
    /// Blocks of 32 codes of 4 bits with an f16 scale.
    Q40 = 2,
    /// Blocks of 32 codes of 4 bits with an f16 scale and an f16 minimum.
    Q41 = 3,
    /// Blocks of 32 codes of 5 bits with an f16 scale.
    Q50 = 6,
    /// Blocks of 32 codes of 5 bits with an f16 scale and an f16 minimum.
    Q51 = 7,
    /// Blocks of 32 codes of 8 bits with an f16 scale.
    Q80 = 8,
    /// Blocks of 32 codes of 4 bits for uneven values with an f16 scale.
    Iq4Nl = 20,
    /// The upper halves of F32.
    Brain = 30,
}

impl CacheType {
    /// Every one.
    pub const ALL: [CacheType; 9] = [CacheType::F32, CacheType::F16, CacheType::Q40, CacheType::Q41, CacheType::Q50,
        CacheType::Q51, CacheType::Q80, CacheType::Iq4Nl, CacheType::Brain];
}

/// Rows of a matrix that one block of `matmul` multiplies.
pub const TILE_ROWS: usize = 128;

/// Pairs of a tile: those of one matrix that a block of `matmul` multiplies.
pub const TILE_PAIRS: usize = 128;

/// Experts that `route` can choose from.
pub const MOST_EXPERTS: usize = 1024;

/// Experts that `route` can choose for a token.
pub const MOST_CHOSEN: usize = 64;

/// Groups of experts that `route` can choose among.
pub const MOST_GROUPS: usize = 32;

/// Streams of hyper-connections.
pub const MOST_STREAMS: usize = 8;

/// Sources that `mix_sources` can mix.
pub const MOST_SOURCES: usize = 64;

/// Parts of a row that are searched by blocks of their own, then joined by one warp.
pub const ARGMAX_PARTS: usize = 32;
