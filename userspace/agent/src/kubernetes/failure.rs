//! Why the API cannot be watched, by what would fix it.

use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use kwitness_api::causes;
use kwitness_api::proto::KubernetesFailure;
use kwitness_api::text::escape;

/// What is kept of another's text, in characters.
const TEXT_MAX: usize = 256;

/// Why the Kubernetes API cannot be watched. Other people's text in it is bounded and escaped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    #[error("no access to the Kubernetes API: {0}")]
    Configuration(String),
    #[error("the API server rejects the credentials (401): {0}")]
    Unauthorized(String),
    #[error("the credentials do not allow it (403): {0}")]
    Forbidden(String),
    #[error("a certificate has expired or is not valid yet: {0}")]
    CertificateExpired(String),
    #[error("TLS with the API server failed: {0}")]
    Tls(String),
    #[error("cannot resolve the API server's name: {0}")]
    Dns(String),
    #[error("cannot reach the API server: {0}")]
    Unreachable(String),
    #[error("the API server did not answer within {} s", .0.as_secs())]
    Timeout(Duration),
    #[error("the version to resume from has expired (410): the pods are listed again")]
    ResourceExpired,
    #[error("the API server's list has more than {0}")]
    TooLarge(String),
    #[error("the API server's answer is malformed: {0}")]
    Malformed(String),
    #[error("the API server answered {0}: {1}")]
    Server(u16, String),
}

impl Failure {
    /// What kind of failure it is.
    pub(super) const fn kind(&self) -> KubernetesFailure {
        match self {
            Self::Configuration(_) => KubernetesFailure::Configuration,
            Self::Unauthorized(_) => KubernetesFailure::Unauthorized,
            Self::Forbidden(_) => KubernetesFailure::Forbidden,
            Self::CertificateExpired(_) => KubernetesFailure::CertificateExpired,
            Self::Tls(_) => KubernetesFailure::Tls,
            Self::Dns(_) => KubernetesFailure::Dns,
            Self::Unreachable(_) => KubernetesFailure::Unreachable,
            Self::Timeout(_) => KubernetesFailure::Timeout,
            Self::ResourceExpired => KubernetesFailure::ResourceExpired,
            Self::TooLarge(_) => KubernetesFailure::TooLarge,
            Self::Malformed(_) => KubernetesFailure::Malformed,
            Self::Server(..) => KubernetesFailure::Server,
        }
    }

    /// An answer of the API server, by its HTTP status.
    pub(super) fn of_answer(code: u16, message: &str) -> Self {
        let message = text(message, TEXT_MAX);
        match code {
            401 => Self::Unauthorized(message),
            403 => Self::Forbidden(message),
            410 => Self::ResourceExpired,
            _ => Self::Server(code, message),
        }
    }

    /// A call that was not answered.
    pub(super) fn of_call(error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => return Self::of_answer(status.code, &status.message),
            kube::Error::InferConfig(_) | kube::Error::InferKubeconfig(_) | kube::Error::RustlsTls(_) => {
                return Self::Configuration(chain(error));
            }
            kube::Error::Auth(_) => return Self::Unauthorized(chain(error)),
            _ => {}
        }
        Self::of_transport(error)
    }

    /// A connection that failed, by the causes below it.
    pub(super) fn of_transport(error: &(dyn StdError + 'static)) -> Self {
        let text = chain(error);
        let by_cause = causes(error).find_map(|cause| {
            if let Some(tls) = carried_by(cause) {
                return Some(if is_out_of_time(tls) { Self::CertificateExpired } else { Self::Tls });
            }
            // The client's own type for it is private.
            cause.to_string().starts_with("dns error").then_some(Self::Dns as fn(String) -> Self)
        });
        by_cause.map_or_else(|| Self::Unreachable(text.clone()), |kind| kind(text.clone()))
    }
}

/// An I/O error does not name what it carries as its source.
fn carried_by<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    error.downcast_ref().or_else(|| carried_by(error.downcast_ref::<io::Error>()?.get_ref()?))
}

fn is_out_of_time(error: &rustls::Error) -> bool {
    use rustls::{AlertDescription, CertificateError, Error};

    matches!(
        error,
        Error::InvalidCertificate(
            CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. }
        ) | Error::AlertReceived(AlertDescription::CertificateExpired)
    )
}

/// Others' text, cut and escaped.
pub(super) fn text(text: &str, max: usize) -> String {
    let cut: String = text.chars().take(max).collect();
    escape(&cut).chars().take(max).collect()
}

/// An error with its causes, each once.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut said = String::new();
    for cause in causes(error).map(ToString::to_string) {
        if !said.contains(&cause) {
            said = if said.is_empty() { cause } else { format!("{said}: {cause}") };
        }
    }
    text(&said, TEXT_MAX)
}

#[cfg(test)]
mod tests {
    use rustls::{AlertDescription, CertificateError};

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("client error (Connect)")]
    struct Connect(#[source] Box<dyn StdError + Send + Sync>);

    fn carried(error: rustls::Error) -> Failure {
        let carried = io::Error::new(io::ErrorKind::InvalidData, error);
        Failure::of_transport(&Connect(Box::new(io::Error::other(carried))))
    }

    #[test]
    fn failures_are_distinguished_by_their_causes() {
        use KubernetesFailure::{CertificateExpired, Dns, Tls, Unreachable};

        let expired = rustls::Error::InvalidCertificate(CertificateError::Expired);
        let of_client = rustls::Error::AlertReceived(AlertDescription::CertificateExpired);
        let unknown = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        for (failure, kind) in [
            (carried(expired), CertificateExpired),
            (carried(of_client), CertificateExpired),
            (carried(unknown), Tls),
            (Failure::of_transport(&Connect("dns error".into())), Dns),
            (
                Failure::of_transport(&Connect(Box::new(io::Error::from(io::ErrorKind::ConnectionRefused)))),
                Unreachable,
            ),
        ] {
            assert_eq!(failure.kind(), kind, "{failure}");
        }
    }

    #[test]
    fn answers_are_distinguished_by_their_status() {
        use KubernetesFailure::{Forbidden, ResourceExpired, Server, Unauthorized};

        for (code, kind) in [(401, Unauthorized), (403, Forbidden), (410, ResourceExpired), (503, Server)] {
            assert_eq!(Failure::of_answer(code, "no").kind(), kind);
        }
    }

    #[test]
    fn others_text_is_bounded_and_escaped() {
        let said = Failure::of_answer(500, &"\x1b[31m\u{202e}".repeat(1000)).to_string();
        assert!(said.chars().count() < TEXT_MAX + 64 && !said.contains('\x1b'), "{said}");
        assert_eq!(chain(&Connect("dns error".into())), "client error (Connect): dns error");
    }
}
