//! Speculation as the flags ask for it: what drafts, how much, and what it did.

use std::path::Path;

use anyhow::{Context, Result};

use super::args::{self, Spec, SpeculationArgs};
use super::errors::{Failure, off, usage};
use super::human::size;
use super::open;
use crate::gguf::Gguf;
use crate::models;
use crate::session::{self, Options, Session};
use crate::speculate::{DraftModel, Drafter, Limits, MOST, Speculation, check_vocabulary};
use crate::tape::Tape;
use crate::text::Tokenizer;

/// How much is drafted, from the flags alone.
///
/// # Errors
/// If the flags contradict each other: a usage error.
pub(super) fn limits(a: &SpeculationArgs, model: &args::ModelArgs) -> Result<Limits> {
    if !(0.0..=1.0).contains(&a.draft_p_min) {
        return usage(format!("--draft-p-min {}: expected a probability from 0 to 1", a.draft_p_min));
    }
    if a.draft_min > a.draft_max {
        return usage(format!("--draft-min {} is more than --draft-max {}", a.draft_min, a.draft_max));
    }
    if a.spec == Spec::Draft && a.model_draft.is_none() {
        return usage("--spec draft: no draft model is given; name one with -md FILE".into());
    }
    if a.draft_max > MOST {
        off(&format!("--draft-max {}", a.draft_max), &format!("at most {MOST} tokens are drafted at once"))?;
    }
    let draft_model = matches!(a.spec, Spec::Auto | Spec::Draft | Spec::Mtp);
    if let Some(path) = a.model_draft.as_ref().filter(|_| !draft_model || a.draft_max == 0) {
        let why =
            if a.draft_max == 0 { "--draft-max 0 drafts nothing" } else { "--spec names another source of drafts" };
        off(&format!("-md {}", path.display()), why)?;
    }
    let most = if a.spec == Spec::Off { 0 } else { a.draft_max.min(MOST) };
    let least = a.draft_min.min(most);
    Ok(Limits { most, least, p_min: a.draft_p_min, deterministic: model.deterministic })
}

/// Whether the draft heads of the model's file are opened.
pub(super) fn uses_heads(a: &SpeculationArgs, limits: Limits) -> bool {
    limits.most > 0 && (matches!(a.spec, Spec::Auto | Spec::Mtp) || a.model_draft.is_some() && a.spec == Spec::Draft)
}

fn named(path: &Path) -> String {
    format!("-md {}", path.display())
}

/// The file that `-md` names, if it is used: the model's with a drafter in it that reads what the model computes, or that of
/// a draft model, apart.
///
/// # Errors
/// If it cannot be opened, or `written` asks whether it is written whole, and it is not.
pub(super) fn with_draft_file(
    a: &SpeculationArgs,
    gguf: Gguf,
    o: &Options,
    written: bool,
) -> Result<(Gguf, Option<Gguf>)> {
    let wanted = o.drafts > 0 && matches!(a.spec, Spec::Auto | Spec::Draft | Spec::Mtp);
    let Some(path) = a.model_draft.as_deref().filter(|_| wanted) else { return Ok((gguf, None)) };
    let opened = || -> Result<(Gguf, Option<Gguf>)> {
        let draft = session::open_files(path, &o.first_load())?;
        if written {
            draft.check_written()?;
        }
        let arch = draft.meta.str("general.architecture")?;
        if !models::known().any(|known| known == arch) {
            return Ok((gguf.with_drafter(draft)?, None));
        }
        Ok((gguf, Some(draft)))
    };
    let (gguf, draft) = opened().with_context(|| named(path)).context(Failure::Model)?;
    if draft.is_some() && a.spec == Spec::Mtp {
        off(&named(path), "--spec mtp drafts with the heads of the model's file, and this is another model")?;
        return Ok((gguf, None));
    }
    Ok((gguf, draft))
}

/// What `-md` names, if it is used: a draft model, opened before the model, which then gets what GPU memory is left; or a
/// drafter that reads what the model computes, which the model's file takes in.
///
/// # Errors
/// If it cannot be opened, or has another vocabulary.
pub(super) fn draft_model(
    a: &SpeculationArgs,
    model: &args::ModelArgs,
    (gguf, tokenizer): (Gguf, &Tokenizer),
    o: &Options,
) -> Result<(Gguf, Option<DraftModel>)> {
    let (gguf, draft) = with_draft_file(a, gguf, o, true)?;
    let (Some(path), Some(draft)) = (&a.model_draft, draft) else { return Ok((gguf, None)) };
    let n_ctx = session::context(&gguf, o.n_ctx).context(Failure::Model)?;
    let on_cpu = model.gpu_layers.as_deref() == Some("0") && a.gpu_layers_draft.is_none();
    let of = args::ModelArgs {
        model: Some(path.to_owned()),
        ctx_size: Some(n_ctx),
        gpu_layers: if on_cpu { Some("0".into()) } else { a.gpu_layers_draft.clone() },
        override_tensor: Vec::new(),
        cpu_moe: false,
        n_cpu_moe: None,
        expert_cache: "off".into(),
        ram: "off".into(),
        ..model.clone()
    };
    // After drafts that were all right it reads two tokens at once.
    let options = Options { drafts: 1, stats: false, ..open::for_sequences(open::options(&of)?, o.n_seq, false) };
    let opened = || -> Result<DraftModel> {
        let own = Tokenizer::new(&draft).context(Failure::Model)?;
        check_vocabulary(tokenizer, &own).context(Failure::Model)?;
        let session = open::on_device(draft, &of, &options)?;
        Ok(DraftModel::new(session, tokenizer.eog().to_vec(), tokenizer.n_vocab()))
    };
    Ok((gguf, Some(opened().with_context(|| named(path))?)))
}

/// What drafts for an opened model; a notice says it.
///
/// # Errors
/// If what `--spec` names is not there.
pub(super) fn speculation(
    a: &SpeculationArgs,
    limits: Limits,
    session: &Session,
    draft: Option<DraftModel>,
) -> Result<Speculation> {
    if limits.most == 0 {
        tracing::debug!("speculation: off ({})", if a.spec == Spec::Off { "--spec off" } else { "--draft-max 0" });
        return Ok(Speculation::off());
    }
    if session.most_drafts() == 0 {
        if a.spec != Spec::Auto {
            off("--spec", "batches of one token (-b, -ub) have no room for drafts")?;
        }
        return Ok(Speculation::off());
    }
    let mut drafters = Vec::new();
    match session.n_heads() {
        0 if session.engine().gguf().drafter().is_some() => {
            let arch = session.engine().gguf().drafter().unwrap_or_default();
            return usage(format!("-md: a file of the architecture {arch:?} drafts nothing for this model"));
        }
        0 if a.spec == Spec::Mtp => {
            return usage(format!("--spec mtp: {}; --spec auto uses what there is", no_heads(&session.engine().tape)));
        }
        0 => {}
        _ => drafters.push(Drafter::Heads(Session::draft)),
    }
    drafters.extend(draft.map(|model| Drafter::Model(Box::new(model))));
    if matches!(a.spec, Spec::Auto | Spec::Ngram) {
        drafters.push(Drafter::Lookup);
    }
    let names: Vec<&str> = drafters.iter().map(Drafter::name).collect();
    let pace = if limits.least > 0 { "in every round" } else { "where measured times say that it pays" };
    tracing::debug!("speculation: {}, at most {} tokens, {pace}", names.join(" and "), limits.most);
    Ok(Speculation::new(drafters, limits))
}

/// What speculation will be, for `--dry-run`: from the flags and the headers.
pub(super) fn describe(a: &SpeculationArgs, limits: Limits, tape: &Tape, draft: Option<&Gguf>) -> String {
    if limits.most == 0 {
        return format!("speculation: off ({})", if a.spec == Spec::Off { "--spec off" } else { "--draft-max 0" });
    }
    let mut names = Vec::new();
    match tape.n_heads() {
        0 if a.spec == Spec::Mtp => return format!("speculation: --spec mtp, but {}", no_heads(tape)),
        0 => {}
        _ if tape.is_drafter => names.push("the drafter of -md (mtp)".into()),
        1 => names.push("a draft head of the file (mtp)".into()),
        n => names.push(format!("{n} draft heads of the file (mtp)")),
    }
    if let Some(draft) = draft {
        let bytes = draft.tensors.iter().map(|t| t.bytes).sum();
        names.push(format!("a draft model of {}, which is not in the placement", size(bytes)));
    }
    if matches!(a.spec, Spec::Auto | Spec::Ngram) {
        names.push("repetitions of the text (ngram)".into());
    }
    format!("speculation: {}, at most {} tokens", names.join(", "), limits.most)
}

/// Why there are no draft heads.
fn no_heads(tape: &Tape) -> String {
    tape.heads_off.clone().unwrap_or_else(|| "the model's file has no blocks for multi-token prediction".into())
}

/// Prints what speculation did, if `--stats` asks for it.
pub(super) fn stats(speculation: &Speculation, session: &Session, a: &args::ModelArgs) {
    if !a.stats || speculation.is_off() {
        return;
    }
    let all = speculation.stats();
    if speculation.has_memory() {
        tracing::info!("speculation: began with what earlier runs measured (--no-profile begins without)");
    }
    for ((name, s), share) in speculation.sources().zip(speculation.shares(session)) {
        let looks = match s.looks {
            (0, _) => String::new(),
            (n, right) => format!("; {right} of {n} that were only compared were right"),
        };
        let looked = share.map_or(String::new(), |s| format!("; among {:.0}% of the vocabulary", 100.0 * s));
        if s.rounds == 0 {
            let steps = all.plain + all.drafted;
            tracing::info!("speculation ({name}): nothing was drafted in {steps} steps{looks}{looked}");
            continue;
        }
        tracing::info!(
            "speculation ({name}): {} drafts of {} tokens, {} accepted ({:.0}%); by position {}%{looks}{looked}",
            s.rounds,
            s.drafted,
            s.accepted,
            100.0 * s.accepted as f64 / s.drafted.max(1) as f64,
            s.shares()
        );
    }
    if let (true, Some(gain)) = (all.drafted > 0, all.gain()) {
        let ms = |seconds: f64| seconds * 1e3 / all.drafted as f64;
        tracing::info!(
            "{} rounds with drafts made {} tokens with {} rows, {gain:.2} times as fast as single steps; each took {:.2} ms \
             to draft, {:.2} ms to verify, {:.2} ms to go back; {} single steps besides",
            all.drafted,
            all.tokens,
            all.rows,
            ms(all.draft_seconds),
            ms(all.verify_seconds),
            ms(all.back_seconds),
            all.plain
        );
        let costs = speculation.costs();
        let measured = (1..=MOST + 1).filter_map(|n| Some(format!("{n}: {:.2}", costs.measured(n)? * 1e3)));
        tracing::info!("ms of a step by its rows: {}", measured.collect::<Vec<_>>().join(", "));
        let Some(reads) = &session.engine().expert_reads else { return };
        if let (Some(one), Some(further)) = (reads.per_layer(1), reads.per_further_row()) {
            let by_rows = (1..=MOST + 1).filter_map(|n| Some(format!("{n}: {:.1}", reads.per_layer(n)?)));
            tracing::info!(
                "experts that a layer reads by the rows of a step: {}; each further row brings {further:.1} where {one:.1} \
                 would be none shared",
                by_rows.collect::<Vec<_>>().join(", ")
            );
        }
    }
}
