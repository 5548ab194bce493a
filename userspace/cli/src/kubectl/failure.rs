//! What went wrong between here and the nodes, and what the exit code says of it.

use std::fmt;
use std::io;

use kwitness_api::client::Error as ClientError;
use kwitness_api::{SourceError, innermost};

use crate::exit::Code;
use crate::output::note;

/// A request to the API server, in the words of RBAC.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub verb: &'static str,
    pub resource: &'a str,
    /// All of them, if none.
    pub namespace: Option<&'a str>,
}

impl fmt::Display for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { verb, resource, namespace } = self;
        match namespace {
            Some(namespace) => write!(f, "{verb} {resource} in namespace \"{namespace}\""),
            None => write!(f, "{verb} {resource} in all namespaces"),
        }
    }
}

/// A failure, in words that say what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Failure {
    code: Code,
    text: String,
}

impl Failure {
    /// With the code that the program ends with.
    pub fn new(code: Code, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }

    /// Of a request to the API server.
    pub fn of(error: &kube::Error, request: Request<'_>) -> Self {
        match error {
            kube::Error::Api(status) if status.code == 403 => {
                let Request { verb, resource, .. } = request;
                let text = format!(
                    "not allowed to {request}: grant the verb \"{verb}\" on {resource} there (docs/kubectl.md has the \
                     Role); the API server: {}",
                    status.message
                );
                Self::new(Code::Denied, text)
            }
            kube::Error::Api(status) if status.code == 401 => {
                let text = format!(
                    "cannot {request}: the API server does not accept the credentials; log in again, or choose others with \
                     --context or --user"
                );
                Self::new(Code::Denied, text)
            }
            kube::Error::Api(status) => {
                Self::new(Code::Failure, format!("cannot {request}: {}", status.message))
            }
            kube::Error::Auth(error) => {
                let cause = innermost(error);
                let text = format!("cannot {request}: no credentials: {cause}; check the kubeconfig's user");
                Self::new(Code::Configuration, text)
            }
            error => {
                let cause = innermost(error);
                let text = format!("cannot {request}: the API server does not answer: {cause}");
                Self::new(Code::Unreachable, text)
            }
        }
    }

    /// Whether it is a right that is missing.
    pub fn is_denied(&self) -> bool {
        self.code == Code::Denied
    }

    /// For a connection: the client distinguishes permission from reachability by the kind.
    pub fn into_io(self) -> io::Error {
        let kind = if self.is_denied() { io::ErrorKind::PermissionDenied } else { io::ErrorKind::Other };
        io::Error::new(kind, self.text)
    }

    /// The code of a result; an error is printed first.
    pub fn code(done: anyhow::Result<Code>) -> Code {
        match done.map_err(|error| error.downcast::<Self>()) {
            Ok(code) => code,
            Err(Ok(failure)) => {
                note(&failure.text);
                failure.code
            }
            Err(Err(error)) => crate::exit::code(Err(error)),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::PermissionDenied { address } => Self::new(
                Code::Denied,
                format!(
                    "{address}: the port-forward is forbidden: grant the verbs \"get\" and \"create\" on pods/portforward \
                     in the daemons' namespace (docs/kubectl.md has the Role)"
                ),
            ),
            ClientError::Unreachable { address, reason } => Self::new(
                Code::Unreachable,
                format!("{address} does not answer: {reason} (the chart's api.port opens the port)"),
            ),
            error => Self::new(Code::Failure, error.to_string()),
        }
    }
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        match error {
            SourceError::Client(error) => error.into(),
            error => Self::new(Code::Failure, error.to_string()),
        }
    }
}

/// The nodes that gave no answer. The others' answers are shown all the same.
#[derive(Debug, Default)]
pub struct Missing(Option<Code>);

impl Missing {
    /// Prints the failure as a note, and remembers it for the exit code.
    pub fn add(&mut self, failure: Failure) {
        note(&failure.text);
        self.0.get_or_insert(failure.code);
    }

    /// Whether every node answered.
    pub const fn is_none(&self) -> bool {
        self.0.is_none()
    }

    /// What the program ends with: what is wrong on a node that did answer, or else that one did not.
    pub fn code(&self, of_others: Code) -> Code {
        match self.0 {
            Some(code) if u8::from(of_others) == 0 => code,
            _ => of_others,
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;
    use kwitness_api::client::Address;
    use kwitness_api::proto::VerdictKind;

    use super::*;

    const REQUEST: Request<'static> = Request { verb: "watch", resource: "pods", namespace: Some("prod") };

    #[test]
    fn what_is_forbidden_and_what_does_not_answer_are_distinguished() {
        let refused = Status::failure("pods is forbidden: User \"x\"", "Forbidden").with_code(403);
        let refused = Failure::of(&kube::Error::Api(refused.boxed()), REQUEST);
        assert_eq!(refused.code, Code::Denied);
        let said = "not allowed to watch pods in namespace \"prod\": grant the verb \"watch\" on pods there";
        assert!(refused.text.starts_with(said) && refused.text.ends_with("User \"x\""), "{refused}");
        assert_eq!(refused.into_io().kind(), io::ErrorKind::PermissionDenied);
        let unknown = Status::failure("Unauthorized", "Unauthorized").with_code(401);
        let unknown = Failure::of(&kube::Error::Api(unknown.boxed()), Request { namespace: None, ..REQUEST });
        assert_eq!(unknown.code, Code::Denied);
        assert!(unknown.text.starts_with("cannot watch pods in all namespaces: "), "{unknown}");
        assert!(unknown.text.contains("log in again"), "{unknown}");
        let missing = Status::failure("pods \"a\" not found", "NotFound").with_code(404);
        assert_eq!(Failure::of(&kube::Error::Api(missing.boxed()), REQUEST).code, Code::Failure);
        let address = Address::Node("worker-1".into());
        let gone = ClientError::Unreachable { address, reason: "connection refused".into() };
        let gone = Failure::from(gone);
        assert_eq!(gone.code, Code::Unreachable);
        assert!(gone.text.starts_with("node worker-1 does not answer: connection refused"), "{gone}");
    }

    #[test]
    fn a_node_that_does_not_answer_is_no_success_and_hides_nothing_worse() {
        let mut missing = Missing::default();
        assert_eq!(missing.code(Code::Success), Code::Success);
        missing.add(Failure::new(Code::Unreachable, "node worker-1 does not answer"));
        missing.add(Failure::new(Code::Denied, "node worker-2: forbidden"));
        assert_eq!(missing.code(Code::Success), Code::Unreachable);
        assert_eq!(missing.code(Code::Verdict(VerdictKind::InForce)), Code::Unreachable);
        let diverged = Code::Verdict(VerdictKind::Diverged);
        assert_eq!(missing.code(diverged), diverged);
    }
}
