//! Containers as `List` and snapshots have them. Each is converted and encoded by itself, so that an answer on twenty thousand of
//! them takes no more memory than its bytes.

use kwitness_core::journal::Position;
use kwitness_core::model::ContainerState;
use prost::Message as _;

use super::convert;
use crate::clock::Clock;
use kwitness_api::proto;

/// The tag of `containers`: field 2, length-delimited, in `ListResponse` and in `Snapshot`.
const CONTAINERS_TAG: u8 = 2 << 3 | 2;

/// An answer would take more bytes than it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this answer takes more than {max} bytes: narrow it with `filter`, for example to one namespace")]
pub struct TooLarge {
    /// The bytes of its entries, at most.
    pub max: usize,
}

/// An encoded `kwitness.v1alpha1.ListResponse`, which is an encoded `Snapshot`, too: both have the same fields.
///
/// # Errors
/// The containers take more than `max` bytes.
pub fn encode<'a>(
    position: &Position,
    containers: impl IntoIterator<Item = &'a ContainerState>,
    clock: Clock,
    max: usize,
) -> Result<Vec<u8>, TooLarge> {
    let position = Some(self::position(position));
    let mut bytes = proto::ListResponse { position, containers: Vec::new() }.encode_to_vec();
    let mut left = max;
    for state in containers {
        let container = convert::container_state(state, clock);
        left = left.checked_sub(container.encoded_len()).ok_or(TooLarge { max })?;
        bytes.push(CONTAINERS_TAG);
        container.encode_length_delimited(&mut bytes).expect("a Vec grows");
    }
    Ok(bytes)
}

fn position(position: &Position) -> proto::Position {
    proto::Position { epoch: position.epoch.0.to_string(), seq: position.seq }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kwitness_core::journal::Epoch;
    use kwitness_core::model::{CgroupId, ContainerId, State, Subject};

    use super::*;

    fn running(id: u64) -> ContainerState {
        let subject = Subject {
            cgroup_id: CgroupId(id),
            cgroup_path: format!("/kubepods/pod{id}/{id}").into(),
            container_id: ContainerId(id.to_string().into()),
            runtime: None,
            pod: None,
            facts: None,
        };
        ContainerState {
            subject: Arc::new(subject),
            state: State::Running,
            created_at: None,
            started_at: None,
            stopped_at: None,
            main: None,
            program: Some("/bin/sh".into()),
            main_status: None,
            forks: id,
            execs: 1,
            exits: 0,
        }
    }

    #[test]
    fn what_was_encoded_one_by_one_is_the_whole_message() {
        let states = [1, 2].map(running);
        let (clock, at) = (Clock::read(), Position { epoch: Epoch("epoch".into()), seq: 7 });
        let containers: Vec<_> = states.iter().map(|state| convert::container_state(state, clock)).collect();
        let size: usize = containers.iter().map(prost::Message::encoded_len).sum();
        let bytes = encode(&at, &states, clock, size).unwrap();
        let position = Some(proto::Position { epoch: "epoch".to_owned(), seq: 7 });
        let snapshot = proto::Snapshot { position: position.clone(), containers: containers.clone() };
        assert_eq!(proto::Snapshot::decode(&*bytes).unwrap(), snapshot);
        let list = proto::ListResponse { position, containers };
        assert_eq!(proto::ListResponse::decode(&*bytes).unwrap(), list);
        assert_eq!(encode(&at, &states, clock, size - 1), Err(TooLarge { max: size - 1 }));
    }
}
