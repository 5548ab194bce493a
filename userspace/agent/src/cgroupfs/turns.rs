//! Requests for what has to be looked for, in turns by container: whoever has very many waiting delays another by one turn each.
//!
//! All requests of a turn were made before it began, so one walk of the container answers them all. Never searches.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use kwitness_core::model::ReadLimits;

/// Requests of one turn at most: reading as many takes about as long as the walk that finds them, in a container that has many
/// cgroups. With fewer, what is left over would cost more walks.
pub(super) const TURN: usize = 256;

/// A request, and when it was made.
type Asked = (ReadLimits, Instant);

/// The path of the container's cgroup; none: of a cgroup that may lie anywhere.
type ContainerPath = Option<Arc<str>>;

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Turns {
    waiting: HashMap<ContainerPath, VecDeque<Asked>>,
    /// Those in which something waits. It is the first one's turn.
    order: VecDeque<ContainerPath>,
    /// How many requests are left of that turn; 0: it has not begun.
    left: usize,
    len: usize,
}

impl Turns {
    pub(super) fn push(&mut self, request: ReadLimits, asked: Instant) {
        let container = request.path.clone();
        let waiting = self.waiting.entry(container.clone()).or_default();
        if waiting.is_empty() {
            self.order.push_back(container);
        }
        waiting.push_back((request, asked));
        self.len += 1;
    }

    pub(super) fn pop(&mut self) -> Option<Asked> {
        let container = self.order.front()?;
        let waiting = self.waiting.get_mut(container)?;
        if self.left == 0 {
            self.left = waiting.len().min(TURN);
        }
        let next = waiting.pop_front()?;
        self.len -= 1;
        self.left -= 1;
        if self.left == 0 {
            let is_empty = waiting.is_empty();
            let container = self.order.pop_front()?;
            if is_empty {
                self.waiting.remove(&container);
            } else {
                self.order.push_back(container);
            }
        }
        Some(next)
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use kwitness_core::model::CgroupId;

    use super::*;

    fn request(container: &str, number: u64) -> ReadLimits {
        ReadLimits { cgroup: CgroupId(number), path: Some(container.into()), inner: true, limit_file: None }
    }

    #[test]
    fn a_container_waits_for_one_turn_of_each_other() {
        let mut turns = Turns::default();
        (0..10 * TURN as u64).for_each(|number| turns.push(request("/many", number), Instant::now()));
        (0..3).for_each(|number| turns.push(request("/few", number), Instant::now()));
        let first: Vec<_> = (0..TURN).filter_map(|_| turns.pop()).collect();
        assert!(first.iter().enumerate().all(|(at, (of, _))| *of == request("/many", at as u64)));
        // What comes during a turn waits for the next one, also for one that has nothing else.
        assert_eq!(turns.pop().map(|(of, _)| of), Some(request("/few", 0)));
        turns.push(request("/few", 3), Instant::now());
        let then: Vec<_> = (0..3).filter_map(|_| turns.pop()).map(|(of, _)| of).collect();
        let many = request("/many", TURN as u64);
        assert_eq!(then, [request("/few", 1), request("/few", 2), many]);
        assert_eq!(turns.len(), 9 * TURN);
        let rest = std::iter::from_fn(|| turns.pop()).count();
        assert_eq!((rest, turns.len(), turns.waiting.len()), (9 * TURN, 0, 0));
    }
}
