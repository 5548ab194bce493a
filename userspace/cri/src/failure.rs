//! What it means that a call about one container or sandbox failed: the one place that knows the runtimes' words for it.
//!
//! | Runtime | A container that is gone |
//! |---|---|
//! | containerd, CRI-O (since 1.18) | `NotFound` |
//! | CRI-O, of some methods | `Unknown`, "container with ID starting with ID not found: ID does not exist" |
//! | cri-dockerd | `Unknown`, "Error response from daemon: No such container: ID", for sandboxes, too |

use std::error::Error as _;

use tonic::{Code, Status};

/// Why a call about a container or sandbox gave nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The runtime does not know it, or not any more.
    Gone,
    /// The runtime is there, and refused this call.
    Refused,
    /// There was no answer of the runtime's: the connection failed, or it took too long.
    Unanswered,
}

impl Failure {
    /// What that status means for a call about the container or sandbox with that id.
    pub fn of(status: &Status, id: &str) -> Self {
        if !is_answer(status) {
            Self::Unanswered
        } else if status.code() == Code::NotFound || says_gone(status, id) {
            Self::Gone
        } else {
            Self::Refused
        }
    }
}

/// Whether the runtime itself said that: it is there, and the call is all that failed. What came in between has a cause, or one of
/// the codes of a connection.
pub fn is_answer(status: &Status) -> bool {
    status.source().is_none()
        && !matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled)
}

/// A runtime that gives its errors no code says what it does not know with words: of another one, they mean nothing.
fn says_gone(status: &Status, id: &str) -> bool {
    let message = status.message();
    let is_of_it = |before: &str, after: &str| {
        message
            .split(before)
            .skip(1)
            .any(|rest| rest.strip_prefix(id).is_some_and(|rest| rest.starts_with(after)))
    };
    status.code() == Code::Unknown
        && !id.is_empty()
        && (is_of_it("No such container: ", "")
            || is_of_it(" with ID starting with ", " not found: ID does not exist"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "7c1e0d5b9a3f48627c1e0d5b9a3f48627c1e0d5b9a3f48627c1e0d5b9a3f4862";
    const OTHER: &str = "4be19c07d2a8f5634be19c07d2a8f5634be19c07d2a8f5634be19c07d2a8f563";

    fn failure(code: Code, message: &str) -> Failure {
        Failure::of(&Status::new(code, message.replace("$ID", ID)), ID)
    }

    #[test]
    fn each_runtime_says_in_its_own_words_that_something_is_gone() {
        for (code, message) in [
            (Code::NotFound, "an error occurred when try to find container \"$ID\": not found"),
            (Code::NotFound, "an error occurred when try to find sandbox: not found"),
            (
                Code::NotFound,
                "could not find container \"$ID\": container with ID starting with $ID not found: ID does not exist",
            ),
            (
                Code::NotFound,
                "could not find pod \"$ID\": PodSandbox with ID starting with $ID not found: ID does not exist",
            ),
            (Code::Unknown, "container with ID starting with $ID not found: ID does not exist"),
            (Code::Unknown, "Error response from daemon: No such container: $ID"),
            (
                Code::Unknown,
                "failed to update container \"$ID\": Error response from daemon: No such container: $ID",
            ),
            (Code::Unknown, "Error: No such container: $ID"),
        ] {
            assert_eq!(failure(code, message), Failure::Gone, "{code:?}: {message}");
        }
    }

    #[test]
    fn what_is_not_about_it_or_has_other_reasons_is_refused() {
        for (code, message) in [
            (Code::Unknown, &*format!("Error response from daemon: No such container: {OTHER}")),
            (Code::Unknown, "Error response from daemon: No such container"),
            (Code::Unknown, "Error: No such image: $ID"),
            (Code::Unknown, "failed to update resources: $ID: memory.max: device or resource busy"),
            (Code::Unknown, "operation timeout: context deadline exceeded"),
            (Code::Internal, "No such container: $ID"),
            (Code::ResourceExhausted, "too many requests"),
            (Code::Unimplemented, "unknown method"),
        ] {
            assert_eq!(failure(code, message), Failure::Refused, "{code:?}: {message}");
        }
        let refused = Status::unknown("Error response from daemon: No such container: ");
        assert_eq!(Failure::of(&refused, ""), Failure::Refused, "without an id, nothing is said");
    }

    #[test]
    fn a_failed_connection_is_no_answer() {
        for code in [Code::Unavailable, Code::DeadlineExceeded, Code::Cancelled] {
            assert_eq!(failure(code, "No such container: $ID"), Failure::Unanswered, "{code:?}");
        }
        let broken = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        assert_eq!(Failure::of(&Status::from_error(Box::new(broken)), ID), Failure::Unanswered);
    }
}
