//! The text that prompts begin with (`--prefix-file`): read once, then loaded from a file in the
//! cache folder.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::cli::files::own_folder;
use crate::session::{Progress, Session, Want};
use crate::store;

/// Reads the prefix, or loads it as an earlier run left it.
pub(super) fn read(session: &mut Session, ids: &[u32], progress: &mut dyn FnMut(Progress)) -> Result<()> {
    let path = prefix_path(session, ids).unwrap_or_else(|e| {
        tracing::warn!("{e:#}");
        None
    });
    if let Some(path) = path.as_deref().filter(|p| p.exists()) {
        match store::load(path, session, 0) {
            Ok(_) if session.tokens(0) == ids => return Ok(()),
            Ok(_) => session.clear(0),
            Err(e) => tracing::warn!("the cached prefix cannot be used, so it is computed again: {e:#}"),
        }
    }
    session.feed_with_progress(0, ids, Want::None, progress)?;
    match path {
        Some(path) => match store::save(&path, session, 0, "") {
            Ok(()) => tracing::info!("the prefix of {} tokens is cached in {}", ids.len(), path.display()),
            Err(e) => tracing::warn!("the prefix is not cached: {e:#}"),
        },
        None => tracing::warn!("the prefix is not cached: neither XDG_CACHE_HOME nor HOME is set"),
    }
    Ok(())
}

/// The file that a prefix is cached in.
fn prefix_path(session: &Session, ids: &[u32]) -> Result<Option<PathBuf>> {
    let Some(dir) = own_folder("XDG_CACHE_HOME", ".cache").context("no folder to cache the prefix in")? else {
        return Ok(None);
    };
    Ok(Some(dir.join(format!("prefix-{}.session", store::key(session, ids)?))))
}
