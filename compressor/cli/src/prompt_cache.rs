//! `generate --prompt-cache`: what a prompt has in common with the one in a file is not computed again.

use std::path::{Path, PathBuf};

use compressor_engine::{Cache, Engine, Options, computation};
use compressor_format::{Computation, Model, PromptCache, check_apart};

use crate::failure::Failure;

/// The file of a run, and what its contents must have been computed by.
pub(crate) struct PromptFile {
    path: PathBuf,
    computed: Computation,
    /// Tokens that stand in the file.
    stored: usize,
}

impl PromptFile {
    /// Reads what `prompt` has in common with the file, if there is one. The last token of the prompt is left out: what comes after
    /// it is to be computed.
    pub(crate) fn open(
        path: &Path,
        model: &Model,
        options: Options,
        engine: &Engine,
        prompt: &[u32],
        capacity: usize,
    ) -> Result<(Self, Cache), Failure> {
        // Before the work that would be lost.
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir()) {
            let (path, folder) = (path.display(), folder.display());
            return Err(anyhow::anyhow!("{path}: there is no folder {folder} to keep the prompt cache in").into());
        }
        let computed = computation(model, options);
        let found = PromptCache::open(path, &computed)?;
        check_apart(path, [model.path()])?;
        let stored = found.as_ref().map_or(0, |found| found.tokens.len());
        let cache = match &found {
            Some(found) => {
                let common = found.common_tokens(prompt).min(prompt.len().saturating_sub(1));
                engine.restore(found, common, capacity)?
            }
            None => engine.cache(capacity),
        };
        tracing::info!("prompt cache: {} of {} tokens were computed before", cache.tokens(), prompt.len());
        Ok((Self { path: path.to_owned(), computed, stored }, cache))
    }

    /// Keeps the prompt, where it is longer than the one in the file.
    pub(crate) fn keep(self, cache: &Cache, prompt: &[u32]) -> Result<(), Failure> {
        if prompt.len() > self.stored {
            cache.store(prompt, self.computed).write(&self.path)?;
        }
        Ok(())
    }
}
