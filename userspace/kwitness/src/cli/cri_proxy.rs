//! `kwitness cri-proxy`: flags into options, logging, the runtime.

use std::path::PathBuf;

use anyhow::Context as _;

use super::args::CriProxy;
use super::exit::Code;
use super::{client, log};
use crate::cri_proxy::{self, Options, RuntimeSocket};

pub fn run(options: CriProxy, socket: Option<PathBuf>) -> anyhow::Result<Code> {
    let CriProxy { listen, runtime_endpoint, log_level, log_format } = options;
    log::start(&log_level, log_format)?;
    let options =
        Options { listen, runtime: RuntimeSocket::parse(&runtime_endpoint), daemon: client::socket(socket) };
    // One thread: a call costs less than waking another would.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start the runtime")?.block_on(cri_proxy::run(options))?;
    Ok(Code::Success)
}
