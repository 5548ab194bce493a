//! The connection to the daemon, and the little runtime that a client needs.

use std::ffi::OsString;
use std::future::Future;
use std::path::PathBuf;

use anyhow::Context as _;
use kwitness_api::Client;
use kwitness_api::client::{Address, Error};

use crate::exit::Code;

/// Runs a client until it ends, or Ctrl-C.
pub fn run(client: impl Future<Output = anyhow::Result<Code>>) -> anyhow::Result<Code> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start the runtime")?.block_on(async {
        tokio::select! {
            done = client => done,
            _ = tokio::signal::ctrl_c() => Ok(Code::Interrupted),
        }
    })
}

/// The address that was named, or the default one.
pub fn address(named: Option<OsString>) -> Address {
    named.map(Address::from).unwrap_or_default()
}

/// The path of the socket that was named, for the commands that listen there or pass it on.
#[cfg_attr(not(node), expect(dead_code, reason = "only the commands of a node need a path"))]
pub fn path(named: OsString) -> anyhow::Result<PathBuf> {
    match Address::from(named) {
        Address::Unix(path) => Ok(path),
        Address::Uri(uri) => anyhow::bail!("--socket {uri}: only a Unix socket will do here"),
    }
}

/// Connects.
pub async fn connect(named: Option<OsString>) -> Result<Client, Error> {
    Client::connect(address(named)).await
}
