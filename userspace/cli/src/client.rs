//! The connection to the daemon, and the little runtime that a client needs.

use std::future::Future;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tonic::Code as Grpc;
use tonic::transport::{Channel, Endpoint};

use crate::exit::{Code, Unreachable};
use kwitness_api::DEFAULT_SOCKET;
use kwitness_api::proto::kwitness_client::KwitnessClient;

/// A snapshot of a large node is larger than gRPC's default of 4 MiB.
const MESSAGE_MAX: usize = 256 << 20;

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

/// The socket that was named, or the default one.
pub fn socket(named: Option<PathBuf>) -> PathBuf {
    named.unwrap_or_else(|| DEFAULT_SOCKET.into())
}

/// Connects.
pub async fn connect(socket: &Path) -> Result<KwitnessClient<Channel>, Unreachable> {
    let unreachable =
        |error: tonic::transport::Error| Unreachable { socket: socket.to_owned(), reason: innermost(&error) };
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).map_err(unreachable)?;
    let channel = endpoint.connect().await.map_err(unreachable)?;
    Ok(KwitnessClient::new(channel).max_decoding_message_size(MESSAGE_MAX))
}

/// What went wrong with a call, in words.
pub fn failed(socket: &Path, status: &tonic::Status) -> anyhow::Error {
    match status.code() {
        Grpc::Unavailable => {
            Unreachable { socket: socket.to_owned(), reason: status.message().to_owned() }.into()
        }
        Grpc::Unimplemented => anyhow::anyhow!(
            "what listens on {} does not know this call: it is another release of kwitness, or something else",
            socket.display()
        ),
        _ => anyhow::anyhow!("the daemon refused: {}", status.message()),
    }
}

/// tonic's own words are "transport error".
fn innermost(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => innermost(source),
        None => error.to_string(),
    }
}
