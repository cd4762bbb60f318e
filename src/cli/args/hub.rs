//! The flags that name a model of a hub instead of a file.

use clap::Args;

/// Which model of a hub, and how the hub is asked.
#[derive(Debug, Args, Clone, Default)]
pub struct HubArgs {
    /// Model of the hub (huggingface.co, or HF_ENDPOINT), fetched once and then opened from the
    /// cache; QUANT is the end of a file's name [default: Q4_K_M, or what is there] [also: -hf,
    /// -hfr]
    #[arg(long, value_name = "USER/REPO[:QUANT]")]
    pub hf_repo: Option<String>,
    /// File of the repository, instead of a quant [also: -hff]
    #[arg(long, value_name = "FILE")]
    pub hf_file: Option<String>,
    /// Token for gated and private repositories [default: HF_TOKEN, or the file of `hf auth login`]
    /// [also: -hft]
    #[arg(long, value_name = "TOKEN")]
    pub hf_token: Option<String>,
    /// Ask no hub; open what is in the cache [default: HF_HUB_OFFLINE]
    #[arg(long)]
    pub offline: bool,
}

/// `tandem fetch`.
#[derive(Debug, Args)]
pub struct FetchArgs {
    /// Model of the hub: USER/REPO, USER/REPO:QUANT, or an address on huggingface.co
    #[arg(value_name = "MODEL")]
    pub name: Option<String>,
    /// The model by llama.cpp's flags, and how the hub is asked.
    #[command(flatten)]
    pub hub: HubArgs,
    /// Fetch nothing; print which files would be fetched, and how large they are
    #[arg(long)]
    pub dry_run: bool,
}

/// `tandem list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}
