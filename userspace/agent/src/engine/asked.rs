//! Actions whose outcome has not been observed: the next daemon does them again.
//!
//! Each answer takes out what it answers, whatever the number of open ones: after the first scan there is one for each
//! container. Bounded; a scan and the next change of a limit make up for what is lost.

use kwitness_core::model::{Action, CgroupId, ContainerId, Observation, ReadLimits};
use serde::{Deserialize, Serialize};

use crate::oldest_first::OldestFirst;

/// Containers, and cgroups, that are remembered of either kind.
const MAX: usize = 4096;

/// What was asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub(super) struct Asked {
    resolve: OldestFirst<ContainerId, ()>,
    /// By cgroup, and whether all its files are to be read; one request a file.
    read: OldestFirst<(CgroupId, bool), Vec<ReadLimits>>,
}

/// The same as it is written down.
#[derive(Serialize, Deserialize)]
struct Written {
    resolve: Vec<ContainerId>,
    read: Vec<ReadLimits>,
}

impl Default for Asked {
    fn default() -> Self {
        Self { resolve: OldestFirst::new(MAX), read: OldestFirst::new(MAX) }
    }
}

impl From<Written> for Asked {
    fn from(Written { resolve, read }: Written) -> Self {
        let mut asked = Self::default();
        resolve.into_iter().for_each(|container| asked.resolve.insert(container, ()));
        read.into_iter().for_each(|request| asked.note_read(request));
        asked
    }
}

impl From<Asked> for Written {
    fn from(asked: Asked) -> Self {
        Self { resolve: asked.resolve().cloned().collect(), read: asked.read().cloned().collect() }
    }
}

impl Asked {
    /// An action is about to be done.
    pub(super) fn note(&mut self, action: &Action) {
        match action {
            Action::Resolve(container) => self.resolve.insert(container.clone(), ()),
            Action::ReadLimits(request) => self.note_read(request.clone()),
            // The next daemon scans and judges in any case.
            Action::Rescan | Action::Judge(_) => {}
            // If it was not done by then, there is less room for others.
            Action::Untrack(_) => {}
        }
    }

    fn note_read(&mut self, request: ReadLimits) {
        let key = (request.cgroup, request.limit_file.is_none());
        let mut of_cgroup = self.read.remove(&key).unwrap_or_default();
        of_cgroup.retain(|other| other.limit_file != request.limit_file);
        of_cgroup.push(request);
        self.read.insert(key, of_cgroup);
    }

    /// An outcome is about to be observed.
    pub(super) fn answered(&mut self, observation: &Observation) {
        match observation {
            Observation::Runtime { container, .. } => {
                self.resolve.remove(container);
            }
            Observation::LimitsRead(answer) => {
                self.read.remove(&(answer.cgroup, answer.whole));
            }
            _ => {}
        }
    }

    /// The actions, to be done again.
    pub(super) fn actions(&self) -> Vec<Action> {
        let resolve = self.resolve().cloned().map(Action::Resolve);
        resolve.chain(self.read().cloned().map(Action::ReadLimits)).collect()
    }

    fn resolve(&self) -> impl Iterator<Item = &ContainerId> {
        self.resolve.iter().map(|(container, ())| container)
    }

    fn read(&self) -> impl Iterator<Item = &ReadLimits> {
        self.read.iter().flat_map(|(_, of_cgroup)| of_cgroup)
    }
}

#[cfg(test)]
mod tests {
    use kwitness_core::model::{KernelTime, LimitFile, LimitsAnswer};

    use super::*;

    fn container(number: usize) -> ContainerId {
        ContainerId(number.to_string().into())
    }

    fn resolved(number: usize) -> Observation {
        Observation::Runtime { at: KernelTime(1), container: container(number), facts: None }
    }

    fn request(cgroup: u64, limit_file: Option<LimitFile>) -> Action {
        Action::ReadLimits(ReadLimits { cgroup: CgroupId(cgroup), path: None, inner: false, limit_file })
    }

    fn read(cgroup: u64, whole: bool) -> Observation {
        Observation::LimitsRead(LimitsAnswer {
            cgroup: CgroupId(cgroup),
            path: None,
            began: KernelTime(1),
            ended: KernelTime(2),
            gone: false,
            whole,
            readings: Vec::new(),
        })
    }

    #[test]
    fn what_was_asked_and_not_answered_is_asked_again() {
        let mut asked = Asked::default();
        [1, 2].into_iter().for_each(|number| asked.note(&Action::Resolve(container(number))));
        asked.note(&Action::Rescan);
        asked.answered(&resolved(1));
        assert_eq!(asked.actions(), [Action::Resolve(container(2))]);
    }

    #[test]
    fn an_answer_about_a_whole_cgroup_is_none_about_one_file() {
        let files: Vec<_> = LimitFile::all().take(2).collect();
        let mut asked = Asked::default();
        let of_files: Vec<_> = files.iter().map(|file| request(1, Some(*file))).collect();
        [request(1, None), request(2, None)].iter().chain(&of_files).for_each(|action| asked.note(action));
        // The same again is one request.
        asked.note(&of_files[1]);
        asked.answered(&read(1, true));
        assert_eq!(asked.actions(), [&[request(2, None)][..], &of_files[..]].concat());
        asked.answered(&read(1, false));
        assert_eq!(asked.actions(), [request(2, None)]);
    }

    #[test]
    fn more_than_are_remembered_cost_the_oldest() {
        let mut asked = Asked::default();
        (0..=MAX).for_each(|number| asked.note(&Action::Resolve(container(number))));
        let actions = asked.actions();
        assert_eq!(actions.len(), MAX);
        assert_eq!(actions[0], Action::Resolve(container(1)));
    }

    #[test]
    fn what_is_written_down_is_read_again() {
        let mut asked = Asked::default();
        asked.note(&Action::Resolve(container(1)));
        asked.note(&request(1, LimitFile::all().next()));
        asked.note(&request(1, None));
        let written = serde_json::to_string(&asked).unwrap();
        let again: Asked = serde_json::from_str(&written).unwrap();
        assert_eq!(again.actions(), asked.actions());
        assert_eq!(again.actions().len(), 3);
    }
}
