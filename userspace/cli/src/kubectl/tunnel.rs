//! From here to a node's daemon: gRPC over the API server's port-forward to the daemon's pod.
//!
//! Every connection looks for the pod anew, so a client survives that pod, its node's restart and the API server's. What is resumed,
//! and where, the client in `kwitness_api` knows. Owns the stream's end: what the kubelet said of it is the error that a caller reads.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use kube::api::Portforwarder;
use kwitness_api::Client;
use kwitness_api::client::Address;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf};
use tonic::codegen::http::Uri;
use tonic::transport::Endpoint;

/// How often an idle daemon is asked whether it is there: a node that is cut off ends no connection.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// How long it may take to answer.
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(10);

/// A client's connection preface with empty settings, as RFC 9113, 3.4 has it: a server answers it with its own.
const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// How long it may take to answer that.
const HELLO_ANSWER: Duration = Duration::from_secs(2);

/// A client of the daemon on a node, with a tunnel that `open` opens: with the first call, and whenever the last one has ended.
pub fn client<F>(node: &str, open: impl Fn() -> F + Send + Sync + 'static) -> Client
where
    F: Future<Output = io::Result<Tunnel>> + Send + 'static,
{
    let connector = tower::service_fn(move |_: Uri| {
        let opened = open();
        async move { opened.await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://localhost")
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_ANSWER)
        .keep_alive_while_idle(true)
        .connect_with_connector_lazy(connector);
    Client::from_channel(channel, Address::Node(node.to_owned()))
}

/// A forwarded port.
pub struct Tunnel {
    stream: DuplexStream,
    /// What the kubelet says if it cannot connect; gone once it has been read.
    error: Option<Pin<Box<dyn Future<Output = Option<String>> + Send>>>,
}

impl Tunnel {
    /// Of that port; none if it is not forwarded.
    pub fn new(mut forwarder: Portforwarder, port: u16) -> Option<Self> {
        let stream = forwarder.take_stream(port)?;
        let error = forwarder.take_error(port)?;
        Some(Self { stream, error: Some(Box::pin(error)) })
    }

    /// A stream that nothing is ever said of.
    #[cfg(test)]
    pub fn of(stream: DuplexStream) -> Self {
        Self { stream, error: None }
    }

    /// Whether something speaks HTTP/2 at the port. Of no use afterwards.
    pub async fn is_served(&mut self) -> bool {
        let answer = async {
            self.write_all(HELLO).await?;
            self.read_u8().await
        };
        tokio::time::timeout(HELLO_ANSWER, answer).await.is_ok_and(|answer: io::Result<u8>| answer.is_ok())
    }

    /// What the kubelet said, once: it explains whatever has become of the stream.
    fn said(&mut self, context: &mut Context<'_>) -> Option<io::Error> {
        let Poll::Ready(said) = self.error.as_mut()?.as_mut().poll(context) else { return None };
        self.error = None;
        said.map(io::Error::other)
    }

    /// The same result, unless the kubelet said why it is none.
    fn explained<T>(
        &mut self,
        context: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match polled {
            Poll::Ready(Ok(_)) => polled,
            Poll::Pending | Poll::Ready(Err(_)) => {
                self.said(context).map_or(polled, |said| Poll::Ready(Err(said)))
            }
        }
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        let is_end = matches!(polled, Poll::Ready(Ok(()))) && buffer.filled().len() == before;
        if is_end && let Some(said) = self.said(context) {
            return Poll::Ready(Err(said));
        }
        self.explained(context, polled)
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.explained(context, polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(context);
        self.explained(context, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_a_stream_says_why() {
        let (mut pod, stream) = tokio::io::duplex(64);
        let said = async { Some("connection refused".to_owned()) };
        let mut tunnel = Tunnel { stream, error: Some(Box::pin(said)) };
        pod.write_all(b"x").await.unwrap();
        drop(pod);
        assert_eq!(tunnel.read_u8().await.unwrap(), b'x');
        let error = tunnel.read_u8().await.unwrap_err();
        assert_eq!(error.to_string(), "connection refused");
        assert_eq!(tunnel.read(&mut [0]).await.unwrap(), 0, "once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_port_is_served_if_http2_answers() {
        let (mut pod, stream) = tokio::io::duplex(64);
        pod.write_all(b"\0\0\0\x04\0\0\0\0\0").await.unwrap();
        assert!(Tunnel::of(stream).is_served().await);
        // As a standby's port is.
        let (pod, stream) = tokio::io::duplex(64);
        drop(pod);
        let said = async { Some("connection refused".to_owned()) };
        assert!(!Tunnel { stream, error: Some(Box::pin(said)) }.is_served().await);
        let (_silent, stream) = tokio::io::duplex(64);
        assert!(!Tunnel::of(stream).is_served().await);
    }

    #[tokio::test]
    async fn an_end_without_a_word_is_an_end() {
        let (pod, stream) = tokio::io::duplex(64);
        drop(pod);
        // The forwarder keeps it until this side has closed the stream, too.
        let mut tunnel = Tunnel { stream, error: Some(Box::pin(std::future::pending())) };
        assert_eq!(tunnel.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_write_that_fails_says_why() {
        let (pod, stream) = tokio::io::duplex(64);
        drop(pod);
        let said = async { Some("connection refused".to_owned()) };
        let mut tunnel = Tunnel { stream, error: Some(Box::pin(said)) };
        let error = tunnel.write_all(b"x").await.unwrap_err();
        assert_eq!(error.to_string(), "connection refused");
    }
}
