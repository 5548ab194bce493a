//! `kwitness cri-proxy`: flags into options, logging, the runtime.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Context as _;

use crate::connect;
use crate::exit::Code;
use kwitness_cri::find_socket;
use kwitness_cri_proxy::DEFAULT_SOCKET;
use kwitness_cri_proxy::{Options, RuntimeSocket};
use kwitness_service::http::HttpAddress;
use kwitness_service::log;
use kwitness_service::log::LogFormat;
use kwitness_service::privileges::{CapabilitySet, keep_only};

#[derive(Debug, clap::Args)]
pub struct CriProxy {
    /// The Unix socket to serve, unless systemd passes one
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub listen: PathBuf,
    /// The container runtime's socket; "auto": the first that exists of containerd's, k3s's, CRI-O's and cri-dockerd's
    #[arg(long, value_name = "PATH", default_value = "auto")]
    pub runtime_endpoint: String,
    /// What is logged to standard error, as the setting log.level
    #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = super::log_level)]
    pub log_level: String,
    /// Log format
    #[arg(long, default_value = "text", value_name = "FORMAT")]
    pub log_format: LogFormat,
    /// Serve /metrics, /livez, /readyz and /startupz at this address: IP:PORT or unix:///PATH [default: nowhere]
    #[arg(long, value_name = "ADDRESS")]
    pub http_listen: Option<HttpAddress>,
}

pub fn run(options: CriProxy, socket: Option<OsString>) -> anyhow::Result<Code> {
    let CriProxy { listen, runtime_endpoint, log_level, log_format, http_listen } = options;
    // Before there is another thread. Its sockets are its user's and its groups'.
    keep_only(CapabilitySet::empty())?;
    let _log = log::start(&log_level, log_format)?;
    let daemon = connect::path(socket.unwrap_or_else(|| kwitness_api::DEFAULT_SOCKET.into()))?;
    let runtime = RuntimeSocket::parse(&runtime_endpoint);
    if runtime == RuntimeSocket::Auto && find_socket().is_none() {
        tracing::warn!(
            "no socket of a container runtime: calls fail until one exists; --runtime-endpoint names another"
        );
    }
    let options = Options { listen, runtime, daemon, http: http_listen };
    // One thread: a call costs less than waking another would.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start the runtime")?.block_on(kwitness_cri_proxy::run(options))?;
    Ok(Code::Success)
}
