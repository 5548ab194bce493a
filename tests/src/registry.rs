//! A registry of container images on loopback: serves an OCI image layout, which `xtask` made, by the OCI distribution specification.
//!
//! Read-only. containerd asks it for every registry there is (`_default` of its host configuration) and says which in `ns`.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// The annotation by which a layout names its images.
const NAME: &str = "org.opencontainers.image.ref.name";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

#[derive(Debug)]
pub struct Registry {
    address: SocketAddr,
    task: JoinHandle<()>,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
    annotations: HashMap<String, String>,
}

struct Layout {
    blobs: PathBuf,
    /// Manifests' digests by the images' names.
    images: HashMap<String, String>,
}

struct Found {
    bytes: Vec<u8>,
    kind: &'static str,
    digest: String,
}

impl Registry {
    pub async fn start(layout: &Path) -> Result<Self> {
        let layout = Arc::new(Layout::read(layout)?);
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("listen on loopback")?;
        let address = listener.local_addr().context("the registry's address")?;
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let layout = Arc::clone(&layout);
                tokio::spawn(async move {
                    let answer = service_fn(async |request| Ok::<_, Infallible>(layout.answer(&request)));
                    let connection = hyper::server::conn::http1::Builder::new();
                    // A client that goes away has its own reasons.
                    let _ = connection.serve_connection(TokioIo::new(stream), answer).await;
                });
            }
        });
        Ok(Self { address, task })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Layout {
    fn read(directory: &Path) -> Result<Self> {
        let path = directory.join("index.json");
        let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let index: Index =
            serde_json::from_slice(&text).with_context(|| format!("{} as an index", path.display()))?;
        let named = |entry: Descriptor| Some((entry.annotations.get(NAME)?.clone(), entry.digest));
        let images = index.manifests.into_iter().filter_map(named).collect();
        Ok(Self { blobs: directory.join("blobs/sha256"), images })
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        let registry =
            request.uri().query().unwrap_or_default().split('&').find_map(|it| it.strip_prefix("ns="));
        let mut response = Response::new(Full::default());
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        } else if path == "/v2/" {
            // It speaks the protocol.
        } else if let Some(found) = self.find(path, registry.unwrap_or_default()) {
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(found.kind));
            headers.insert(CONTENT_LENGTH, found.bytes.len().into());
            if let Ok(digest) = found.digest.parse() {
                headers.insert("docker-content-digest", digest);
            }
            if request.method() == Method::GET {
                *response.body_mut() = Full::new(found.bytes.into());
            }
        } else {
            *response.status_mut() = StatusCode::NOT_FOUND;
        }
        response
    }

    /// `/v2/NAME/manifests/TAG`, `/v2/NAME/manifests/DIGEST`, or `/v2/NAME/blobs/DIGEST`.
    fn find(&self, path: &str, registry: &str) -> Option<Found> {
        let path = path.strip_prefix("/v2/")?;
        let (digest, kind) = if let Some((name, reference)) = path.split_once("/manifests/") {
            let digest = match reference.starts_with("sha256:") {
                true => reference,
                false => self.images.get(&format!("{registry}/{name}:{reference}"))?,
            };
            (digest, MANIFEST)
        } else {
            (path.split_once("/blobs/")?.1, "application/octet-stream")
        };
        let name = digest.strip_prefix("sha256:").filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))?;
        Some(Found { bytes: fs::read(self.blobs.join(name)).ok()?, kind, digest: digest.to_owned() })
    }
}
