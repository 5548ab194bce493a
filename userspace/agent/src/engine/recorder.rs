//! Observations written to a file, one JSON object a line, to be replayed by tests. A file that cannot be written ends the
//! recording, not the daemon.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use kwitness_core::model::Observation;

/// The file, as long as it can be written.
#[derive(Debug)]
pub(super) struct Recorder {
    path: PathBuf,
    file: Option<BufWriter<File>>,
}

impl Recorder {
    pub(super) fn create(path: &Path) -> anyhow::Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot record to {}", path.display()))?;
        Ok(Self { path: path.to_owned(), file: Some(BufWriter::new(file)) })
    }

    pub(super) fn write(&mut self, observation: &Observation) {
        self.attempt(|file| {
            serde_json::to_writer(&mut *file, observation)?;
            file.write_all(b"\n")
        });
    }

    pub(super) fn flush(&mut self) {
        self.attempt(BufWriter::flush);
    }

    fn attempt(&mut self, write: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>) {
        if let Some(file) = &mut self.file
            && let Err(error) = write(file)
        {
            tracing::error!(path = %self.path.display(), %error, "the recording has ended");
            self.file = None;
        }
    }
}
